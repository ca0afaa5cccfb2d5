"""
Your own model and training loop
================================

Your own arrays, your own nn.Module and your own training loop: attribute, edit, retrain.
"""

import math

import numpy as np
import torch
from torch import nn

import infuser as inf

rng = np.random.default_rng(0)
labels = rng.integers(0, 3, 300)
images = np.clip(rng.normal(90 + 40 * labels[:, None, None, None], 30, (300, 1, 6, 6)), 0, 255).astype(np.uint8)
data = inf.Dataset.from_arrays(images, labels)


def net(input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """Return a linear classifier."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), n_classes))


def fit(data: inf.Dataset, seed: int, start: object) -> dict[str, torch.Tensor]:
    """Train full-batch from a seeded start: any loop will do that returns a state dict."""
    torch.manual_seed(seed)
    model = net(data.input_shape, data.n_outputs)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x, y = torch.tensor(data.inputs).float() / 255, torch.tensor(data.targets)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.state_dict()


run = inf.Run.from_weights(net, fit(data, 0, None), data)
probe = inf.measure.Margin(data[[0]], [(labels[0] + 1) % 3])
influence = inf.Influence(inf.fit_ekfac(run, data), damping=0.1)
edit = inf.perturb(inf.PGD(inf.Linf(8), steps=5), influence.direction(run, probe), run, data, k=6)
arms = inf.arms(data, {"edit": edit}, probe, controls=("clean", "noise"), seed=0)
trials = inf.retrain(run, arms, probe, seeds=(1, 2, 3), start="scratch", train_fn=fit)
print(inf.compare(trials, arm="edit", control="clean"))
