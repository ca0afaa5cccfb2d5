"""Edits of what a model reads rather than of the text: every token's embedding moved a little.

No text embeds to such a document, so that it cannot be written, and nobody could publish it as training data. It is
there to compare with published work that edits in this space, and says so of itself: `storable` is False.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from infuser.checkpoints import Run
from infuser.data.dataset import Dataset
from infuser.data.text import PAD
from infuser.errors import InfuserError
from infuser.perturbation.token_effect import TokenEffect
from infuser.tasks import CausalLM
from infuser.types import Array, Builder, Direction, Edit

_CHUNK = 16  # documents moved together; results do not depend on it


class OffsetEmbedding(nn.Module):
    """An embedding that also knows ids from V on: id V + j is token origin[j], moved by offsets[j].

    Args:
        weight: (V, W), trained as before, under the same name.
        origin: (M,) token ids.
        offsets: (M, W), not trained and not part of the state.
    """

    def __init__(self, weight: nn.Parameter, origin: Tensor, offsets: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.register_buffer("origin", origin, persistent=False)
        self.register_buffer("offsets", offsets, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (..., W) embeddings."""
        origin, offsets = cast(Tensor, self.origin), cast(Tensor, self.offsets)
        moved = tokens >= len(self.weight)
        at = (tokens - len(self.weight)).clamp(min=0)
        plain = F.embedding(torch.where(moved, origin[at], tokens), self.weight)
        return plain + moved[..., None].to(plain) * offsets[at]


@final
@dataclass(frozen=True)
class WithOffsets:
    """A builder of the same model, its token embedding replaced by an OffsetEmbedding; the state's names stay.

    Attributes:
        builder: of the model.
        origin: (M,) token ids.
        offsets: (M, W).
    """

    builder: Builder
    origin: Tensor
    offsets: Tensor

    def __call__(self, input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
        """Return the module."""
        model = self.builder(input_shape, n_outputs)
        name = embedding_name(model, n_outputs)
        weight = cast(nn.Parameter, model.get_submodule(name).weight)
        model.set_submodule(name, OffsetEmbedding(weight, self.origin, self.offsets.to(weight.dtype)))
        return model


@final
@dataclass(frozen=True)
class EmbeddingEdit:
    """Documents whose embeddings are moved; for training only.

    Attributes:
        edit: the documents in ids of their own, V + j for the j-th moved token; it needs the model of `install`.
        origin: (M,) the tokens that were moved.
        offsets: (M, W) by how much.
        radius: of each move, in mean lengths of an embedding.
        gains: (k,) exact predicted changes of f.
        storable: no text is this.
    """

    edit: Edit
    origin: Tensor
    offsets: Tensor
    radius: float
    gains: Array
    storable: ClassVar[bool] = False

    def install(self, run: Run) -> Run:
        """Return the run with a model that can read the moved documents beside all others."""
        return replace(run, builder=WithOffsets(run.builder, self.origin, self.offsets))


@final
@dataclass(frozen=True)
class EmbeddingPGD:
    """Projected ascent on the embeddings of all tokens of a document.

    Each step moves every token by `step` along its own normalised gradient and projects it to the L2 ball.

    Args:
        radius: of every token's move, in mean lengths of a token embedding.
        steps: of the ascent.
        step: length of a move in the same unit; 2.5 radius / steps by default.
    """

    radius: float = 0.5
    steps: int = 20
    step: float | None = None

    def __post_init__(self) -> None:
        if not self.radius > 0 or self.steps < 1:
            got = f"radius {self.radius}, {self.steps} steps"
            raise InfuserError("the ascent on embeddings is out of range", got=got, expected="both above 0")

    def edit(self, direction: Direction, run: Run, data: Dataset, ids: Sequence[int] | Array) -> EmbeddingEdit:
        """Return the edit of these documents."""
        effect, chosen = TokenEffect.of(direction, run, data), data[ids]
        moved = [
            self._moved(effect, run, chosen.inputs[at : at + _CHUNK], chosen.targets[at : at + _CHUNK])
            for at in range(0, len(chosen), _CHUNK)
        ]
        origin, offsets = (torch.cat(parts) for parts in zip(*moved, strict=True))
        after = numbered(chosen.inputs, data.n_outputs)
        made_by = f"{self}: embeddings, which no text has"
        edit = Edit(chosen.ids, chosen.inputs, after, chosen.targets, chosen.targets, None, made_by)
        there = replace(effect, model=_with_offsets(effect, run, origin, offsets))
        gains = there.scores(after, chosen.targets)[0] - effect.scores(chosen.inputs, chosen.targets)[0]
        return EmbeddingEdit(edit, origin, offsets, self.radius, gains)

    def _moved(self, effect: TokenEffect, run: Run, rows: Array, targets: Array) -> tuple[Tensor, Tensor]:
        origin = torch.tensor(rows[rows != PAD].astype(np.int64)).to(run.device)
        weight = effect.params[f"{embedding_name(effect.model, effect.vocabulary)}.weight"]
        unit = float(weight.norm(dim=1).mean())
        radius = self.radius * unit
        step = unit * self.step if self.step is not None else 2.5 * radius / self.steps
        offsets = weight.new_zeros(len(origin), weight.shape[1])
        there = replace(effect, model=_with_offsets(effect, run, origin, offsets))
        for _ in range(self.steps):
            slope = offset_gradient(there, rows, targets, offsets)
            size = slope.norm(dim=1, keepdim=True)
            offsets = offsets + step * slope / torch.where(size > 0, size, 1)
            offsets = offsets * (radius / offsets.norm(dim=1, keepdim=True).clamp(min=radius))
        return origin, offsets.detach()

    def __str__(self) -> str:
        return f"embedding PGD, L2 {self.radius:g} mean lengths, {self.steps} steps"


def offset_gradient(effect: TokenEffect, rows: Array, targets: Array, offsets: Tensor) -> Tensor:
    """Return d/d offsets (M, W) of the summed scores s of documents (B, T), their j-th real token moved by offsets[j].

    Args:
        effect: its model has an OffsetEmbedding for these M tokens.
        rows: the documents' tokens as stored.
        targets: (B, T).
        offsets: where the derivative is taken.
    """
    name = f"{embedding_name(effect.model, effect.vocabulary)}.offsets"
    tokens = CausalLM().feed(torch.tensor(numbered(rows, effect.vocabulary))).to(offsets.device)
    labels = torch.tensor(targets).to(offsets.device)
    above, below, scale = effect.ends
    slopes = []
    for params in (above, below):
        leaf = offsets.detach().requires_grad_()
        with torch.enable_grad():
            outputs = functional_call(effect.model, {**params, name: leaf}, (tokens,))
            slopes.append(torch.autograd.grad(CausalLM().loss(outputs, labels).sum(), leaf)[0])
    return (slopes[0] - slopes[1]) * scale


def _with_offsets(effect: TokenEffect, run: Run, origin: Tensor, offsets: Tensor) -> nn.Module:
    model = WithOffsets(run.builder, origin, offsets)(run.input_shape, run.n_outputs)
    model.load_state_dict(effect.model.state_dict())
    return model.to(run.device).eval()


def numbered(rows: Array, vocabulary: int) -> Array:
    """Return rows (B, T) with their real tokens numbered from V on, in reading order; padding stays.

    >>> numbered(np.array([[5, 6, -1], [7, -1, -1]]), 10).tolist()
    [[10, 11, -1], [12, -1, -1]]
    """
    made = rows.copy()
    real = rows != PAD
    made[real] = vocabulary + np.arange(int(real.sum()))
    return made


def embedding_name(model: nn.Module, vocabulary: int) -> str:
    """Return the path of the one token embedding.

    Raises:
        InfuserError: there is none of this vocabulary, or more than one.
    """
    named: list[str] = [
        name
        for name, m in model.named_modules()
        if isinstance(m, (nn.Embedding, OffsetEmbedding)) and len(m.weight) == vocabulary
    ]
    if len(named) != 1:
        expected = f"one of {vocabulary} rows"
        raise InfuserError("the model has not one token embedding", got=named or "none", expected=expected)
    return named[0]
