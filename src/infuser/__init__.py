"""Infuser shapes and audits model behaviour through training data.

The public names are resolved when they are first used (PEP 562), so that importing infuser does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import Any

# Public name -> the module that defines it, or the module itself. Sorted; locked by a test.
_WHERE = {
    "Dataset": "infuser.data.dataset",
    "InfuserError": "infuser.errors",
    "Recipe": "infuser.types",
    "Run": "infuser.checkpoints",
    "data": "infuser.data",
    "measure": "infuser.measure",
    "models": "infuser.models",
    "train": "infuser.training",
}
__all__ = sorted([*_WHERE, "__version__"])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("infuser")
    if name not in _WHERE:
        raise AttributeError(f"module 'infuser' has no attribute {name!r}")
    module = import_module(_WHERE[name])
    return module if module.__name__ == f"infuser.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return list(__all__)
