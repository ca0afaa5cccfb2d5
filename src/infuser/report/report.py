"""The verb `report`: parts in, one self-contained HTML file out."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infuser.report import plots
from infuser.report.blocks import Block, Figure, Row, Section
from infuser.report.material import Summary
from infuser.report.parts import of
from infuser.report.sections import sections
from infuser.storage import plain, write_text

_HERE = Path(__file__).parent


def report(path: str | os.PathLike[str], *parts: object, title: str = "Infuser report") -> Path:
    """Write one HTML file that shows `parts`, opens from disk and loads nothing from anywhere.

    The same parts give the same bytes. The file is written whole or not at all.

    Args:
        path: of the file.
        parts: effects, scores, edits, suspicions, trials, estimates, and the records of `infuser.report.material`.
        title: of the page.

    Returns:
        The path of the file.

    Raises:
        InfuserError: a part is of another kind, or the file cannot be written.
    """
    target = Path(path)
    write_text(target, render(parts, title))
    return target


def render(parts: Sequence[object], title: str) -> str:
    """Return the page as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = sections(parts)
    figures, specs = _numbered(found)
    script, plotly = _read("page.js"), plots.library() if specs else ""
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("template.html").render(
        title=title,
        summaries=of(parts, Summary),
        sections=found,
        name_of=lambda figure: figures[id(figure)],
        css=_read("style.css"),
        # Only these two scripts run: a script that slipped in from data would not match their hashes.
        scripts=[s for s in (plotly, script) if s],
        hashes=" ".join(_csp_hash(s) for s in (plotly, script) if s),
        figures=_embedded(specs),
    )


def _numbered(found: Sequence[Section]) -> tuple[dict[int, str], dict[str, Any]]:
    """Return the element id of each figure (by identity) and their Plotly specifications by element id."""
    names: dict[int, str] = {}
    specs: dict[str, Any] = {}
    for figure in (figure for section in found for block in section.blocks for figure in _figures(block)):
        name = f"figure-{len(specs) + 1}"
        names[id(figure)] = name
        specs[name] = figure.spec
    return names, specs


def _figures(block: Block) -> Sequence[Figure]:
    if isinstance(block, Row):
        return block.figures
    return (block,) if isinstance(block, Figure) else ()


def _embedded(value: object) -> str:
    """Return JSON that cannot end the script element that it stands in."""
    text = json.dumps(plain(value), separators=(",", ":"), allow_nan=False, sort_keys=True)
    return re.sub("[<>&]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _csp_hash(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
