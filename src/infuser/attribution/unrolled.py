"""Unrolled attribution: the exact derivative of f by the weight of a document, through the steps of training.

With theta_{t+1} = theta_t - (eta_t / B) sum_{i in B_t} w_i grad L_i(theta_t), start with lambda_T = grad f(theta_T).
Backwards, df/dw_i gains -(eta_t / B) <lambda_{t+1}, grad L_i(theta_t)> for every i in B_t, and
lambda_t = lambda_{t+1} - eta_t H_{B_t} lambda_{t+1}. Momentum, weight decay, AdamW and BatchNorm in training mode are
part of the state; their terms come from autograd of the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from infuser.attribution.replay import Replay, State, Step, explicit_normalisation
from infuser.checkpoints import Checkpoint, Run
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.measure import query_names
from infuser.types import Array, Batch, Measurement, Params, Scores

_DRIFT = 1e-3  # largest relative distance of a replay's weights from the stored ones


@dataclass(frozen=True)
class Unrolled:
    """score_i = df/dw_i of the model that training from `start` gives, at w = the data's weights.

    The first-order change of f when document i counts twice in that part of training. It is exact for one order of the
    data: averaged over `seeds`, it is the derivative of the mean f over these orders.

    Args:
        start: last_epoch (from the last-but-one checkpoint), half, scratch, or a number of epochs done.
        seeds: of the replays, as in `retrain`: they vary the order, and the initialisation for scratch; the run's own
            by default, whose replay must arrive at the stored weights.

    Source: Ilyas and Engstrom, MAGIC: near-optimal data attribution for deep learning, arXiv 2504.16430.
    """

    start: str | int = "last_epoch"
    seeds: tuple[int, ...] = ()

    def score(self, run: Run, data: Dataset, probes: Measurement) -> Scores:
        """Return df/dw_i for every query and document, shape (Q, N).

        Raises:
            InfuserError: the run did not keep the checkpoint, or the replay does not arrive at the stored weights.
        """
        return self._mean(run, data, probes, {})[0]

    def document_gradient(self, run: Run, data: Dataset, probes: Measurement, ids: Sequence[int] | Array) -> Tensor:
        """Return df/dz of the documents `ids` in the network's units, (Q, k, *shape): the direction that raises f.

        Raises:
            InfuserError: as `score`; or an id is not in the data.
        """
        return self.derivatives(run, data, probes, ids)[1]

    def derivatives(
        self, run: Run, data: Dataset, probes: Measurement, ids: Sequence[int] | Array
    ) -> tuple[Scores, Tensor]:
        """Return `score` and `document_gradient` of one pass through training.

        Raises:
            InfuserError: as `document_gradient`.
        """
        return self._mean(run, data, probes, {int(position): k for k, position in enumerate(data.positions(ids))})

    def _mean(self, run: Run, data: Dataset, probes: Measurement, row: Mapping[int, int]) -> tuple[Scores, Tensor]:
        """Return means over the replays: df/dw of all documents, and df/dz of those at positions that have a row."""
        replays = self._replays(run, data)
        weights: Array = np.zeros(0)
        slopes = torch.zeros(0)
        names: tuple[str, ...] = ()

        def add(step: Step, by_weight: Tensor, by_input: Tensor) -> None:
            nonlocal weights, slopes
            if not weights.size:
                weights = np.zeros((len(by_weight), len(data)))
                slopes = by_input.new_zeros(len(by_input), len(row), *by_input.shape[2:])
            weights[:, step.positions.numpy()] += by_weight.double().cpu().numpy()
            for b, position in enumerate(step.positions.tolist()):
                if position in row:
                    slopes[:, row[position]] += by_input[:, b]

        for replay in replays:
            names = self._walk(run, replay, probes, add, inputs=bool(row))
        unit = getattr(probes, "unit", "its own")
        method = f"unrolled from {self.start}, {len(replays)} orders"
        meaning = f"change of f [{unit}] when the document counts twice"
        return Scores(weights / len(replays), data.ids, method, meaning, names), slopes / len(replays)

    def _replays(self, run: Run, data: Dataset) -> list[Replay]:
        seeds = self.seeds or (run.recipe.seed,)
        return [Replay.of(run, data, run.recipe.with_(seed=seed), begin(run, self.start)) for seed in seeds]

    def _walk(
        self,
        run: Run,
        replay: Replay,
        probes: Measurement,
        visit: Callable[[Step, Tensor, Tensor], None],
        *,
        inputs: bool = False,
    ) -> tuple[str, ...]:
        """Replay forwards, then pass lambda backwards; `visit` gets each step's df/dw (Q, B) and df/dz (Q, B, ...).

        States are kept at every sqrt(T)-th step and recomputed between two of them, so that 2 sqrt(T) are held at most.
        """
        length = max(1, math.isqrt(len(replay.steps)))
        kept, state = [], replay.start
        for i, step in enumerate(replay.steps):
            if i % length == 0:
                kept.append(state)
            state = replay.advance(state, step)
        if replay.recipe == run.recipe and replay.data.content_hash == run.data_hash:
            _require_same(state, run.checkpoints[-1])
        adjoint, names = _last_adjoint(replay, state, probes)
        for segment in reversed(range(len(kept))):
            steps = replay.steps[segment * length : (segment + 1) * length]
            states = [kept.pop()]
            for step in steps[:-1]:
                states.append(replay.advance(states[-1], step))
            for step in reversed(steps):
                adjoint, by_weight, by_input = _pull_back(replay, states.pop(), step, adjoint, inputs)
                visit(step, by_weight, by_input)
        return names


def begin(run: Run, start: str | int) -> Checkpoint | None:
    """Return the checkpoint that a regime starts from; None for the initialisation.

    Raises:
        InfuserError: the regime is unknown, or the run did not keep that checkpoint.
    """
    epochs = run.recipe.epochs
    named = {"last_epoch": epochs - 1, "half": epochs // 2, "scratch": 0}
    epoch = named.get(start, -1) if isinstance(start, str) else start
    if not 0 <= epoch < epochs:
        expected = f"last_epoch, half, scratch or 0 to {epochs - 1} epochs"
        raise InfuserError("unknown start of an unrolled segment", got=start, expected=expected)
    if start == "scratch":
        return None
    if len(run.checkpoints) == 1:
        run.at(max(epoch, 1))  # raises: the one checkpoint of a model trained elsewhere is its end
    return run.at(epoch)


def _last_adjoint(replay: Replay, state: State, probes: Measurement) -> tuple[Params, tuple[str, ...]]:
    """Return (df by every tensor of the last state, with a leading Q; the names of the queries)."""
    leaves = {name: value.detach().requires_grad_() for name, value in state.tensors().items()}
    last = state.with_tensors(leaves)
    model = replay.model
    try:
        model.eval()
        with torch.enable_grad(), explicit_normalisation(model, last.buffers):
            values = probes(model, last.params)
    finally:
        model.train()
    if not values.requires_grad:
        raise InfuserError("the measurement has no gradient by the weights", got=getattr(probes, "name", "f"))
    rows = [
        torch.autograd.grad(value, list(leaves.values()), retain_graph=True, materialize_grads=True) for value in values
    ]
    adjoint = {name: torch.stack([row[i] for row in rows]) for i, name in enumerate(leaves)}
    return adjoint, query_names(probes, len(values))


def _pull_back(
    replay: Replay, state: State, step: Step, adjoint: Params, inputs: bool
) -> tuple[Params, Tensor, Tensor]:
    """Return (the adjoint before the step, df/dw (Q, B) and df/dz (Q, B, ...) through this step)."""
    leaves = {name: value.detach().requires_grad_() for name, value in state.tensors().items()}
    z, batch = replay.inputs(step)
    z = z.requires_grad_() if inputs else z
    weights = batch.weights.to(next(iter(leaves.values())).dtype).requires_grad_()
    weighted: Batch = replace(batch, weights=weights)
    with torch.enable_grad():
        after = replay.step(state.with_tensors(leaves), step, z, weighted, graph=True).tensors()
    out = {name: value for name, value in after.items() if value.requires_grad}
    wanted = [*leaves.values(), weights, *([z] if inputs else [])]
    queries = len(next(iter(adjoint.values())))
    rows = [
        torch.autograd.grad(
            list(out.values()),
            wanted,
            [adjoint[name][q] for name in out],
            retain_graph=q + 1 < queries,
            materialize_grads=True,
        )
        for q in range(queries)
    ]
    before = {name: torch.stack([row[i] for row in rows]) for i, name in enumerate(leaves)}
    by_weight = torch.stack([row[len(leaves)] for row in rows])
    by_input = torch.stack([row[-1] for row in rows]) if inputs else by_weight
    return before, by_weight, by_input


def _require_same(state: State, checkpoint: Checkpoint) -> None:
    differences, sizes = 0.0, 0.0
    floats = {name: value for name, value in state.buffers.items() if value.is_floating_point()}
    for name, value in {**state.params, **floats}.items():
        if name not in checkpoint.weights:
            continue  # a buffer that is not kept
        stored = checkpoint.weights[name].to(value)
        differences += float((value - stored).double().square().sum())
        sizes += float(stored.double().square().sum())
    drift = math.sqrt(differences / max(sizes, 1e-300))
    if not drift <= _DRIFT:
        raise InfuserError(
            "the replay does not arrive at the run's weights",
            got=f"a relative distance of {drift:.2g}",
            expected=f"at most {_DRIFT:g}",
            causes=["the run was trained by another loop or on another machine", "its checkpoints are incomplete"],
            remedy="train the run with infuser.train on this machine",
        )
