"""Which training documents move a measurement: one method per file, all behind `Attributor.score`."""

from infuser.attribution.attribute import Attributor, attribute
from infuser.attribution.f_ine import FInfluence
from infuser.attribution.f_ine_preconditioned import PreconditionedFInfluence
from infuser.attribution.influence import Influence, self_influence
from infuser.attribution.loss_trace import LossTrace
from infuser.attribution.similarity import GradientSimilarity
from infuser.attribution.tracin import TracIn
from infuser.attribution.trak import TRAK
from infuser.attribution.unrolled import Unrolled

__all__ = [
    "TRAK",
    "Attributor",
    "FInfluence",
    "GradientSimilarity",
    "Influence",
    "LossTrace",
    "PreconditionedFInfluence",
    "TracIn",
    "Unrolled",
    "attribute",
    "self_influence",
]
