"""Which training documents were tampered with: one detector per file, all behind `Detector.suspicion`."""

from infuser.detection.activation_clustering import ActivationClustering
from infuser.detection.bounds import Perfect, RandomOrder
from infuser.detection.deep_knn import DeepKNN
from infuser.detection.detect import Detector, detect, observers_of
from infuser.detection.f_ine import FIne, FInePreconditioned
from infuser.detection.fused import Fused, fuse
from infuser.detection.influence import InfluenceTowards
from infuser.detection.isolation import GradientIsolation
from infuser.detection.loss_trace import TrainingLoss
from infuser.detection.perplexity import Perplexity
from infuser.detection.pixel_noise import PixelNoise
from infuser.detection.self_influence import SelfInfluence
from infuser.detection.spectral import SpectralSignatures

__all__ = [
    "ActivationClustering",
    "DeepKNN",
    "Detector",
    "FIne",
    "FInePreconditioned",
    "Fused",
    "GradientIsolation",
    "InfluenceTowards",
    "Perfect",
    "Perplexity",
    "PixelNoise",
    "RandomOrder",
    "SelfInfluence",
    "SpectralSignatures",
    "TrainingLoss",
    "detect",
    "fuse",
    "observers_of",
]
