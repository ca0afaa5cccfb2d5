"""H and its solves: Kronecker-factored, dense and trivial curvature behind one protocol."""

from infuser.curvature.collect import Captured, captures, collect, verify
from infuser.curvature.layers import Layer, find_layers

__all__ = ["Captured", "Layer", "captures", "collect", "find_layers", "verify"]
