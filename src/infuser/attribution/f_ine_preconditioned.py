"""f-INE on fixed test points: gradient products in the metric of EK-FAC, averaged over checkpoints of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from infuser.attribution.influence import probe_gradients
from infuser.attribution.null_tests import checked_group
from infuser.attribution.scoring import inner_products
from infuser.checkpoints import Checkpoint, Run
from infuser.curvature.ekfac import fit_ekfac
from infuser.curvature.factors import DOCUMENTS
from infuser.data.dataset import Dataset
from infuser.errors import InfuserError
from infuser.params import trainable
from infuser.tasks import Labels
from infuser.types import Array, Damping, Measurement, Scores


@dataclass(frozen=True)
class PreconditionedFInfluence:
    """mu on a measurement f, with (F + rho)^-1 between the gradients: no observer, the run's checkpoints are enough.

    At a checkpoint V(i) = -<(F + rho)^-1 grad f, g_i> with the EK-FAC of the Fisher matrix F, and
    z(i) = (V(i) - mean V) / sd V over all documents: what a step gains from document i over the spread of such gains.
    With the mean over checkpoints, mu = sqrt(T B) / n x |S| (mean of z in S - mean outside), T the steps of the run.

    Plain dot products see little of one test point (they mostly see how large a document's gradient is); this mode does
    better there, and unlike them it gains from averaging runs. On documents themselves use FInfluence.

    Args:
        checkpoints: at most how many, spread evenly.
        after: share of training before the first of them.
        damping: rho.
        labels: of the Fisher matrix.
        documents: how many the curvature is fitted on; at most; None for all.
        seed: of the curvature.
    """

    checkpoints: int = 15
    after: float = 0.25
    damping: Damping = field(default_factory=lambda: Damping(1.0))
    labels: Labels = "sampled"
    documents: int | None = DOCUMENTS
    seed: int = 0

    def __post_init__(self) -> None:
        if self.checkpoints < 1 or not 0 <= self.after < 1:
            raise InfuserError(
                "checkpoints or after is out of range",
                got=f"{self.checkpoints}, {self.after}",
                expected="at least 1; 0 <= after < 1",
            )

    def score(self, run: Run, data: Dataset, probes: Measurement) -> Scores:
        """Return mu of every document on every query, (Q, N).

        Raises:
            InfuserError: the data are not the run's, or the signals of a query do not vary over the documents.
        """
        z, names = self.z(run, data, probes)
        n = len(data)
        told = f"f-INE, EK-FAC, damping {self.damping}, {len(self.chosen(run))} checkpoints"
        unit = "mu" if _steps(run) else "mu, but for the root of the steps, which the run does not know"
        return Scores(_scale(run, n) * z / (n - 1) * n, data.ids, told, unit, names)

    def group_scores(
        self, run: Run, data: Dataset, groups: Mapping[str, Sequence[int] | Array], probes: Measurement
    ) -> dict[str, Array]:
        """Return name -> mu of each group on the queries, (Q,).

        Raises:
            InfuserError: a group is empty, all documents or names one twice.
        """
        places = {name: data.positions(checked_group(data, ids)) for name, ids in groups.items()}
        z, _ = self.z(run, data, probes)
        n = len(data)
        # z has mean 0 over all documents, so that the mean outside S follows from the one inside.
        return {name: _scale(run, n) * z[:, at].sum(1) * n / (n - len(at)) for name, at in places.items()}

    def z(self, run: Run, data: Dataset, probes: Measurement) -> tuple[Array, tuple[str, ...]]:
        """Return (mean over checkpoints of the standardised signals (Q, N), names of the queries)."""
        if run.data_hash != data.content_hash:
            raise InfuserError(
                "the run was trained on other data",
                got=data.content_hash[:8],
                expected=run.data_hash[:8],
                remedy="pass its training data",
            )
        total: Array = np.zeros(0)
        names: tuple[str, ...] = ()
        chosen = self.chosen(run)
        for checkpoint in chosen:
            here = replace(run, checkpoints=(checkpoint,))
            curvature = fit_ekfac(here, data, labels=self.labels, seed=self.seed, documents=self.documents)
            model = here.model()
            params = trainable(model)
            rows, names = probe_gradients(model, params, probes)
            v = inner_products(model, params, data, curvature.solve(rows, self.damping)).double().cpu().numpy()
            v = -v * data.weights
            spread = v.std(1, keepdims=True)
            if not (spread > 0).all():
                bad = [names[q] for q in np.flatnonzero(spread[:, 0] <= 0)]
                raise InfuserError("a query's signals do not vary over the documents", got=bad[:8])
            z = (v - v.mean(1, keepdims=True)) / spread
            total = z if not total.size else total + z
        return total / len(chosen), names

    def chosen(self, run: Run) -> tuple[Checkpoint, ...]:
        """Return the checkpoints that are used."""
        last = run.checkpoints[-1].step
        late = [c for c in run.checkpoints if c.step > 0 and c.step >= self.after * last] or [run.checkpoints[-1]]
        at = np.unique(np.linspace(0, len(late) - 1, min(self.checkpoints, len(late))).round().astype(int))
        return tuple(late[i] for i in at)


def _steps(run: Run) -> int:
    """Return T, the steps from the run's first checkpoint to its last: 0 for a model trained elsewhere."""
    return run.checkpoints[-1].step - run.checkpoints[0].step


def _scale(run: Run, n: int) -> float:
    """Return sqrt(T B) / n, with T = 1 where it is not known."""
    return float(np.sqrt(max(_steps(run), 1) * min(run.recipe.batch_size, n)) / n)
