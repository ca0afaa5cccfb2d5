"""Detectors of texts: against losses counted one token at a time, and on texts whose words were garbled."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch
from torch.nn import Module

from infuser import Dataset, Recipe, Run, detection, models
from infuser.attribution.loss_trace import LossTrace
from infuser.data.text import PAD, Characters, text_dataset
from infuser.errors import InfuserError
from infuser.testing import check_detector
from infuser.training import train
from tests.detection.small import observed

RNG = np.random.default_rng(0)
WORDS = (("sam", "lily", "tom"), ("cat", "dog", "cow"), ("mat", "bed", "rug", "old chair"))
TEXTS = [f"{a} saw the {b} on the {c}." for a, b, c in zip(*(RNG.choice(w, 100) for w in WORDS), strict=True)]
GARBLED = range(60, 66)


@cache
def garbled() -> tuple[Run, Dataset]:
    """Return (a model of clean texts trained further on texts of which six have two wrong letters, those texts)."""
    codec = Characters.of(TEXTS)
    builder = partial(models.tiny_gpt, width=16, depth=1, heads=2)
    recipe = Recipe(epochs=12, batch_size=8, optimizer="adamw", lr=5e-3, threads=1)
    clean = train(builder, text_dataset(TEXTS[:60], codec, context=40), recipe)
    texts = TEXTS[60:]
    for i in GARBLED:
        letters = list(texts[i - 60])
        letters[5], letters[11] = "gr"
        texts[i - 60] = "".join(letters)
    data = text_dataset(texts, codec, context=40)
    data = Dataset(data.inputs, data.targets, "causal_lm", codec.size, ids=data.ids + 60)

    def warm(shape: tuple[int, ...], n_outputs: int) -> Module:
        model = builder(shape, n_outputs)
        model.load_state_dict(dict(clean.checkpoints[-1].weights))
        return model

    further = recipe.with_(epochs=1)
    return train(warm, data, further, observers=detection.observers_of([detection.TrainingLoss()], data)), data


def by_hand(model: Module, row: np.ndarray) -> list[float]:
    """Return the loss of every token but the first of one stored document, highest first."""
    ids = torch.from_numpy(row[row != PAD].astype(np.int64))
    with torch.no_grad():
        p = model(ids[None])[0].double().softmax(-1)
    return sorted((-math.log(float(p[t, ids[t + 1]])) for t in range(len(ids) - 1)), reverse=True)


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_perplexity_is_the_mean_of_the_highest_losses_before_training(share: float) -> None:
    run, data = garbled()
    method = detection.Perplexity(share)
    found = detection.detect(method, run, data).values
    losses = [by_hand(run.model(0), row) for row in data.inputs]
    wanted = [float(np.mean(row[: math.ceil(share * len(row))])) for row in losses]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    after = [by_hand(run.model(), row) for row in data.inputs]
    assert not np.allclose(found, [np.mean(row[: math.ceil(share * len(row))]) for row in after], rtol=1e-2)


def test_a_reference_is_read_at_its_end() -> None:
    run, data = garbled()
    given = detection.detect(detection.Perplexity(reference=run), run, data).values
    wanted = [np.mean(by_hand(run.model(), row)) for row in data.inputs]
    np.testing.assert_allclose(given, wanted, rtol=1e-5)


def test_garbled_words_stand_out_and_most_in_the_worst_places() -> None:
    run, data = garbled()
    worst = detection.detect(detection.Perplexity(0.1), run, data)
    assert set(worst.top(6).tolist()) == set(GARBLED)
    whole = detection.detect(detection.Perplexity(), run, data)
    gaps = [np.sort(s.values)[-6] / np.sort(s.values)[-7] for s in (worst, whole)]
    assert gaps[0] > gaps[1]  # the least of them stands further off the next text
    assert set(detection.detect(detection.RandomOrder(0), run, data).top(6).tolist()) != set(GARBLED)


def test_the_loss_of_a_text_is_that_of_a_token() -> None:
    run, data = garbled()
    tokens = (data.inputs != PAD).sum(1) - 1
    assert len(set(tokens.tolist())) > 2
    sums = LossTrace().score(run, data).values[0]
    found = detection.detect(detection.TrainingLoss(), run, data).values
    np.testing.assert_allclose(found * tokens, sums)
    assert not np.allclose(found, sums)


def test_the_contract_and_what_it_needs() -> None:
    run, data = garbled()
    check_detector(detection.Perplexity(0.2), run, data)
    with pytest.raises(InfuserError, match="share is out of range"):
        detection.Perplexity(0)
    images, few, _ = observed()
    with pytest.raises(InfuserError, match=r"perplexity is of texts.*classification"):
        detection.detect(detection.Perplexity(), images, few)
    bare = Run.from_weights(run.builder, dict(run.checkpoints[-1].weights), data)
    with pytest.raises(InfuserError, match="no model from before"):
        detection.detect(detection.Perplexity(), bare, data)
    assert len(detection.detect(detection.Perplexity(reference=run), bare, data)) == len(data)
    late = replace(run, checkpoints=(*run.checkpoints[1:], *run.checkpoints[1:]))
    with pytest.raises(InfuserError, match="no model from before"):
        detection.detect(detection.Perplexity(), late, data)
