"""What a result was made with: versions, machine and threads."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PACKAGES = ("infuser", "torch", "numpy", "scipy", "scikit-learn", "scikit-image", "safetensors", "pyarrow", "pillow")


def environment() -> dict[str, Any]:
    """Return versions of the packages that compute, the processor, and the thread count that sums depend on."""
    import torch

    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch_build": torch.__version__,
        "packages": versions,
    }
