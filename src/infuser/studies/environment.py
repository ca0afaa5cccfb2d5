"""What a result was made with: versions, machine and threads."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PACKAGES = ("infuser", "torch", "numpy", "scipy", "scikit-learn", "scikit-image", "safetensors", "pyarrow", "pillow")


def environment() -> dict[str, Any]:
    """Return versions of the packages that compute, the processor, and the thread count that sums depend on."""
    import torch

    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch_build": torch.__version__,
        "packages": versions(_PACKAGES),
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the installed versions of packages by name."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
