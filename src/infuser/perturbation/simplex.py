"""Token edits relaxed to the simplex: projections, and ascent that proposes substitutions.

Discretised as it is, the relaxed optimum lowers f as often as it raises it; hence it only proposes, and greedy edits
score what they accept exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from infuser.data.dataset import IGNORED
from infuser.data.text import PAD
from infuser.errors import InfuserError
from infuser.perturbation.token_effect import TokenEffect
from infuser.types import Array

_DOUBLINGS = 40  # of the scale that sharpens; beyond it a row is tied and takes its first largest value


def project_simplex(x: Tensor) -> Tensor:
    """Return the nearest point of the probability simplex to each row of (..., V), by one batched sort.

    >>> project_simplex(torch.tensor([[0.5, 0.5], [2.0, 0.0]])).tolist()
    [[0.5, 0.5], [1.0, 0.0]]

    Source: Held, Wolfe and Crowder (1974); Duchi et al. (2008), algorithm 1.
    """
    # The threshold is at least max - 1, as the largest entry must not exceed 1: only what lies above needs sorting.
    x = x - x.amax(-1, keepdim=True)  # the projection is the same, and large entries keep their digits
    most = int((x >= -1).sum(-1).max())
    ordered = x.topk(most, dim=-1).values
    excess = ordered.cumsum(-1) - 1
    count = torch.arange(1, most + 1, device=x.device, dtype=x.dtype)
    support = (ordered * count > excess).sum(-1, keepdim=True).clamp(min=1)
    threshold = excess.gather(-1, support - 1) / support
    return (x - threshold).clamp(min=0)


def sharpen(x: Tensor, impurity: float) -> Tensor:
    """Return rows of the simplex (..., V) whose Gini impurity 1 - |x|^2 is at most `impurity`.

    A row above the limit becomes the projection of s x with the smallest s that is enough: scaling up widens the gaps
    between the entries until small ones leave the support, so that the largest entry stays the largest. Rows below the
    limit stay as they are.
    """
    if not 0 <= impurity <= 1:
        raise InfuserError("the impurity is out of range", got=impurity, expected="0 to 1")
    flat = x.reshape(-1, x.shape[-1])
    over = 1 - flat.square().sum(-1) > impurity + 1e-12
    if not over.any():
        return x
    rows = flat[over]
    low, high = torch.ones(len(rows), 1, dtype=x.dtype, device=x.device), torch.full_like(rows[:, :1], 2.0**_DOUBLINGS)
    for _ in range(60):  # halves the interval of log s
        middle = (low * high).sqrt()
        enough = 1 - project_simplex(middle * rows).square().sum(-1, keepdim=True) <= impurity
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    sharp = project_simplex(high * rows)
    tied = 1 - sharp.square().sum(-1) > impurity + 1e-6
    sharp[tied] = F.one_hot(rows[tied].argmax(-1), x.shape[-1]).to(x)
    result = flat.clone()
    result[over] = sharp
    return result.reshape(x.shape)


@final
@dataclass(frozen=True)
class TokenGradient:
    """Ranks by the gradient at the one-hot rows: the label side and the linearised input side together."""

    def table(self, effect: TokenEffect, row: Array, target: Array) -> Array:
        """Return grad_x s[t, w] - grad_x s[t, z_t], (T, V)."""
        x, weight = one_hot(effect, row, target)
        slope = effect.soft(x, weight)[1]
        gains = slope - (slope * x).sum(-1, keepdim=True)
        return _padded(gains, row)

    def __str__(self) -> str:
        return "proposed by the gradient over tokens"


@final
@dataclass(frozen=True)
class RelaxedPGD:
    """Ranks by where projected ascent over simplices moves the mass.

    Each step adds the gradient, scaled so that its steepest row moves by `step`, projects, and lowers the impurity that
    rows may have, from 1 to `impurity` at the end.

    Args:
        steps: of the ascent.
        step: Euclidean length of the largest row's move.
        impurity: Gini impurity allowed at the end; 0 ends at single tokens, 1 never sharpens.
    """

    steps: int = 20
    step: float = 0.3
    impurity: float = 0.2

    def table(self, effect: TokenEffect, row: Array, target: Array) -> Array:
        """Return the mass at the end, (T, V); 0 for the token that is there."""
        x, weight = one_hot(effect, row, target)
        start = x.clone()
        free = torch.ones_like(weight)[..., None]
        free[:, 0] = 0  # the begin mark
        for i in range(self.steps):
            slope = effect.soft(x, weight)[1] * free
            # The part along the simplex alone: what is added to all entries of a row is projected away.
            slope = slope - slope.mean(-1, keepdim=True)
            size = slope.norm(dim=-1).max().clamp(min=torch.finfo(x.dtype).tiny)
            moved = project_simplex(x + self.step / size * slope)
            x = sharpen(moved, 1 - (1 - self.impurity) * (i + 1) / self.steps)
        return _padded(x * (1 - start), row)

    def __str__(self) -> str:
        return f"proposed by relaxed PGD ({self.steps} steps of {self.step:g}, impurity {self.impurity:g})"


def one_hot(effect: TokenEffect, row: Array, target: Array) -> tuple[Tensor, Tensor]:
    """Return (rows (1, T', V), weights (1, T')) of a stored document without its padding."""
    real = int((row != PAD).sum())
    like = next(iter(effect.params.values()))
    x = F.one_hot(torch.tensor(row[None, :real]).long(), effect.vocabulary).to(like)
    return x, torch.tensor(target[None, :real] != IGNORED).to(like)


def _padded(table: Tensor, row: Array) -> Array:
    padded = torch.zeros(len(row), table.shape[-1], dtype=torch.float64)
    padded[: table.shape[1]] = table[0].detach().double().cpu()
    result: Array = padded.numpy()
    return result
