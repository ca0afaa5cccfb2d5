"""Influence towards the suspected behaviour."""

from __future__ import annotations

from dataclasses import dataclass

from infuser.attribution.attribute import attribute
from infuser.attribution.influence import Influence
from infuser.checkpoints import Run
from infuser.curvature.ekfac import fit_ekfac
from infuser.curvature.factors import DOCUMENTS
from infuser.data.dataset import Dataset
from infuser.detection.detect import required
from infuser.types import Curvature, Damping, Measurement, Suspicion


@dataclass(frozen=True)
class InfluenceTowards:
    """The influence of each document on the mean suspected measurement: proponents of the behaviour. Not blind.

    Assumes that the behaviour is known, that the model at hand shows it, and that influence at its last checkpoint
    ranks what caused it. Fails where the behaviour saturated (grad f is then small and points elsewhere), and it ranks
    honest proponents as high as edited ones: beware of an attacker who edits documents of little influence.

    Args:
        damping: relative to the mean eigenvalue per layer.
        documents: how many the EK-FAC is fitted on; at most; None for all.
        seed: of the fit.
        curvature: a fitted one, to share a fit between detectors of one run; by default it is fitted at each call.

    Source: Koh and Liang, arXiv 1703.04730.
    """

    damping: Damping | float = 0.1
    documents: int | None = DOCUMENTS
    seed: int = 0
    curvature: Curvature | None = None

    def suspicion(self, run: Run, data: Dataset, measurement: Measurement | None = None) -> Suspicion:
        """Return the influence on the mean over the measurement's queries.

        Raises:
            InfuserError: no measurement was given.
        """
        suspected = required(measurement, type(self).__name__)
        curvature = self.curvature or fit_ekfac(run, data, documents=self.documents, seed=self.seed)
        scores = attribute(Influence(curvature, self.damping), run, data, suspected)
        values = scores.values.mean(0).astype(float) * data.weights  # what the document did, not what it might do
        return Suspicion(values, scores.ids, scores.method, f"suspected: {suspected.name}")
