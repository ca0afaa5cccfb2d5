"""H and its solves: Kronecker-factored, dense and trivial curvature behind one protocol."""

from infuser.curvature.collect import Captured, captures, collect, verify
from infuser.curvature.dense import Dense, fit_dense
from infuser.curvature.ekfac import fit_ekfac
from infuser.curvature.find import find_layers
from infuser.curvature.identity import Identity, identity
from infuser.curvature.kfac import fit_kfac
from infuser.curvature.layers import Layer
from infuser.curvature.operator import KroneckerEigen, load_curvature, save_curvature

__all__ = [
    "Captured",
    "Dense",
    "Identity",
    "KroneckerEigen",
    "Layer",
    "captures",
    "collect",
    "find_layers",
    "fit_dense",
    "fit_ekfac",
    "fit_kfac",
    "identity",
    "load_curvature",
    "save_curvature",
    "verify",
]
