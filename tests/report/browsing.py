"""A browser for the tests of reports, and what a reader does in it."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = os.environ.get("INFUSER_CHROMIUM") or shutil.which("chromium") or ""
AXE_PACKAGE = find_spec("axe_playwright_python")
AXE = os.environ.get("INFUSER_AXE") or (AXE_PACKAGE and str(Path(AXE_PACKAGE.origin or "").parent / "axe.min.js")) or ""
SWITCHES = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE = 300_000  # milliseconds: on a busy machine a browser starts slowly, which is no fault of a page
needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and find_spec("playwright")),
    reason="Chromium or playwright is missing: install it, or set INFUSER_CHROMIUM",
)
needs_axe = pytest.mark.skipif(not AXE, reason="axe-core is missing: install axe-playwright-python, or set INFUSER_AXE")


class Visit:
    """An open report with everything that it did behind the reader's back."""

    def __init__(self, page: Any, path: Path) -> None:
        self.page, self.path = page, path
        self.requests: list[str] = []
        self.messages: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda r: self.requests.append(r.url))
        page.on("console", lambda m: self.messages.append(f"{m.type}: {m.text}"))
        page.on("pageerror", lambda e: self.messages.append(f"error: {e}"))
        page.goto(path.as_uri())
        page.wait_for_function("document.querySelectorAll('.js-plotly-plot .main-svg').length > 0")

    def outside(self) -> list[str]:
        return [url for url in self.requests if url != self.path.as_uri() and not url.startswith("data:")]


def unfold(page: Any) -> None:
    folded = page.locator("details:not([open]) > summary")
    while folded.count():
        folded.first.click()


def column(table: Any, index: int) -> list[str]:
    return [text.strip() for text in table.locator(f"tbody tr:not([hidden]) td:nth-child({index})").all_inner_texts()]


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def violations(page: Any) -> list[str]:
    page.evaluate(Path(AXE).read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']}).then(r => r.violations)")
    return [f"{v['id']}: {v['help']}: {node['html'][:160]}" for v in found for node in v["nodes"][:3]]
