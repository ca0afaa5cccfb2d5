from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.func import functional_call

from infuser.data.text import PAD
from infuser.errors import InfuserError
from infuser.params import trainable
from infuser.perturbation.embedding_edits import (
    EmbeddingPGD,
    OffsetEmbedding,
    WithOffsets,
    embedding_name,
    numbered,
    offset_gradient,
)
from infuser.perturbation.text_manifest import save_text_edit
from infuser.perturbation.token_effect import TokenEffect
from infuser.tasks import CausalLM
from tests.perturbation import small_text as small

IDS = [0, 3, 5]


def moved(ids: list[int], scale: float):
    """(effect with a model of random offsets, documents, the offsets)."""
    run, chosen = small.run(), small.data()[ids]
    origin = torch.tensor(chosen.inputs[chosen.inputs != PAD].astype(np.int64))
    generator = torch.Generator().manual_seed(1)
    offsets = scale * torch.randn(len(origin), 8, generator=generator, dtype=torch.float64)
    model = WithOffsets(run.builder, origin, offsets)(run.input_shape, run.n_outputs)
    model.load_state_dict(run.model().state_dict())
    effect = TokenEffect.of(small.direction(), run, small.data())
    return replace(effect, model=model.eval()), chosen, offsets


def test_without_offsets_the_model_and_its_state_are_the_same() -> None:
    effect, chosen, _ = moved(IDS, 0.0)
    plain = small.run().model()
    assert effect.model.state_dict().keys() == plain.state_dict().keys()
    tokens = CausalLM().feed(torch.tensor(chosen.inputs))
    there = CausalLM().feed(torch.tensor(numbered(chosen.inputs, small.CODEC.size)))
    with torch.no_grad():
        real = torch.tensor(chosen.inputs != PAD)
        assert torch.equal(effect.model(tokens), plain(tokens))
        assert torch.equal(effect.model(there)[real], plain(tokens)[real])
        changed, *_ = moved(IDS, 0.3)
        assert not torch.allclose(changed.model(there)[real], plain(tokens)[real])


def test_the_offsets_move_what_is_looked_up_and_nothing_else() -> None:
    weight = torch.nn.Parameter(torch.arange(6.0).view(3, 2))
    table = OffsetEmbedding(weight, torch.tensor([2, 0]), torch.tensor([[1.0, 0.0], [0.0, 10.0]]))
    assert table(torch.tensor([0, 3, 4, 2])).tolist() == [[0, 1], [5, 5], [0, 11], [4, 5]]
    assert [name for name, _ in table.named_parameters()] == ["weight"]
    assert list(table.state_dict()) == ["weight"]


def test_the_gradient_equals_finite_differences_and_autograd() -> None:
    effect, chosen, offsets = moved(IDS, 0.2)
    slope = offset_gradient(effect, chosen.inputs, chosen.targets, offsets)
    # Exact: -(1/N) d/d offsets <v, grad L>, by differentiating twice.
    params, name = trainable(effect.model), "tokens.offsets"
    tokens = CausalLM().feed(torch.tensor(numbered(chosen.inputs, effect.vocabulary)))
    leaf = offsets.clone().requires_grad_()
    leaves = {key: value.requires_grad_() for key, value in params.items()}
    loss = CausalLM().loss(
        functional_call(effect.model, {**leaves, name: leaf}, (tokens,)), torch.tensor(chosen.targets)
    )
    grads = torch.autograd.grad(loss.sum(), list(leaves.values()), create_graph=True)
    along = sum((g * effect.v[key]).sum() for g, key in zip(grads, leaves, strict=True))
    (exact,) = torch.autograd.grad(-along / effect.n, leaf)
    torch.testing.assert_close(slope, exact, rtol=2e-3, atol=1e-6 + 2e-3 * float(exact.abs().max()))
    assert (slope - exact.flip(0)).abs().max() > 0.1 * exact.abs().max()  # another order of tokens is another gradient


def test_an_edit_gains_what_it_says_within_its_ball_and_more_than_random_moves() -> None:
    run, data = small.run(), small.data()
    made = EmbeddingPGD(radius=0.2, steps=6).edit(small.direction(), run, data, IDS)
    assert not made.storable
    weight = run.model().tokens.weight
    lengths = made.offsets.norm(dim=1) / weight.norm(dim=1).mean()
    assert lengths.max() <= 0.2 + 1e-6
    assert (made.gains > 0).all()
    # The installed run reads the moved documents: its scores are the gains, and its other documents are untouched.
    there = TokenEffect.of(small.direction(), made.install(run), data)
    edited = data.apply(made.edit)
    gained = there.scores(edited.inputs, edited.targets)[0] - there.scores(data.inputs, data.targets)[0]
    np.testing.assert_allclose(gained[data.positions(IDS)], made.gains, rtol=1e-6)
    assert np.abs(np.delete(gained, data.positions(IDS))).max() == 0
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(made.offsets.shape, generator=generator, dtype=torch.float64)
    noise *= made.offsets.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
    random = replace(made, offsets=noise).install(run)
    by_chance = TokenEffect.of(small.direction(), random, data).scores(edited.inputs, edited.targets)[0]
    assert made.gains.sum() > 3 * abs((by_chance - there.scores(data.inputs, data.targets)[0]).sum())


def test_it_cannot_be_stored_and_bad_settings_are_named(tmp_path) -> None:
    made = EmbeddingPGD(steps=1).edit(small.direction(), small.run(), small.data(), IDS)
    with pytest.raises(InfuserError, match=r"an edit of embeddings cannot be stored.*documents 0, 3, 5"):
        save_text_edit(made.edit, tmp_path, small.CODEC)
    with pytest.raises(InfuserError, match="out of range"):
        EmbeddingPGD(radius=0)
    with pytest.raises(InfuserError, match="has not one token embedding"):
        embedding_name(torch.nn.Linear(2, 2), 7)
