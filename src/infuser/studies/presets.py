"""Named starting points of `infuser run`, and the commented configuration that `infuser init` writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from infuser import config
from infuser.config import is_yaml, merge, override, parse, read_yaml
from infuser.errors import InfuserError
from infuser.studies.audit_settings import audit_settings
from infuser.studies.caesar import Caesar, run_caesar
from infuser.studies.detection_benchmark import benchmark_settings
from infuser.studies.experiment import run_experiment
from infuser.studies.stories import Stories, run_stories
from infuser.studies.study import Experiment

Settings: TypeAlias = Experiment | Caesar | Stories

PRESETS: dict[str, dict[str, Any]] = {
    "digits": {  # small enough for a complete study in a coffee break, on two cores
        "model_options": {"width": 16},
        "recipe": {"batch_size": 32, "lr": 0.02},
        "steps": 20,
    },
    "mnist": {
        "data": "mnist",
        "limit": 10_000,  # an epoch stays in seconds
        "model": "simple_cnn",
        "recipe": {"epochs": 5, "lr": 0.02},
        "k": 100,
        "probes": 10,
    },
    "cifar10": {
        "data": "cifar10",
        "limit": 45_000,  # the published setting: 100 of 45,000 documents, plain SGD, ten epochs
        "k": 100,
        "radius": 8,
        "probes": 10,
        "controls": ["noise", "random_docs", "insert_1", "insert_k"],
    },
    "caesar": {"study": "caesar"},
    "stories": {"study": "stories"},
}


# What a configuration may set up: the value of its key "study", and the settings that go with it.
STUDIES: dict[str, type] = {"images": Experiment, "caesar": Caesar, "stories": Stories}


def settings_of(what: str, changes: Sequence[str] = (), data_folder: str | Path | None = None) -> Settings:
    """Return the settings of a preset or a YAML file, with "key=value" changes laid on top.

    Raises:
        InfuserError: neither a preset nor a file, an unknown setting, or a wrong value.
    """
    return settings_from(values_of(what), changes, data_folder)


def values_of(what: str) -> dict[str, Any]:
    """Return what a preset or a YAML file says, before defaults are filled in."""
    if what in PRESETS:
        return dict(PRESETS[what])
    if is_yaml(what):
        return read_yaml(what)
    expected = f"{', '.join(PRESETS)}, or the path of a .yaml file"
    raise InfuserError("there is nothing of this name to run", got=what, expected=expected)


def settings_from(
    values: Mapping[str, Any], changes: Sequence[str] = (), data_folder: str | Path | None = None
) -> Settings:
    """Return the settings that a mapping of values describes, as `settings_of` does."""
    kind = values.get("study", "images")
    if not isinstance(kind, str) or kind not in STUDIES:
        raise InfuserError("unknown study", got=kind, expected=", ".join(STUDIES))
    cls = STUDIES[kind]
    # The study's own recipe is laid below, since a group that is given replaces its default as a whole.
    values = merge({"recipe": dataclasses.asdict(cls().recipe)}, {k: v for k, v in values.items() if k != "study"})
    if data_folder is not None:
        values = merge(values, {"data_folder": str(data_folder)})
    if any(change.startswith("model=") for change in changes):
        values = {k: v for k, v in values.items() if k != "model_options"}  # those of another model
    chosen: Settings = parse(cls, override(values, changes))
    return chosen


def run_study(
    settings: Settings, out: str | Path, *, resume: bool = False, overwrite: bool = False, allow_code: bool = False
) -> dict[str, Any]:
    """Run the study that the settings belong to, into the folder `out`; return what results.json holds."""
    if isinstance(settings, Caesar):
        return run_caesar(settings, out, resume=resume, overwrite=overwrite)
    if isinstance(settings, Stories):
        return run_stories(settings, out, resume=resume, overwrite=overwrite)
    return run_experiment(settings, out, resume=resume, overwrite=overwrite, allow_code=allow_code)


# What else `infuser init` can start from: the command that takes the file, and its settings.
_OTHERS: dict[str, tuple[str, Callable[[], Any]]] = {
    "audit": ("audit", lambda: audit_settings("folder:PATH")),
    "audit-texts": ("audit", lambda: audit_settings("text:PATH", ["model=PATH"])),
    "detection": ("benchmark detection", lambda: benchmark_settings("digits")),
}


_SWEEP = """\
# A sweep of infuser: one study at many settings. Run it with: infuser sweep THIS-FILE
# Below all points: a preset or another file, and any of its settings.
like: digits
probes: 5
# All combinations of these values; settings inside a group by their path, such as recipe.lr.
grid:
  radius: [4, 8, 16]
  k: [14, 28]
# Single points instead, or combined with the grid:
# list:
# - {recipe.lr: 0.01, k: 10}
"""


def commented(like: str) -> tuple[str, str]:
    """Return a configuration to start from as YAML, each setting explained, and the command that takes it.

    Args:
        like: a preset, sweep, audit, audit-texts or detection.

    Raises:
        InfuserError: another name.
    """
    if like == "sweep":
        return _SWEEP, "sweep"
    if like in _OTHERS:
        command, chosen = _OTHERS[like]
        return config.commented(chosen(), command), command
    if like not in PRESETS:
        raise InfuserError(
            "there is nothing of this name to start from", got=like, expected=", ".join([*PRESETS, "sweep", *_OTHERS])
        )
    settings = settings_of(like)
    study = next(name for name, cls in STUDIES.items() if cls is type(settings))
    return config.commented(settings, "run", ["", "# images, caesar or stories.", f"study: {study}"]), "run"
