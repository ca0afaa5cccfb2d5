"""Activations are those that the model computes, and reading them leaves nothing behind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from infuser import detection, models
from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.detection.features import groups_of, penultimate, penultimate_and_outputs
from infuser.errors import InfuserError
from tests.detection.small import observed


def test_features_are_the_inputs_of_the_last_layer() -> None:
    run, data, _ = observed()
    features, outputs = penultimate_and_outputs(run, data)
    model = run.model()
    with torch.no_grad():
        hidden = model[:-1](torch.from_numpy(data.inputs.copy()).float() / 255)
        logits = model[-1](hidden)
    np.testing.assert_allclose(features, hidden.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outputs, logits.numpy(), rtol=1e-5, atol=1e-5)
    # Negative: another layer's activations, or another checkpoint's, are not these.
    with torch.no_grad():
        before_relu = model[:2](torch.from_numpy(data.inputs.copy()).float() / 255).numpy()
    assert not np.allclose(features, before_relu)
    assert not np.allclose(features, penultimate(run, data, 1))


class _Backwards(nn.Module):
    """Defines its head first: the order of definition is not the order of use."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 10)
        self.body = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.flatten(1)))  # type: ignore[no-any-return]


def _backwards(shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    return _Backwards()


def test_the_last_layer_is_the_one_that_runs_last() -> None:
    data = observed()[1]
    run = Run.from_weights(_backwards, _Backwards().state_dict(), data)
    assert penultimate(run, data).shape == (len(data), 3)


def _convolutional(shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, n_outputs, 8), nn.Flatten())


def test_a_model_without_a_linear_layer_has_no_features() -> None:
    data = observed()[1]
    run = Run.from_weights(_convolutional, _convolutional((1, 8, 8), 10).state_dict(), data)
    with pytest.raises(InfuserError, match="no Linear layer"):
        penultimate(run, data)


def _texts() -> tuple[Run, Dataset]:
    ids = np.random.default_rng(0).integers(0, 20, (12, 8))
    ids[:4, 5:] = -1
    targets = np.where(ids < 0, -100, ids)
    data = Dataset(ids, targets, "causal_lm", 20)

    def builder(shape: tuple[int, ...], n_outputs: int) -> nn.Module:
        return models.tiny_gpt(shape, n_outputs, width=8, depth=1, heads=2)

    torch.manual_seed(0)
    return Run.from_weights(builder, builder((8,), 20).state_dict(), data), data


def test_texts_are_averaged_over_their_real_tokens() -> None:
    run, data = _texts()
    features = penultimate(run, data)
    assert features.shape[0] == 12
    # What stands on padding changes nothing: a shorter context with the same real tokens gives the same features.
    short = replace(
        data, inputs=data.inputs[:4, :5], targets=data.targets[:4, :5], ids=data.ids[:4], weights=data.weights[:4]
    )
    np.testing.assert_allclose(features[:4], penultimate(run, short), rtol=1e-4, atol=1e-5)
    changed = replace(short, inputs=(short.inputs + 1) % 20, targets=(short.targets + 1) % 20)
    assert not np.allclose(features[:4], penultimate(run, changed), rtol=1e-2)
    (everything,) = groups_of(data)
    assert everything.tolist() == list(range(12))
    for detector in (detection.SpectralSignatures(), detection.ActivationClustering(), detection.SelfInfluence()):
        assert len(detection.detect(detector, run, data)) == 12


def test_groups_are_the_documents_of_each_label() -> None:
    data = observed()[1]
    labels = sorted(set(data.targets.tolist()))
    expected = [[row for row, label in enumerate(data.targets) if label == c] for c in labels]
    assert [rows.tolist() for rows in groups_of(data)] == expected


class _Folded(nn.Module):
    """A head that is given all positions of all documents at once."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 6), nn.Linear(6, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens.clamp(min=0)).cumsum(1)
        return self.head(x.reshape(-1, 6)).view(*tokens.shape, 20)


class _Whole(_Folded):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens.clamp(min=0)).cumsum(1))


def test_positions_that_a_model_folds_into_the_batch_are_put_back() -> None:
    data = _texts()[1]
    torch.manual_seed(0)
    weights = _Folded().state_dict()
    folded, whole = (Run.from_weights(lambda *_, b=b: b(), weights, data) for b in (_Folded, _Whole))
    assert penultimate(folded, data).shape == (12, 6)
    np.testing.assert_allclose(penultimate(folded, data), penultimate(whole, data), rtol=1e-6)
