"""The documentation runs: every python block is executed, every command is parsed, every public name is listed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
import typer.main
import yaml

import infuser
from infuser.cli import app
from infuser.config import override, parse
from infuser.studies.audit_settings import audit_settings
from infuser.studies.study import Experiment
from infuser.studies.sweep import read_sweep

DOCS = Path(__file__).parents[1] / "docs"
BUILT = ("_build", "gallery", "api")
PAGES = sorted(p for p in DOCS.rglob("*.md") if p.relative_to(DOCS).parts[0] not in BUILT)
# A block runs unless the line above it says why not: "% not run: it needs a GPU".
BLOCK = re.compile(
    r"(?:^% not run: (?P<why>\S[^\n]*)\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


def blocks(text: str, language: str) -> list[tuple[int, str]]:
    """Return (lines before the code, code) of the blocks of a page that claim to run, in order."""
    found = (m for m in BLOCK.finditer(text) if m["language"] == language and not m["why"])
    return [(text.count("\n", 0, m.start("code")), m["code"]) for m in found]


def run_page(text: str, name: str) -> None:
    names: dict[str, object] = {"__name__": "page"}
    for before, code in blocks(text, "python"):
        # The empty lines make a traceback name the line of the page.
        exec(compile("\n" * before + code, name, "exec"), names)  # noqa: S102 - our own pages


def page_id(page: Path) -> str:
    return str(page.relative_to(DOCS))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # pages may write files


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p.read_text(), "python")], ids=page_id)
def test_the_python_of_a_page_runs(page: Path) -> None:
    threads = torch.get_num_threads()
    run_page(page.read_text(), str(page))
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p.read_text(), "sh")], ids=page_id)
def test_the_commands_of_a_page_are_commands(page: Path) -> None:
    group = typer.main.get_command(app)
    for _, code in blocks(page.read_text(), "sh"):
        for line in code.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["infuser"] and words[1:] != ["--version"]:
                command = group.commands[words[1]]  # type: ignore[attr-defined]
                given = command.make_context(words[1], words[2:]).params
                settings = given.get("settings") or []
                if words[1] == "audit":
                    audit_settings(given["what"], settings, given["data"], given["plant"])
                else:
                    parse(Experiment, override({}, settings))


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p.read_text(), "yaml")], ids=page_id)
def test_the_configurations_of_a_page_are_valid(page: Path, tmp_path: Path) -> None:
    for _, code in blocks(page.read_text(), "yaml"):
        values = yaml.safe_load(code)
        if "grid" in values or "list" in values:
            (tmp_path / "sweep.yaml").write_text(code)
            assert len(read_sweep(tmp_path / "sweep.yaml").points) > 1
        else:
            parse(Experiment, values)


def test_every_public_name_is_in_the_api() -> None:
    listed = set(re.findall(r"~infuser\.([\w.]+)", (DOCS / "api.rst").read_text()))
    modules = {"adapters", "data", "detection", "measure", "models", "report", "__version__"}
    wanted = {name for name in infuser.__all__ if name not in modules}
    assert {path.rsplit(".", 1)[-1] for path in listed} - {"report"} == wanted


def test_a_page_that_is_wrong_fails() -> None:
    wrong = "text\n```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n"
    with pytest.raises(AssertionError) as caught:
        run_page(wrong, "page.md")
    assert caught.tb.tb_next.tb_next.tb_lineno == 7  # type: ignore[union-attr]
    run_page(wrong.replace("```python\nassert", "% not run: it is wrong\n```python\nassert"), "page.md")
    assert len(blocks(wrong.replace("```python\nassert", "% not run:\n```python\nassert"), "python")) == 2
