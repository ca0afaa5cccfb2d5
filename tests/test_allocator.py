import os
import subprocess
import sys

import pytest

COUNT = """
import resource, sys
import torch
from infuser.allocator import keep_freed_memory
torch.set_num_threads(1)
kept = sys.argv[1] == "kept" and keep_freed_memory()

def batch():
    # Forty blocks of two megabytes, freed together, as the activations of a batch are.
    return sum(float(block[0]) for block in [torch.ones(2**19) for _ in range(40)])

batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    batch()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> tuple[bool, int]:
    # Every block is given back when it is freed: what the C library does by itself varies between runs.
    given = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**17)}
    done = subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=True, env=given)
    kept, count = done.stdout.split()
    return kept == "True", int(count)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library of Linux is meant")
def test_freed_blocks_are_used_again_without_page_faults() -> None:
    kept, count = faults("kept")
    if not kept:
        pytest.skip("this system's C library has no mallopt")
    pages = 10 * 40 * 2**21 // 4096
    assert count < 0.05 * pages
    # The negative: otherwise they are asked for again.
    assert faults("default")[1] > 0.9 * pages
