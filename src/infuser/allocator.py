"""Memory that is freed stays with the process: the next tensor of its size need not be asked from the system again."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, see malloc.h
_NEVER = 2**31 - 1
_LARGEST = 2**25  # bytes; larger blocks are mapped one by one, as the C library demands


def keep_freed_memory() -> bool:
    """Let the C library keep what this process frees, up to 32 MB a block; return whether it could be told so.

    Every batch frees its activations, and glibc then hands the top of its heap back to the system, which has to clear
    each page when it is asked for again, in every step of a training on the CPU. The price is that the process
    holds on to its largest need so far. The commands and worker processes of infuser do this; a script or notebook may
    call it once at its beginning. Elsewhere than on glibc nothing happens.

    Source: mallopt(3), M_TRIM_THRESHOLD and M_MMAP_THRESHOLD.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))
