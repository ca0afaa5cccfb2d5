"""Inner products of per-document gradients without the gradients.

<G_1, G_2> = sum_ts <left_1t, left_2s> <right_1t, right_2s> for G = sum_t left_t right_t^T.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from infuser.curvature.forms import OneHot, Side

_GRAM = 2**24  # numbers of a Gram matrix held at a time

Pair = tuple[Side, Tensor]


def self_products(pairs: Sequence[Pair]) -> Tensor:
    """Return |G_b|^2, shape (B,); gradients sum over `pairs` of left (B, K, T, O) and right (B, K, T, I)."""
    total = torch.zeros((), device=pairs[0][1].device)
    for i, (left, right) in enumerate(pairs):
        for j in range(i, len(pairs)):
            other_left, other_right = pairs[j]
            product = _aligned(left, other_left) * (right @ other_right.mT)
            total = total + (1 if i == j else 2) * product.flatten(1).sum(1)
    return total


def cross_products(pairs1: Sequence[Pair], pairs2: Sequence[Pair]) -> Tensor:
    """Return <G_b1, G_b2>, shape (B1, B2)."""
    b1, b2 = len(pairs1[0][1]), len(pairs2[0][1])
    total = pairs1[0][1].new_zeros(b1, b2)
    for left1, right1 in pairs1:
        for left2, right2 in pairs2:
            _, groups, t1, _ = right1.shape
            t2 = right2.shape[2]
            step = max(1, _GRAM // max(1, groups * t1 * t2 * b2))
            for start in range(0, b1, step):
                rows = slice(start, start + step)
                product = _flat_gram(_rows(left1, rows), left2) * _flat_gram(right1[rows], right2)
                n = product.shape[1] // t1
                total[rows] += product.view(groups, n, t1, b2, t2).sum((0, 2, 4))
    return total


def _rows(side: Side, rows: slice) -> Side:
    return OneHot(side.ids[rows], side.width) if isinstance(side, OneHot) else side[rows]


def _aligned(one: Side, two: Side) -> Tensor:
    """Return (B, K, T1, T2): products of the rows of the same document."""
    if isinstance(one, OneHot):
        if isinstance(two, OneHot):
            return (one.ids[:, :, None] == two.ids[:, None, :]).float().unsqueeze(1)
        return _aligned(two, one).mT
    if isinstance(two, OneHot):
        return one.gather(3, two.ids[:, None, None, :].expand(-1, 1, one.shape[2], -1))
    return one @ two.mT


def _flat_gram(one: Side, two: Side) -> Tensor:
    """Return (K, B1 T1, B2 T2): products of the rows of all pairs of documents."""
    if isinstance(one, OneHot):
        if isinstance(two, OneHot):
            return (one.ids.flatten()[:, None] == two.ids.flatten()).float().unsqueeze(0)
        return _flat_gram(two, one).mT
    flat = one.movedim(1, 0).flatten(1, 2)
    if isinstance(two, OneHot):
        return flat[:, :, two.ids.flatten()]
    return flat @ two.movedim(1, 0).flatten(1, 2).mT
