"""Reports of real runs, through the command line, as small as they can be: tested is the page, not the effect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import infuser as inf
import infuser.report as rep
from infuser.cli import app
from infuser.data.text import Characters, text_dataset, texts_of
from infuser.models.gpt import tiny_gpt
from tests.report import material

HOSTILE_CLASS = "<img src=x onerror=window.hit=1>"  # a folder may be called so


def _ran(*words: str) -> None:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output + result.stderr


def _settings(**values: object) -> list[str]:
    return [word for name, value in values.items() for word in ("--set", f"{name.replace('__', '.')}={value}")]


def digits(folder: Path, seed: int = 0) -> Path:
    """Return the folder of `infuser run digits`: 4 probes, 4 edited documents of 200, one seed."""
    tiny = _settings(
        limit=200, model="mlp", model_options="{}", recipe__epochs=2, recipe__seed=seed, probes=4, k=4, steps=3,
        seeds="[1]", controls="[noise, insert_1]", workers=1,
    )  # fmt: skip
    _ran("run", "digits", "--out", folder, *tiny)
    return folder


def caesar(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of `infuser run caesar` with 3 pairs; the model has learned next to nothing."""
    monkeypatch.setattr("infuser.studies.caesar.LEARNED", 0.0)
    tiny = _settings(
        alphabet=10, length=5, n_train=60, n_test=20, width=8, depth=1, recipe__epochs=2, recipe__batch_size=16,
        recipe__lr=0.01, pairs=3, craft=4, held_out=6, k=3, tried=8, rounds=1, fit_documents=30, seeds="[1,2]",
    )  # fmt: skip
    _ran("run", "caesar", "--out", folder, *tiny)
    return folder


def audit(folder: Path) -> Path:
    """Return the folder of `infuser audit` on a folder of digits, one class of which has a hostile name."""
    images, labels = material.digits()
    pictures = folder.parent / "pictures"
    for i in range(240):
        place = pictures / (HOSTILE_CLASS if labels[i] == 3 else f"digit {labels[i]}")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i, 0]).save(place / f"{i}.png")
    tiny = _settings(model="mlp", recipe__epochs=4, recipe__batch_size=16, review=40, effort__fit_documents=100)
    _ran("audit", f"folder:{pictures}", "--out", folder, "--plant", "0.1", *tiny)
    return folder


def text_audit(folder: Path) -> Path:
    """Return a report of an audit of texts, one of which is a script tag, as the library gives it."""
    rng = np.random.default_rng(0)
    words = ("the", "cat", "sat", "dog", "ran", "a", "mat", "far")
    texts = [" ".join(rng.choice(words, 8).tolist()) for _ in range(48)]
    texts[7] = material.HOSTILE
    codec = Characters.of(texts)
    data = text_dataset(texts, codec, 48)
    detector = inf.detection.TrainingLoss(every=1)
    recipe = inf.Recipe(epochs=2, batch_size=8, lr=1e-2, optimizer="adamw", seed=0)
    run = inf.train(_gpt, data, recipe, observers=list(detector.observers(data)))
    suspicion = inf.detect(detector, run, data)
    shown = rep.Documents(data.ids, tuple(texts_of(data.inputs, codec)))
    return rep.report(folder / "report.html", suspicion, shown, title="Audit of a text file").parent


def _gpt(input_shape: tuple[int, ...], n_outputs: int) -> object:
    return tiny_gpt(input_shape, n_outputs, width=8, depth=1, heads=2)
