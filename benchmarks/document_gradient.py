"""What does the gradient of the predicted effect by the document cost, and how far is the central difference from it?

    python benchmarks/document_gradient.py --repeats 5 --documents 100

TinyResNet of width 32 on 100 documents: the central difference of two gradients, which is what a step of PGD costs,
forward over reverse mode, and plain double backward, in forward passes over the same documents, CPU seconds,
interleaved, one thread. The step of the central difference is the one that PGD's own check takes. Errors are Euclidean
distances of all gradients from those of double backward, as a share; on a network of ReLUs that of the central
difference does not vanish (see infuser/perturbation/document_gradient.py).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from measuring import arguments, forward_pass, interleaved, keep, ratios, trained
from torch.func import functional_call

import infuser as inf
from infuser.params import trainable
from infuser.perturbation.document_gradient import PredictedEffect
from infuser.tasks import task_of

BATCH = 25  # documents at a time, for all three


def main() -> None:
    """Measure and write costs and errors."""
    args = arguments(__doc__, documents=100).parse_args()
    run, data = trained(args.documents, epochs=3)
    model, task = run.model(), task_of(data)
    params = trainable(model)
    influence = inf.Influence(inf.fit_ekfac(run, data), 0.1)
    v = {
        name: value[0]
        for name, value in influence.direction(run, inf.measure.Margin(data[data.ids[:1]])).params.items()
    }
    z, targets = torch.from_numpy(data.inputs / np.float32(255)), torch.from_numpy(np.array(data.targets))

    central = PredictedEffect(model, params, task, v, len(data), via="central").checked(z[:BATCH], targets[:BATCH])
    exact = PredictedEffect(model, params, task, v, len(data), via="forward")

    def over(at: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[[], torch.Tensor]:
        parts = list(zip(z.split(BATCH), targets.split(BATCH), strict=True))
        return lambda: torch.cat([at(part, labels) for part, labels in parts])

    def double(part: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        leaf, point = part.clone().requires_grad_(), {name: p.clone().requires_grad_() for name, p in params.items()}
        loss = task.loss(functional_call(model, point, (leaf,)), labels).sum()
        rows = torch.autograd.grad(loss, list(point.values()), create_graph=True)
        product = sum((row * v[name]).sum() for name, row in zip(point, rows, strict=True))
        return torch.autograd.grad(product, leaf)[0] / -len(data)

    ways = {
        "central difference": over(lambda part, labels: central.at(part, labels)[1]),
        "forward over reverse": over(lambda part, labels: exact.at(part, labels)[1]),
        "double backward": over(double),
    }
    taken = interleaved({"forward": forward_pass(run, data), **ways}, args.repeats)
    rows = ratios(taken, "forward")
    reference = ways["double backward"]()
    for name, way in ways.items():
        rows[name]["error"] = float((way() - reference).norm() / reference.norm())
        print(f"{name}: error {rows[name]['error']:.2g}")
    found = {"documents": len(data), "repeats": args.repeats, "batch": BATCH, "step": central.step, "rows": rows}
    keep(f"document_gradient, {len(data)} documents", found)


if __name__ == "__main__":
    main()
