"""Where does the time of a whole study go: into arithmetic, into moving memory, or into Python between them?

    python benchmarks/whole_run.py --probes 2

`infuser run digits` with all its arms, on a few probes, in one process on one thread: the time of each stage, and the
share of each kind of operation as torch's profiler sees it. What is left of the time is Python, the files, and the
profiler itself. Written to benchmarks/results.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from measuring import keep
from torch.profiler import ProfilerActivity, profile

from infuser.allocator import keep_freed_memory
from infuser.executors import Local
from infuser.storage import read_json
from infuser.studies.experiment import run_experiment
from infuser.studies.presets import settings_of

# The first that an operation's name contains is its kind.
KINDS = {
    "convolutions": ("conv", "mkldnn"),
    "matrix products": ("mm", "addmv", "mv", "dot", "linalg"),
    "normalisation and activations": ("batch_norm", "relu", "threshold", "softmax", "nll", "pool"),
    "optimizer and other arithmetic by elements": ("add", "mul", "sub", "div", "sum", "norm", "sqrt", "clamp", "sign"),
    "copies and new memory": ("copy", "empty", "cat", "stack", "zero", "fill", "index", "resize", "clone", "pad"),
}


def kind_of(operation: str) -> str:
    """Return the kind of an operation of torch."""
    return next((kind for kind, parts in KINDS.items() if any(part in operation for part in parts)), "other operations")


def main() -> None:
    """Measure and write the shares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--probes", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    settings = settings_of("digits", [f"probes={args.probes}"])
    with tempfile.TemporaryDirectory() as folder:
        begun = time.process_time()
        run_experiment(settings, Path(folder) / "plain", executor=Local(threads=1))
        plain = time.process_time() - begun
        stages = read_json(Path(folder) / "plain" / "timing.json")
        begun = time.process_time()
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            run_experiment(settings, Path(folder) / "profiled", executor=Local(threads=1))
        whole = time.process_time() - begun
    seconds: dict[str, float] = {}
    for event in profiled.key_averages():
        kind = kind_of(event.key)
        seconds[kind] = seconds.get(kind, 0.0) + event.self_cpu_time_total / 1e6
    seconds["Python, files and the profiler"] = whole - sum(seconds.values())
    found = {
        "probes": args.probes,
        "seconds": plain,
        "seconds_profiled": whole,
        "stages": {name: stages[name] for name in ("data", "training", "curvature", "scores", "jobs")},
        "shares": {kind: value / whole for kind, value in sorted(seconds.items(), key=lambda item: -item[1])},
    }
    for name, share in found["shares"].items():
        print(f"{name:<45} {share:6.1%}")
    keep("whole_run, digits", found)


if __name__ == "__main__":
    main()
