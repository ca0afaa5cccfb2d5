"""Which training documents move a measurement: one method per file, all behind `Attributor.score`."""

from infuser.attribution.attribute import Attributor, attribute
from infuser.attribution.influence import Influence, self_influence
from infuser.attribution.similarity import GradientSimilarity
from infuser.attribution.tracin import TracIn
from infuser.attribution.trak import TRAK
from infuser.attribution.unrolled import Unrolled

__all__ = [
    "TRAK",
    "Attributor",
    "GradientSimilarity",
    "Influence",
    "TracIn",
    "Unrolled",
    "attribute",
    "self_influence",
]
