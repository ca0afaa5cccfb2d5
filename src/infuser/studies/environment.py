"""What a result was made with: versions, machine and threads."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("infuser", "torch", "numpy", "scipy", "scikit-learn", "scikit-image", "safetensors", "pyarrow", "pillow")


def environment() -> dict[str, Any]:
    """Return versions of the packages that compute, the processor, and the thread count that sums depend on."""
    import torch

    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch_build": torch.__version__,
        "packages": versions(_PACKAGES),
    }


def processor() -> str:
    """Return the processor's name and the instructions that torch takes: sums are rounded by both."""
    import torch

    told = dict.fromkeys(("model name", "cpu family", "model"), "")
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = (part.strip() for part in line.partition(":"))
            if name in told and not told[name]:
                told[name] = value
    name = told["model name"] or platform.processor() or "unknown"
    family = f", family {told['cpu family']} model {told['model']}" if told["cpu family"] else ""
    return f"{name}{family}, {torch.backends.cpu.get_cpu_capability()}"


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the installed versions of packages by name."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
