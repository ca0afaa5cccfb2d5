"""
Your own module and a folder of images
======================================

A torch module of yours, trained by a loop of yours, on a folder with one subfolder per class: which files matter?
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

import infuser as inf

# Stands for your folder: train/CLASS/*.png and test/CLASS/*.png.
place = tempfile.TemporaryDirectory()
root, raw = Path(place.name), load_digits()
for i, (image, label) in enumerate(zip(raw.images[:600], raw.target[:600], strict=True)):
    file = root / ("train" if i < 500 else "test") / f"digit {label}" / f"{i:04d}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(image * 255 / 16).astype(np.uint8)).save(file)


class Net(nn.Module):
    """Yours: it takes images as floats in [0, 1] and returns one logit per class."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(16 * 4 * 4, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        return self.head(self.features(x))


train_set, test_set = inf.data.load(f"folder:{root}")
torch.manual_seed(0)
model = Net(train_set.n_outputs)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
x, y = torch.tensor(train_set.inputs).float() / 255, torch.tensor(train_set.targets)
for batch in torch.randint(len(x), (150, 32)):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
    optimizer.step()
# From here on infuser: the run is the class, its weights and the data that it was trained on.
run = inf.Run.from_weights(lambda shape, n_classes: Net(n_classes), model.state_dict(), train_set)
unsure = test_set.ids[[int(i) for i in model(torch.tensor(test_set.inputs) / 255).softmax(1).amax(1).argsort()[:2]]]
probe = inf.measure.LogProb(test_set[unsure])  # log p of the true class of the two test images that it is least sure of
scores = inf.attribute(inf.Influence(inf.fit_ekfac(run, train_set), damping=0.1), run, train_set, probe)
files = inf.data.files(f"folder:{root}")  # of document i at i
for q, query in enumerate(unsure):
    print(f"{files[query].relative_to(root)} is helped by")
    print("  " + ", ".join(str(files[i].relative_to(root)) for i in scores.top(4, q)))
place.cleanup()
