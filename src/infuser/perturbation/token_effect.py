"""The predicted effect of documents of tokens on f, and how it moves with each token."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from infuser import params as algebra
from infuser.attribution.scoring import steady_step
from infuser.checkpoints import Run
from infuser.data.dataset import IGNORED, Dataset
from infuser.data.text import PAD
from infuser.errors import InfuserError
from infuser.params import trainable
from infuser.tasks import CausalLM
from infuser.types import Array, Direction, Edit, Params

_CHUNK = 16  # documents a forward pass; results do not depend on it
_TOLERANCE = 0.05  # the largest relative error of scores that edits are chosen by


@dataclass(frozen=True)
class TokenEffect:
    """s(z) = -(1/N) <v, grad_theta L(z)> of documents z of tokens, by central difference: two forward passes.

    (L(theta + h v) - L(theta - h v)) / 2 h needs no derivative of any kernel. Their mean is L(theta) up to h^2, so that
    the loss comes along for nothing.

    Attributes:
        model: in eval mode; also takes (B, T, V) rows on the simplex where `soft` is used.
        params: theta.
        v: the direction by parameter name, without a query dimension.
        n: N, documents in the training set.
        vocabulary: V.
        step: h |v|, in units of the parameters.
    """

    model: nn.Module
    params: Params
    v: Params
    n: int
    vocabulary: int
    step: float = 0.05

    @classmethod
    def of(cls, direction: Direction, run: Run, data: Dataset) -> TokenEffect:
        """Return the effect along the mean of the direction's queries, the step chosen by a check on the data.

        Raises:
            InfuserError: the data are not tokens, or no step gives scores within 5 %.
        """
        if data.kind != "causal_lm":
            raise InfuserError("token edits need documents of tokens", got=data.kind, expected="causal_lm")
        model = run.model()
        params = trainable(model)
        v = {name: value.detach().to(run.device) for name, value in direction.mean().params.items()}
        step = steady_step(model, params, data, v, _TOLERANCE)
        return cls(model, params, {name: value[0] for name, value in v.items()}, len(data), data.n_outputs, step)

    @cached_property
    def ends(self) -> tuple[Params, Params, float]:
        """Theta + h v, theta - h v and -1 / (2 h N)."""
        size = float(algebra.norm(self.v))
        if size == 0:
            raise InfuserError("the direction is zero: f does not depend on the trained parameters")
        h = self.step / size
        return algebra.add(self.params, self.v, h), algebra.add(self.params, self.v, -h), -1 / (2 * h * self.n)

    def scores(self, rows: Array, targets: Array) -> tuple[Array, Array]:
        """Return (s in units of f, the clean loss in nats) of stored documents (B, T), each of shape (B,) float64."""
        lengths = (rows != PAD).sum(1)
        order = np.argsort(lengths, kind="stable")
        effect, loss = np.empty(len(rows)), np.empty(len(rows))
        for start in range(0, len(order), _CHUNK):
            at = order[start : start + _CHUNK]
            longest = int(lengths[at].max())
            above, below = self._losses(self._tensor(rows[at, :longest]), self._tensor(targets[at, :longest]))
            effect[at] = ((above - below) * self.ends[2]).cpu().numpy()
            loss[at] = ((above + below) / 2).cpu().numpy()
        return effect, loss

    def label_gains(self, row: Array, target: Array) -> Array:
        """Return what s gains on the label side when a token is replaced by w, (T, V): exact but for what follows it.

        A token at t is predicted from the ones before it, so that its own loss becomes -log p(w | before):
        the table holds (1/N) <v, grad log p(w) - grad log p(z_t)>, 0 where the document has no loss.
        """
        real = int((row != PAD).sum())
        tokens = CausalLM().feed(self._tensor(row[None, :real]))
        with torch.no_grad():
            above, below = (functional_call(self.model, p, (tokens,))[0].log_softmax(-1) for p in self.ends[:2])
        slope = (below - above).double().cpu().numpy() * self.ends[2]
        table = np.zeros((len(row), slope.shape[1]))
        at = np.flatnonzero(target[1:real] != IGNORED) + 1
        own = slope[at - 1, row[at]]
        table[at] = slope[at - 1] - own[:, None]
        return table

    def soft(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return (s (B,), grad_x s (B, T, V)) of rows on the simplex; at one-hot rows s is that of the tokens.

        The loss of relaxed rows is -sum_t weight_t <x_t, log p(. | x_<t)>, on both the input and the label side.

        Args:
            x: (B, T, V) rows, each summing to one.
            weight: (B, T) 1 where the token carries a loss, else 0.
        """
        above, below, scale = self.ends
        losses, slopes = [], []
        for params in (above, below):
            leaf = x.detach().requires_grad_()
            with torch.enable_grad():
                loss = relaxed_loss(self.model, params, leaf, weight)
                (slope,) = torch.autograd.grad(loss.sum(), leaf)
            losses.append(loss.detach())
            slopes.append(slope)
        return (losses[0] - losses[1]) * scale, (slopes[0] - slopes[1]) * scale

    def _losses(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        task = CausalLM()
        tokens = task.feed(inputs)
        with torch.no_grad():
            # Summed in double: the difference of two sums of hundreds of nats is what counts.
            ends = [
                task.token_losses(functional_call(self.model, params, (tokens,)), targets).double().sum(1)
                for params in self.ends[:2]
            ]
        return ends[0], ends[1]

    def _tensor(self, array: Array) -> Tensor:
        return torch.tensor(array).to(next(iter(self.params.values())).device)


def substitution_gains(effect: TokenEffect, edit: Edit) -> Array:
    """Return what f would lose if one substitution were taken back and the others kept, (k, T); NaN where none is.

    gain_t = s(z') - s(z' with token t as it was). The gains of a document need not add up to that of its edit, since
    what one substitution does depends on the others.

    Args:
        effect: of the direction that the edit was made for.
        edit: of documents of tokens, (k, T), that keeps their lengths.
    """
    document, place = np.nonzero(edit.before != edit.after)
    rows, targets = edit.after[document], edit.targets_after[document]
    at = np.arange(len(document))
    rows[at, place], targets[at, place] = edit.before[document, place], edit.targets_before[document, place]
    gains = np.full(edit.after.shape, np.nan)
    if len(document):
        whole, _ = effect.scores(edit.after, edit.targets_after)
        gains[document, place] = whole[document] - effect.scores(rows, targets)[0]
    return gains


def relaxed_loss(model: nn.Module, params: Params, x: Tensor, weight: Tensor) -> Tensor:
    """Return -sum_t weight_t <x_t, log p(. | x_<t)> of rows on the simplex (B, T, V), shape (B,) in nats."""
    log_p: Tensor = functional_call(model, params, (x,))[:, :-1].log_softmax(-1)
    return -((x[:, 1:] * log_p).sum(-1) * weight[:, 1:]).sum(1)
