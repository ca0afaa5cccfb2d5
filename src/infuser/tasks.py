"""What a training example asks of a model: how it is fed, its loss, and the labels that build the Fisher matrix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from infuser.data.dataset import IGNORED, Dataset
from infuser.errors import InfuserError
from infuser.types import Batch, Params

Labels = Literal["sampled", "exact", "empirical"]


class Task(Protocol):
    """Losses are per document and un-reduced."""

    def feed(self, inputs: Tensor) -> Tensor:
        """Return stored inputs in the network's units, floats for pixels (so that they carry a gradient)."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each document, shape (B,), in nats (half squared units for regression)."""
        ...

    def objective(self, losses: Tensor, batch: Batch) -> Tensor:
        """Return the scalar that a training step descends."""
        ...

    def mask(self, batch: Batch) -> Tensor | None:
        """Return (B, T) True at real positions, or None where every position is real."""
        ...

    def cotangents(
        self, outputs: Tensor, targets: Tensor, labels: Labels, generator: torch.Generator | None
    ) -> Iterator[Tensor]:
        """Yield output gradients c, shaped as `outputs`, such that the sum of J^T c c^T J over them is the Fisher.

        `sampled`: one c, the gradient of the summed loss at labels drawn from the model; `exact`: the expectation over
        labels as one c per class (or output); `empirical`: one c, at the true labels.
        """
        ...


@dataclass(frozen=True)
class Classification:
    """One label a document, cross-entropy. Outputs are logits (B, C)."""

    def feed(self, inputs: Tensor) -> Tensor:
        """Return uint8 pixels divided by 255; floats as they are."""
        return inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return -log p(target), shape (B,), in nats."""
        return F.cross_entropy(outputs, targets, reduction="none")

    def objective(self, losses: Tensor, batch: Batch) -> Tensor:
        """Return sum_i w_i L_i / B: the mean over documents in the batch, those of weight 0 counted."""
        # As one operation, since this stands in the training loop.
        return losses.dot(batch.weights.to(losses) / len(batch))

    def mask(self, batch: Batch) -> None:
        """Return None: there is no padding."""
        return None

    def cotangents(
        self, outputs: Tensor, targets: Tensor, labels: Labels, generator: torch.Generator | None
    ) -> Iterator[Tensor]:
        """Yield p - e_y for one sampled or true y, or sqrt(p_c) (p - e_c) for every class c."""
        p = outputs.detach().softmax(-1)
        if labels == "exact":
            for c in range(p.shape[-1]):
                yield p[:, c : c + 1].sqrt() * (p - F.one_hot(torch.tensor(c, device=p.device), p.shape[-1]).to(p))
            return
        y = draw(p, generator) if labels == "sampled" else targets
        yield p - F.one_hot(y, p.shape[-1]).to(p)


@dataclass(frozen=True)
class Regression:
    """Half the squared error, that is the negative log-likelihood of labels ~ N(f, 1) up to a constant.

    Outputs and targets are (B, D).
    """

    def feed(self, inputs: Tensor) -> Tensor:
        """Return uint8 pixels divided by 255; floats as they are."""
        return inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return |f - y|^2 / 2, shape (B,)."""
        if outputs.shape != targets.shape:  # (B,) against (B, 1) would broadcast to (B, B)
            got, expected = tuple(outputs.shape), tuple(targets.shape)
            raise InfuserError("the model's outputs and the targets differ in shape", got=got, expected=expected)
        return (outputs - targets).square().flatten(1).sum(1) / 2

    def objective(self, losses: Tensor, batch: Batch) -> Tensor:
        """Return sum_i w_i L_i / B."""
        # As one operation, since this stands in the training loop.
        return losses.dot(batch.weights.to(losses) / len(batch))

    def mask(self, batch: Batch) -> None:
        """Return None: there is no padding."""
        return None

    def cotangents(
        self, outputs: Tensor, targets: Tensor, labels: Labels, generator: torch.Generator | None
    ) -> Iterator[Tensor]:
        """Yield f - y with y ~ N(f, 1) (sampled) or the true y, or one unit vector per output (exact)."""
        f = outputs.detach()
        if labels == "exact":
            for d in range(f.shape[-1]):
                unit = torch.zeros_like(f)
                unit[..., d] = 1
                yield unit
        elif labels == "sampled":
            noise = torch.randn(f.shape, generator=generator, dtype=f.dtype)
            yield noise.to(f.device)
        else:
            yield f - targets


@dataclass(frozen=True)
class CausalLM:
    """Next-token cross-entropy, summed over a document's real tokens. Outputs are logits (B, T, V).

    Stored inputs are token ids (B, T), padded on the right with -1; targets are the same ids, -100 where a token
    carries no loss (padding, prompts). Position t predicts target t + 1, so the shift is done here and nowhere else.
    """

    def feed(self, inputs: Tensor) -> Tensor:
        """Return token ids with padding replaced by id 0: a causal model cannot see it from real positions."""
        return inputs.long().clamp(min=0)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of token losses of each document, shape (B,), in nats."""
        return self.token_losses(outputs, targets).sum(1)

    def token_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return -log p(token t + 1 | tokens up to t), shape (B, T - 1), 0 where there is no loss."""
        shifted = targets[:, 1:].long()
        flat = F.cross_entropy(outputs[:, :-1].flatten(0, 1), shifted.flatten(), ignore_index=IGNORED, reduction="none")
        return flat.view(shifted.shape)

    def objective(self, losses: Tensor, batch: Batch) -> Tensor:
        """Return sum_i w_i L_i over the number of tokens with a loss in the batch: the token mean."""
        tokens = (batch.targets[:, 1:] != IGNORED).sum().clamp(min=1)
        return (losses * batch.weights).sum() / tokens

    def mask(self, batch: Batch) -> Tensor:
        """Return where the tokens are real, (B, T)."""
        return batch.inputs >= 0

    def cotangents(
        self, outputs: Tensor, targets: Tensor, labels: Labels, generator: torch.Generator | None
    ) -> Iterator[Tensor]:
        """Yield p - e_y at every position with a loss, y drawn per token or true; `exact` would need T x V of them."""
        if labels == "exact":
            raise InfuserError("exact labels are not available for language models", remedy="use labels='sampled'")
        p = outputs.detach().softmax(-1)
        shifted = torch.full_like(targets, IGNORED)
        shifted[:, :-1] = targets[:, 1:]
        shifted = shifted.long()
        y = draw(p, generator) if labels == "sampled" else shifted.clamp(min=0)
        c = p - F.one_hot(y, p.shape[-1]).to(p)
        yield c * (shifted != IGNORED).unsqueeze(-1)


def draw(p: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return one label per row of the probabilities (..., C), drawn on the CPU so that every device draws the same."""
    flat = p.detach().flatten(0, -2).double().cpu()
    u = torch.rand(len(flat), 1, generator=generator, dtype=torch.float64)
    labels = (flat.cumsum(-1) < u).sum(-1).clamp(max=flat.shape[-1] - 1)
    return labels.view(p.shape[:-1]).to(p.device)


def task_of(data: Dataset) -> Task:
    """Return the task that a data set's kind names."""
    tasks: dict[str, Task] = {"classification": Classification(), "regression": Regression(), "causal_lm": CausalLM()}
    return tasks[data.kind]


@contextmanager
def plain_attention(wanted: bool = True) -> Iterator[None]:
    """Run attention in its plain kernel within the block.

    The fused kernels, and the fast path of torch's own attention layers, have no forward mode and no second derivative.

    Args:
        wanted: False leaves everything as it is.
    """
    if not wanted:
        yield
        return
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def losses(task: Task, model: nn.Module, params: Params, batch: Batch) -> Tensor:
    """Return the loss of each document at `params` of `model`, shape (B,)."""
    outputs = functional_call(model, params, (task.feed(batch.inputs),))
    return task.loss(outputs, batch.targets)
