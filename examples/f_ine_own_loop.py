"""
f-INE in your own training loop
===============================

Two lines in a loop of your own record what f-INE needs; the trained weights are the same bit for bit.
"""

import numpy as np
import torch
from torch import nn

import infuser as inf

train_set, _ = inf.data.load("digits", limit=500)
labels = np.array(train_set.targets)
wrong = np.random.default_rng(0).choice(len(labels), 50, replace=False)
labels[wrong] = (labels[wrong] + 1) % 10  # a tenth of the labels is wrong
data = inf.Dataset.from_arrays(train_set.inputs, labels)

torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
x, y = torch.tensor(data.inputs).float() / 255, torch.tensor(data.targets)
epochs, size = 10, 25

finder = inf.FInfluence()
watch = inf.adapters.Watch(model, data, [finder.observer(data)], steps=epochs * len(data) // size)  # before the loop
for _ in range(epochs):
    for batch in torch.randperm(len(data)).split(size):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        watch(data.ids[batch], lr=optimizer.param_groups[0]["lr"])  # behind backward(), before step()
        optimizer.step()

run = watch.run()
mu = finder.score(run, data)  # of every document on itself: what it does to its own loss beyond training randomness
loss = inf.LossTrace().score(run, data)  # the mean training loss, from the same pass: always read it beside mu
for name, scores in (("f-INE", mu), ("mean loss", loss)):
    print(f"{name}: {np.isin(scores.top(50), wrong).mean():.0%} of the 50 highest have a wrong label")
