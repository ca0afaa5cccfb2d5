"""Self-influence: how much a document moves its own loss."""

from __future__ import annotations

from dataclasses import dataclass

from infuser.attribution.influence import self_influence
from infuser.checkpoints import Run
from infuser.curvature.ekfac import fit_ekfac
from infuser.curvature.factors import DOCUMENTS
from infuser.data.dataset import Dataset
from infuser.types import Curvature, Damping, Measurement, Suspicion


@dataclass(frozen=True)
class SelfInfluence:
    """g_i^T (H + damping)^-1 g_i at the last checkpoint: what the model could fit only by knowing the document. Blind.

    Assumes that an edited document is fitted against the others, so that its gradient stays large in directions of low
    curvature. Fails once such documents are memorised (their gradients vanish: recall of wrong labels falls with more
    epochs), and for edits that agree with the rest of the data, as documents chosen and edited by influence mostly do.

    Args:
        damping: relative to the mean eigenvalue per layer.
        documents: how many the EK-FAC is fitted on; at most; None for all.
        seed: of the fit.
        curvature: a fitted one, to share a fit between detectors of one run; by default it is fitted at each call.

    Source: Koh and Liang, arXiv 1703.04730, section 5.4.
    """

    damping: Damping | float = 0.1
    documents: int | None = DOCUMENTS
    seed: int = 0
    curvature: Curvature | None = None

    def suspicion(self, run: Run, data: Dataset, measurement: Measurement | None = None) -> Suspicion:
        """Return the self-influence of every document."""
        curvature = self.curvature or fit_ekfac(run, data, documents=self.documents, seed=self.seed)
        scores = self_influence(curvature, self.damping, run, data)
        return Suspicion(scores.values[0].astype(float), scores.ids, scores.method)
