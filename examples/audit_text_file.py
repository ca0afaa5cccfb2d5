"""
Audit a text file
=================

Which lines of a text do not belong? A small language model is trained on it under observation; each line is ranked.
"""

import re
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from sklearn.datasets import load_diabetes, load_digits, load_iris, load_wine

import infuser as inf
from infuser.data.text import Characters, read_separated, text_dataset
from infuser.detection import FIne, TrainingLoss, observers_of

# Stands for your file: four descriptions, cut into lines, 6 of which somebody has scrambled.
rng = np.random.default_rng(0)
prose = " ".join(load().DESCR.lower() for load in (load_iris, load_wine, load_diabetes, load_digits))
prose = " ".join(re.findall("[a-z]+", prose))
# A document's loss is the sum over its tokens: cut to one length, else long documents look suspicious.
lines = [prose[i : i + 48].strip() for i in range(0, len(prose) - 48, 48)]
planted = rng.choice(len(lines), 6, replace=False)
for i in planted:
    lines[i] = "".join(rng.permutation(list(lines[i]))).strip()
place = tempfile.TemporaryDirectory()
path = Path(place.name) / "text.txt"
path.write_text("\n".join(lines))

texts = read_separated(path, separator="\n")
codec = Characters.of(texts)  # or HuggingFace(name).codec() for a tokenizer
data = text_dataset(texts, codec, context=64)  # document i is line i

# As close to your own training as you can: an audit says what this model found hard in these data.
recipe = inf.Recipe(epochs=20, batch_size=16, lr=3e-3, optimizer="adamw", seed=0)
detectors = [TrainingLoss(every=5), FIne(inf.FInfluence(every=5))]
model = partial(inf.models.tiny_gpt, width=32, depth=1)
run = inf.train(model, data, recipe, observers=observers_of(detectors, data))
found = [inf.detect(detector, run, data) for detector in detectors]
for suspicion in found:
    top = suspicion.top(12)
    print(f"{suspicion.detector}: {np.isin(planted, top).sum()} of {len(planted)} scrambled lines among the first 12")
    print("  " + repr(texts[top[0]]))

# All lines with their ranks, sortable and filterable, in one file.
documents = inf.report.Documents(data.ids, tuple(texts))
page = inf.report(Path(place.name) / "audit.html", *found, documents, title="Audit of a text file")
print(f"{page.name}: {page.stat().st_size:,} bytes")
place.cleanup()
