"""What does the EK-FAC fit cost, beside curvlinops, in forward passes over the same documents?

    python benchmarks/curvature_peers.py --repeats 5 --documents 256

One process, one thread, CPU seconds, repetitions interleaved, medians. The model is TinyResNet of width 32 on 32 x 32
images. curvlinops knows no BatchNorm, so both sides fit the convolutions and the linear layer alone; one more row is
our fit with BatchNorm. Both use one label sampled from the model for each document. curvlinops gets batches of 32, is
told how many documents and loss terms there are and skips its check for determinism, which saves it passes over the
data; weight and bias of the linear layer are treated jointly, as ours are.

That both fit the same matrix is checked here with the true labels, where nothing is random: the relative difference of
the traces, and of H times the gradient of the mean loss. Written to benchmarks/results.json.
"""

from __future__ import annotations

from functools import partial
from importlib.metadata import version

import numpy as np
import torch
from measuring import arguments, forward_pass, interleaved, keep_costs, trained
from torch import nn

import infuser as inf
from infuser.measure import MeanLoss, gradients
from infuser.params import trainable

TOLERANCE = 1e-3  # of the relative differences, in float32


def without_norms(input_shape, n_outputs):
    """Return TinyResNet with the affine parameters of its BatchNorm layers frozen, which keeps them out of a fit."""
    model = inf.models.tiny_resnet(input_shape, n_outputs)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    return model


def curvlinops_fit(run, data, labels):
    """Return curvlinops' fitted operator, over the parameters that the run trains."""
    from curvlinops import EKFACLinearOperator

    model = run.model()
    inputs, targets = torch.from_numpy(data.inputs / np.float32(255)), torch.from_numpy(np.array(data.targets))
    operator = EKFACLinearOperator(
        model,
        nn.CrossEntropyLoss(),
        [p for p in model.parameters() if p.requires_grad],
        list(zip(inputs.split(32), targets.split(32), strict=True)),
        check_deterministic=False,
        fisher_type=labels,
        num_per_example_loss_terms=1,
        separate_weight_and_bias=False,
        num_data=len(data),
    )
    # Otherwise the first product with a vector would do this.
    operator.compute_kronecker_factors()
    operator.compute_eigenvalue_correction()
    return operator


def differences(run, data):
    """Return the relative differences of the two fits with the true labels: of the trace, and of H v for a gradient v.

    Raises:
        AssertionError: they are not fits of the same matrix.
    """
    ours = inf.fit_ekfac(run, data, labels="empirical", documents=None, positions=None)
    theirs = curvlinops_fit(run, data, "empirical")
    model = run.model()
    vector = gradients(MeanLoss(data), model, trainable(model))[0]
    product = ours.matvec({name: value[0] for name, value in vector.items()})
    expected = theirs @ torch.cat([value[0].flatten() for value in vector.values()])
    flat = torch.cat([value.flatten() for value in product.values()])
    trace = sum(float(block.eigenvalues.sum()) for block in ours.blocks)
    found = {
        "trace": abs(trace / float(theirs.trace) - 1),
        "product": float((flat - expected).norm() / expected.norm()),
    }
    assert max(found.values()) < TOLERANCE, found
    return found


def main() -> None:
    """Measure and write the ratios."""
    args = arguments(__doc__, documents=256).parse_args()
    whole, data = trained(args.documents, epochs=1)
    run = inf.Run.from_weights(without_norms, whole.checkpoints[-1].weights, data)
    found = differences(run, data)
    print(f"relative differences with the true labels: {found}")
    fit = partial(inf.fit_ekfac, run, data, documents=None)
    calls = {
        "forward": forward_pass(run, data),
        "fit, every position": partial(fit, positions=None),
        "fit, 16 positions": fit,
        "fit with BatchNorm, every position": partial(inf.fit_ekfac, whole, data, documents=None, positions=None),
        "curvlinops: fit": partial(curvlinops_fit, run, data, "mc"),
    }
    taken = interleaved(calls, args.repeats)
    keep_costs(
        "curvature_peers",
        args,
        taken,
        "TinyResNet-32",
        layers="convolutions and the linear layer, where BatchNorm is not named: curvlinops does not know it",
        peer=f"curvlinops-for-pytorch {version('curvlinops-for-pytorch')}",
        relative_differences=found,
    )


if __name__ == "__main__":
    main()
