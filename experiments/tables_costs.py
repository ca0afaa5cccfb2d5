"""Tables of benchmarks/results.json."""

from __future__ import annotations

import json
import re
from typing import Any

from tables_format import ROOT, lowest_to_highest, table, three_places, wrapped


def cost(name: str) -> str:
    """Return costs beside the peer's, in forward passes."""
    block = _largest(name)
    checked = {key: r for key, r in block.items() if key.startswith("pearson") and isinstance(r, float)}
    caption = wrapped(
        f"{block['documents']} documents, {block['repeats']} interleaved repetitions, median [lowest, highest].",
        *(
            f"Pearson's r {key.removeprefix('pearson_').replace('_', ' ')}: {value:.4f}."
            for key, value in checked.items()
        ),
    )
    head = ["", "forward passes"]
    body = [[name, lowest_to_highest(row)] for name, row in block["rows"].items()]
    if any("error" in row for row in block["rows"].values()):
        head.append("relative error")
        for line, row in zip(body, block["rows"].values(), strict=True):
            line.append(f"{row['error']:.1g}" if "error" in row else "")
    return f"{caption}\n{table(head, body)}"


def growth() -> str:
    """Return how time grows with each quantity: the slope of logarithms, and peaks of memory."""
    block = _largest("growth")
    body = []
    for what, found in block["varied"].items():
        last = found["rows"][-1]
        slopes = [f"{found['slopes'][key]:.2f}" for key in ("scores_seconds", "fit_seconds")]
        memory = [f"{last[key] - last['before_gb']:.2f} GB" for key in ("scores_gb", "fit_gb")]
        body.append((f"{what}, {found['values'][0]:,} to {found['values'][-1]:,}", *slopes, *memory))
    head = ("", "scores: slope of time", "fit: slope of time", "scores: memory at the largest", "fit: memory")
    return table(head, body)


def whole_run() -> str:
    """Return where the time of a whole study goes."""
    block = _largest("whole_run")
    body = [(kind, f"{100 * share:.0f} %") for kind, share in block["shares"].items()]
    caption = wrapped(
        f"`infuser run digits` with {block['probes']} probes, one thread: {block['seconds']:.0f} s,",
        f"{block['seconds_profiled']:.0f} s under the profiler.",
    )
    return f"{caption}\n{table(('', 'share of the time'), body)}"


def models_a_minute() -> str:
    """Return how many small models a minute the batched training makes."""
    block = _largest("models_a_minute")
    ways = list(next(iter(block["rows"].values())))
    body = [(name, *(f"{row[way]:,.0f}" for way in ways)) for name, row in block["rows"].items()]
    caption = wrapped(f"{block['models']} models at a time, {block['repeats']} repetitions, one thread, median.")
    return f"{caption}\n{table(('models a minute', *ways), body)}"


def agreement() -> str:
    """Return what fits on samples cost and how their scores agree with the whole fit's."""
    block = _largest("fit_agreement")
    caption = wrapped(f"{block['queries']} queries; Spearman over the documents with: {block['reference']}.")
    body = [
        (name, f"{row['forward_passes']:.1f}", three_places(row["spearman"]), three_places(row["lowest_query"]))
        for name, row in block["rows"].items()
    ]
    return f"{caption}\n{table(('fitted on', 'forward passes', 'Spearman, mean', 'lowest query'), body)}"


def _largest(name: str) -> Any:
    """Return the block of benchmarks/results.json of that name with most documents."""
    blocks = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    named = {key: value for key, value in blocks.items() if key.partition(",")[0] == name}
    if not named:
        raise LookupError(f"benchmarks/results.json has no {name}: run the benchmark of that name")
    return named[max(named, key=lambda key: int((re.findall(r"\d+", key) or ["0"])[0]))]
