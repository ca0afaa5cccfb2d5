"""From results.json to parts of a report. Numbers are put into sentences and records as they stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from infuser.errors import InfuserError
from infuser.report import read_audit, read_images, read_text
from infuser.report.material import ComparedRun, Provenance, Summary
from infuser.report.reading import Reading, Results, caveats, main_effect, sentence

# Every kind of results holds a key that no other has: the ball of pixels, the mode of token edits, the suspects.
_READERS: Mapping[str, Callable[[Results], Reading]] = {
    "norm": read_images.read,
    "mode": read_text.read,
    "suspects": read_audit.read,
}


def from_results(results: Results, *, config: str = "", hashes: Mapping[str, str] | None = None) -> tuple[object, ...]:
    """Return all parts of a report that results.json holds, ready for `report`.

    Args:
        results: of one run: a study of images or of text, or an audit.
        config: the resolved configuration as YAML.
        hashes: name -> hash of manifests and checkpoints.

    Raises:
        InfuserError: these are not the results of a run.
    """
    said = _read(results)
    seeds: dict[str, object] = {"retraining": list(results["seeds"])} if "seeds" in results else {}
    if "base_seed" in results:
        seeds["base model"] = [results["base_seed"]]
    provenance = Provenance(config, dict(results.get("environment", {})), seeds, dict(hashes or {}))
    return (said.summary, *caveats(results), *said.regimes, *said.parts, *said.metrics, provenance)


def compare_results(
    runs: Mapping[str, Results], configs: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[object, ...]:
    """Return parts that compare several runs.

    Args:
        runs: name -> its results.
        configs: name -> its resolved configuration; with them every setting that differs is shown.

    Raises:
        InfuserError: these are not the results of runs.
    """
    readings = {name: _read(results) for name, results in runs.items()}
    flat = {name: _flat((configs or {}).get(name, {})) for name in runs}
    # Configurations of different kinds share few keys: those runs are told apart by what their results say.
    alike = all(flat.values()) and len({frozenset(keys) for keys in flat.values()}) == 1
    compared = tuple(
        ComparedRun(name, flat[name] if alike else said.settings, said.regimes, said.metrics)
        for name, said in readings.items()
    )
    found = tuple(f"{name}: {_said(said)}" for name, said in readings.items())
    return (Summary(f"How do {len(compared)} runs compare?", found), *compared)


def _read(results: Results) -> Reading:
    for key, reader in _READERS.items():
        if key in results:
            return reader(results)
    raise InfuserError(
        "these are not the results of a run",
        got=f"keys {', '.join(sorted(map(str, results))[:8])}",
        expected="results.json of `infuser run` or `infuser audit`",
    )


def _said(run: Reading) -> str:
    """Return the effect of the edit, or what was found where nothing is retrained by design."""
    if not run.regimes:
        return " ".join(run.summary.found)
    for regime in run.regimes:
        main = main_effect(regime)
        if main is not None:
            return sentence(main, regime.name)
    return "no edit was retrained."


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float | str | None]:
    found: dict[str, float | str | None] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, (int, float)) else str(value)
    return found
