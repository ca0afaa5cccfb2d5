"""TinyGPT: a decoder-only transformer with learned positions."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infuser.errors import InfuserError


class _Attention(nn.Module):
    """Causal self-attention; q, k and v are one Linear, so that they share one input factor."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        # Written out rather than fused: every kernel in it has forward-mode and second derivatives, and at the few
        # dozen tokens this model is for it is as fast.
        future = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(c // self.heads)).masked_fill(future, float("-inf")).softmax(-1)
        return cast(Tensor, self.out((weights @ v).transpose(1, 2).reshape(b, t, c)))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + cast(Tensor, self.down(F.gelu(self.up(self.norm2(x)))))


class TinyGPT(nn.Module):
    """Pre-norm decoder: (B, T) token ids, or (B, T, V) rows on the simplex, to logits (B, T, V).

    Args:
        context: the most tokens that it reads, T.
        vocabulary: V.
        width: of the residual stream.
        depth: blocks.
        heads: of attention; divides `width`.
        tied: the head is the token embedding.
    """

    def __init__(self, context: int, vocabulary: int, width: int, depth: int, heads: int, tied: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                # GPT-2's start: the branches that add to the residual stream are scaled down by their number.
                shrink = math.sqrt(2 * depth) if name.endswith(("out.weight", "down.weight")) else 1.0
                nn.init.normal_(p, std=(1.0 if name == "head.weight" else 0.8) / math.sqrt(width) / shrink)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Return next-token logits (B, T, V)."""
        embedded = tokens @ self.tokens.weight if tokens.is_floating_point() else self.tokens(tokens)
        x = embedded + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.head(self.norm(x)))


def tiny_gpt(
    input_shape: tuple[int, ...], n_outputs: int, width: int = 64, depth: int = 2, heads: int = 4, tied: bool = False
) -> TinyGPT:
    """Return a TinyGPT for documents of input_shape[0] tokens and a vocabulary of `n_outputs`.

    Raises:
        InfuserError: the input is not one row of token ids, or heads do not divide the width.
    """
    if len(input_shape) != 1:
        raise InfuserError("TinyGPT needs documents of token ids", got=input_shape, expected="(T,)")
    if width % heads:
        raise InfuserError("heads must divide the width", got=f"{heads} heads at width {width}")
    return TinyGPT(input_shape[0], n_outputs, width, depth, heads, tied)
