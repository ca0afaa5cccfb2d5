"""How do time and memory grow with documents, queries, width and positions?

    python benchmarks/growth.py                          # 1,000 to 8,000 documents, 1 to 256 queries
    python benchmarks/growth.py --documents 1000 45000

One quantity is varied at a time from TinyResNet of width 16 on 1,000 documents of 32 x 32 pixels with 16 queries. Every
measurement is a process of its own, whose peak of resident memory is its own. Slopes are of logarithms: 1 is linear.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from functools import partial
from typing import Any

import numpy as np
import torch
from measuring import documents, keep

import infuser as inf
from infuser.attribution.scoring import inner_products
from infuser.params import trainable

BASE = {"documents": 1000, "queries": 16, "width": 16, "size": 32}


def measured(documents_: int, queries: int, width: int, size: int) -> dict[str, float]:
    """Return CPU seconds of the fit and of the scores, and the peak of memory in 10^9 bytes before and after them."""
    torch.set_num_threads(1)
    data = documents(documents_)
    pixels = np.ascontiguousarray(data.inputs[:, :, :size, :size])
    data = inf.Dataset.from_arrays(pixels, data.targets)
    builder = partial(inf.models.tiny_resnet, width=width)
    torch.manual_seed(0)
    model = builder(data.input_shape, data.n_outputs)
    run = inf.Run.from_weights(builder, model.state_dict(), data)
    model = run.model()
    params = trainable(model)
    generator = torch.Generator().manual_seed(0)
    v = {name: torch.randn(queries, *value.shape, generator=generator) for name, value in params.items()}
    inner_products(model, params, data[data.ids[:16]], v)  # pays for imports
    before = peak()
    begun = time.process_time()
    inner_products(model, params, data, v)
    scored, after = time.process_time(), peak()
    inf.fit_ekfac(run, data, documents=None)
    return {
        "scores_seconds": scored - begun,
        "fit_seconds": time.process_time() - scored,
        "before_gb": before,
        "scores_gb": after,
        "fit_gb": peak(),
    }


def peak() -> float:
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size * (1 if sys.platform == "darwin" else 1024) / 1e9


def alone(**settings: int) -> dict[str, float]:
    """Return what `measured` returns in a process of its own."""
    said = subprocess.run([sys.executable, __file__, "--one", json.dumps(settings)], check=True, capture_output=True)
    return json.loads(said.stdout.splitlines()[-1])


def slope(x: list[int], y: list[float]) -> float:
    """Return that of the logarithms by least squares."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def main() -> None:
    """Measure and write the slopes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, nargs="+", default=[1000, 2000, 4000, 8000])
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        given = json.loads(args.one)
        print(json.dumps(measured(given.pop("documents"), **given)))
        return
    varied = {"documents": args.documents, "queries": args.queries, "width": [8, 16, 32], "size": [8, 16, 32]}
    found: dict[str, Any] = {}
    for name, values in varied.items():
        rows = [alone(**{**BASE, name: value}) for value in values]
        sizes = [value**2 for value in values] if name == "size" else values  # positions are pixels
        slopes = {key: slope(sizes, [row[key] for row in rows]) for key in ("scores_seconds", "fit_seconds")}
        found[name] = {"values": values, "rows": rows, "slopes": slopes}
        print(name, values, {key: round(value, 2) for key, value in slopes.items()}, flush=True)
        for value, row in zip(values, rows, strict=True):
            print(f"  {value:>6}", {key: round(number, 2) for key, number in row.items()}, flush=True)
    keep("growth", {"base": BASE, "varied": found})


if __name__ == "__main__":
    main()
