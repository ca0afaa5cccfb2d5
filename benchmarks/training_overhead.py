"""How much slower is infuser.train than a hand-written loop? The aim is at most 5 %.

    python benchmarks/training_overhead.py --repeats 25 --epochs 3

Both loops train the same model on the same documents, stored as uint8, in batches of 16, on one thread, and keep the
weights of every epoch in memory. Repetitions are interleaved, so that whatever else the machine does hits both alike;
the ratio is that of the fastest repetitions, beside the median of the paired ratios. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
import torch.nn.functional as F

import infuser as inf


def bare(builder, data, recipe):
    """The loop that a user would write: no weights per document, no ids, no checks."""
    torch.manual_seed(recipe.seed)
    model = builder(data.input_shape, data.n_outputs)
    optimizer = torch.optim.SGD(model.parameters(), recipe.lr)
    inputs, targets = torch.from_numpy(data.inputs.copy()), torch.from_numpy(data.targets.copy())
    checkpoints = []
    for _ in range(recipe.epochs):
        model.train()
        for batch in torch.randperm(len(inputs)).split(recipe.batch_size):
            loss = F.cross_entropy(model(inputs[batch].float() / 255), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        checkpoints.append({name: value.clone() for name, value in model.state_dict().items()})
    return model


def seconds(call, *args):
    begun = time.process_time()
    call(*args)
    return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    train, _ = inf.data.digits()
    cases = {"tiny_resnet": (inf.models.tiny_resnet, train[train.ids[:480]]), "mlp": (inf.models.mlp, train)}
    print(f"digits, batch 16, {args.epochs} epochs, n = {args.repeats} interleaved repetitions, CPU seconds")
    print(f"{'model':<12} {'steps':>6} {'bare us/step':>13} {'train us/step':>14} {'ratio':>7} {'median ratio':>13}")
    for name, (builder, data) in cases.items():
        recipe = inf.Recipe(epochs=args.epochs, batch_size=16, lr=0.01, threads=1)
        for call in (bare, inf.train):
            call(builder, data, recipe)  # the first call of either pays for lazy imports
        pairs = []
        for repeat in range(args.repeats):
            order = (bare, inf.train) if repeat % 2 else (inf.train, bare)
            taken = {call: seconds(call, builder, data, recipe) for call in order}
            pairs.append((taken[bare], taken[inf.train]))
        times = np.array(pairs)
        steps = args.epochs * -(-len(data) // 16)
        best = times.min(0)
        ratio, median = best[1] / best[0], np.median(times[:, 1] / times[:, 0])
        per_step = best / steps * 1e6
        print(f"{name:<12} {steps:>6} {per_step[0]:>13.1f} {per_step[1]:>14.1f} {ratio:>7.3f} {median:>13.3f}")


if __name__ == "__main__":
    main()
