"""How much memory does it take to score N documents with Q queries?

    python benchmarks/memory.py --documents 4500 --queries 64        # a slice; 45000 is the whole training set

TinyResNet on CIFAR-10 (random pixels where INFUSER_DATA is not set: memory does not depend on them), one process, one
thread. The peak is that of the resident pages of the whole process, as the kernel counts them, after each step:
imports, data, EK-FAC on 512 documents, the 64 directions, the scores. Written to benchmarks/results.json.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import torch
from measuring import documents, keep

import infuser as inf

LIMIT_GB = 3.0


def peak_gb() -> float:
    """Return the largest resident size of this process so far, in 10^9 bytes."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size * (1 if sys.platform == "darwin" else 1024) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=4_500)
    parser.add_argument("--queries", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    peaks = {"imports": peak_gb()}
    data = documents(args.documents)
    peaks["data"] = peak_gb()
    torch.manual_seed(0)
    model = inf.models.tiny_resnet(data.input_shape, data.n_outputs)
    run = inf.Run.from_weights(inf.models.tiny_resnet, model.state_dict(), data)
    probes = inf.measure.LogProb(data[data.ids[: args.queries]])
    influence = inf.Influence(inf.fit_ekfac(run, data, documents=512), damping=0.1)
    peaks["fit"] = peak_gb()
    direction = influence.direction(run, probes)
    peaks["directions"] = peak_gb()
    begun = time.process_time()
    scores = influence.score_direction(run, data, direction)
    seconds = time.process_time() - begun
    peaks["scores"] = peak_gb()
    for name, value in peaks.items():
        print(f"{name:<12} {value:.2f} GB")
    print(f"{len(scores)} queries x {len(data)} documents: {seconds:.0f} CPU seconds, limit {LIMIT_GB} GB")
    found = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "peak_gb": peaks,
        "score_cpu_seconds": seconds,
    }
    keep(f"memory, {len(data)} documents, {len(scores)} queries", found)
    if peaks["scores"] >= LIMIT_GB:
        raise SystemExit(f"the peak is {peaks['scores']:.2f} GB, the limit {LIMIT_GB} GB")


if __name__ == "__main__":
    main()
