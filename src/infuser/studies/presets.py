"""Named starting points of `infuser run`, and the commented configuration that `infuser init` writes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infuser.config import dump, merge, override, parse, read_yaml
from infuser.errors import InfuserError
from infuser.studies.study import Experiment

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
        "fit_documents": 2_000,
    },
    "cifar10": {
        "data": "cifar10",
        "limit": 45_000,  # the published setting: 100 of 45,000 documents, plain SGD, ten epochs
        "k": 100,
        "radius": 8,
        "probes": 10,
        "fit_documents": 4_000,
        "controls": ["noise", "random_docs", "insert_1", "insert_k"],
    },
}


def experiment(what: str, settings: Sequence[str] = (), data_folder: str | Path | None = None) -> Experiment:
    """Return the experiment of a preset or a YAML file, with "key=value" settings laid on top.

    Raises:
        InfuserError: neither a preset nor a file, an unknown setting, or a wrong value.
    """
    if what in PRESETS:
        values = PRESETS[what]
    elif Path(what).suffix in (".yaml", ".yml"):
        values = read_yaml(what)
    else:
        expected = f"{', '.join(PRESETS)}, or the path of a .yaml file"
        raise InfuserError("there is nothing of this name to run", got=what, expected=expected)
    # The base recipe is laid below, since a group that is given replaces its default as a whole.
    values = merge({"recipe": dataclasses.asdict(Experiment().recipe)}, values)
    if data_folder is not None:
        values = merge(values, {"data_folder": str(data_folder)})
    return parse(Experiment, override(values, settings))


def commented(like: str) -> str:
    """Return the configuration of a preset as YAML, each setting under the comment that documents it."""
    lines = ["# A configuration of infuser; every setting is shown. Run it with: infuser run THIS-FILE"]
    notes = _notes(Experiment)
    for line in dump(experiment(like)).splitlines():
        key = line.split(":")[0]
        if key in notes:
            lines += ["", f"# {notes[key]}"]
        lines.append(line)
    return "\n".join(lines) + "\n"


def _notes(cls: type) -> dict[str, str]:
    """Return the Attributes section of a docstring: field -> sentence. So no field is described twice."""
    section = (cls.__doc__ or "").partition("Attributes:")[2]
    return {name: " ".join(text.split()) for name, text in re.findall(r"^ {8}(\w+): (.+(?:\n {12}.+)*)", section, re.M)}
