"""The README's Python example runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path


def test_the_first_example_runs() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    block = re.search(r"<!-- tests/test_readme.py runs this block -->\n```python\n(.*?)```", text, re.S)
    assert block is not None
    names: dict[str, object] = {}
    exec(compile(block[1], "README.md", "exec"), names)  # noqa: S102 - our own README
    scores = names["scores"]
    assert scores.values.shape == (2, len(names["train_set"]))  # type: ignore[attr-defined, arg-type]
