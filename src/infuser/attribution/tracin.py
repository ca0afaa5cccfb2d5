"""TracIn: what the steps on a document did to f, summed over checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infuser.attribution.influence import probe_gradients
from infuser.attribution.similarity import alignments
from infuser.checkpoints import Checkpoint, Run
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.params import trainable
from infuser.training import scheduled
from infuser.types import Array, Measurement, Scores


@dataclass(frozen=True)
class TracIn:
    """score_i = -sum_c lr_c <grad f(theta_c), grad L_i(theta_c)> over checkpoints c.

    A gradient step of size lr on document i alone changes f by -lr <grad f, grad L_i>: positive = the steps on the
    document raised f. The learning rate of a checkpoint is that of the step which led to it, from the recipe.

    Args:
        checkpoints: indices into run.checkpoints; all but the initialisation by default.
        cosine: use cosines instead of inner products, still weighted by lr.

    Source: Pruthi et al., arXiv 2002.08484, equation 1 (TracInCP).
    """

    checkpoints: tuple[int, ...] | None = None
    cosine: bool = False

    def score(self, run: Run, data: Dataset, probes: Measurement) -> Scores:
        """Return the scores of every query and document, shape (Q, N).

        Raises:
            InfuserError: a checkpoint is not in the run.
        """
        chosen = select(run, self.checkpoints)
        total: Array = np.zeros(0)
        names: tuple[str, ...] = ()
        for checkpoint in chosen:
            model = run.model(checkpoint)
            rows, names = probe_gradients(model, trainable(model), probes)
            products = alignments(model, rows, data, cosine=self.cosine)
            term = -learning_rate(run, checkpoint) * products.double().cpu().numpy() * data.weights
            total = term if not total.size else total + term
        steps = ", ".join(str(checkpoint.step) for checkpoint in chosen)
        unit = "learning rate x cosine" if self.cosine else f"change of f [{getattr(probes, 'unit', 'its own')}]"
        return Scores(
            total, data.ids, f"TracIn over the checkpoints at steps {steps}", f"{unit} by one step at each", names
        )


def select(run: Run, indices: tuple[int, ...] | None) -> tuple[Checkpoint, ...]:
    """Return the checkpoints at these indices; by default all but the initialisation, or the only one.

    Raises:
        InfuserError: an index is not in the run.
    """
    have = len(run.checkpoints)
    if indices is None:
        return run.checkpoints[1:] or run.checkpoints
    wrong = [i for i in indices if not -have <= i < have]
    if wrong or not indices:
        raise InfuserError(
            "the run does not have these checkpoints",
            got=wrong or "no index",
            expected=f"indices from {-have} to {have - 1}",
            causes=["the model was trained elsewhere (Run.from_weights) and has one checkpoint"],
        )
    return tuple(run.checkpoints[i] for i in indices)


def learning_rate(run: Run, checkpoint: Checkpoint) -> float:
    """Return the learning rate of the step that led to a checkpoint (of the first step, for the initialisation)."""
    last = run.checkpoints[-1]
    # Steps an epoch, from the run itself: the data at hand may be a part of what it was trained on.
    done = last.epoch - run.checkpoints[0].epoch
    per_epoch = (last.step - run.checkpoints[0].step) // done if done else 1
    return scheduled(run.recipe, max(checkpoint.step - 1, 0), per_epoch * run.recipe.epochs)
