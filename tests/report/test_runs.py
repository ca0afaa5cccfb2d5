"""Reports of real runs of digits, caesar and audits in a browser: quiet, self-contained, usable, accessible."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infuser.cli import app
from tests.report import material, runs
from tests.report.browsing import Visit, column, needs_axe, needs_chromium, number, unfold, violations

pytestmark = needs_chromium
KINDS = ("digits", "caesar", "audit")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        made = {"caesar": runs.caesar(place / "caesar", patch)}
    return made | {"digits": runs.digits(place / "digits"), "audit": runs.audit(place / "audit")}


@pytest.fixture(scope="module")
def visits(browser: Any, folders: dict[str, Path]) -> Iterator[dict[str, Visit]]:
    """The three pages, each loaded once: wide and light."""
    pages = {name: browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light") for name in KINDS}
    yield {name: Visit(page, folders[name] / "report.html") for name, page in pages.items()}
    for page in pages.values():
        page.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_stands_alone_is_quiet_and_small(visits: dict[str, Visit], kind: str) -> None:
    visit = visits[kind]
    unfold(visit.page)
    visit.page.wait_for_timeout(100)
    assert visit.messages == []
    assert visit.outside() == []
    assert visit.path.stat().st_size < 8_000_000
    assert visit.page.locator(".plot").count() == visit.page.locator(".plot.js-plotly-plot").count() > 0
    assert visit.page.evaluate("window.hit") is None


@needs_axe
@pytest.mark.parametrize("kind", KINDS)
def test_axe_finds_nothing_wide_and_light(visits: dict[str, Visit], kind: str) -> None:
    unfold(visits[kind].page)
    assert violations(visits[kind].page) == []


@needs_axe
@pytest.mark.parametrize("kind", KINDS)
def test_a_dark_phone_scrolls_downwards_only_and_axe_finds_nothing(
    browser: Any, folders: dict[str, Path], kind: str
) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark", is_mobile=True, has_touch=True)
    visit = Visit(page, folders[kind] / "report.html")
    unfold(page)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert violations(page) == []
    assert visit.messages == []
    page.close()


def test_digits_show_arms_probes_and_edits(visits: dict[str, Visit]) -> None:
    page = visits["digits"].page
    assert page.locator("#probes .card").count() == 4
    assert page.locator("#edits .cards").count() == 4
    cards = page.locator("#edits .cards").first
    cards.locator("select").select_option("L2 (0 to 1)")
    shown = [number(x) for x in cards.locator(".card [data-key='L2 (0 to 1)'] dd").all_inner_texts()]
    assert shown == sorted(shown, reverse=True)
    arms = page.locator("#effect .table", has_text="further values").locator("tbody tr td:first-child")
    assert arms.all_inner_texts() == ["clean", "edit", "noise", "insert 1"]


def test_a_probe_is_named_when_pointed_at(visits: dict[str, Visit]) -> None:
    page = visits["digits"].page
    point = page.locator("#effect .plot").first.locator(".scatterlayer .trace").first.locator("path.point").first
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.locator(".hoverlayer .hovertext").first.wait_for()
    assert "edit, " in page.locator(".hoverlayer .hovertext").first.text_content()


def test_texts_show_each_substitution_with_its_gain(visits: dict[str, Visit], folders: dict[str, Path]) -> None:
    from infuser.storage import read_json

    page = visits["caesar"].page
    results = read_json(folders["caesar"] / "results.json")
    assert page.locator("#edits .cards").count() == len(results["probes"]) == 3
    swaps = page.locator("#edits .card").first.locator(".swap")
    assert swaps.count() > 0
    swap = swaps.first
    swap.scroll_into_view_if_needed()
    gain = swap.get_attribute("data-gain")
    assert number(gain) == pytest.approx(number(gain))  # a number it is
    swap.hover()
    assert swap.evaluate("node => getComputedStyle(node, '::after').content") == f'"gain {gain}"'
    page.mouse.move(0, 0)
    assert swap.evaluate("node => getComputedStyle(node, '::after').content") == "none"
    manifest = read_json(folders["caesar"] / "edits" / results["probes"][0] / "manifest.json")
    own = {row["id"]: len(row["diff"]) for row in manifest["documents"]}
    shown = page.locator("#edits .cards").first.locator(".card")
    counts = {int(card.locator("h4").inner_text().split(",")[0]): card.locator(".swap").count() for card in shown.all()}
    assert counts == own


def test_texts_show_both_sides_of_the_contrast_and_every_pair(visits: dict[str, Visit]) -> None:
    page = visits["caesar"].page
    axes = page.locator("#effect .plot .xtitle").all_text_contents()
    wanted = ("log p(target) − log p(probe)", "log p(target)", "log p(probe)")
    assert [f"change of {name}, nats" for name in wanted] == axes[:3]
    table = page.locator("#units .table.tool")
    assert len(column(table, 1)) == 3
    table.locator("thead th").nth(1).locator("button").click()
    measured = [number(x) for x in column(table, 2)]
    assert measured == sorted(measured, reverse=True)
    said = page.locator(".summary").inner_text()
    assert "Taken apart, log p(target) moved by" in said
    assert "Another order of the same clean documents alone" in said
    assert "stands out by" in said


def test_suspects_are_sorted_and_filtered_and_show_their_pictures(visits: dict[str, Visit]) -> None:
    page = visits["audit"].page
    table = page.locator("#detection .table.tool", has_text="most suspicious")
    heads = [text.strip() for text in table.locator("thead th").all_inner_texts()]
    assert heads[:6] == ["rank", "document", "label", "predicted", "detectors agreeing", "labels of the nearest"]
    assert table.locator("tbody img.thumb").count() == len(column(table, 1)) > 20
    loss = heads.index("loss") + 1
    table.locator("thead th").nth(loss - 1).locator("button").click()
    values = [number(x) for x in column(table, loss)]
    assert values == sorted(values, reverse=True)
    table.locator("input").fill(runs.HOSTILE_CLASS)
    rows = table.locator("tbody tr:not([hidden])")
    assert 0 < rows.count() < len(values)
    assert all(runs.HOSTILE_CLASS in text for text in rows.all_inner_texts())
    table.locator("input").fill("")
    assert page.evaluate("window.hit") is None


def test_curves_have_a_logarithmic_axis_and_bars_their_lift(visits: dict[str, Visit]) -> None:
    page = visits["audit"].page
    plots = page.locator("#detection .plot")
    assert plots.count() == 2
    assert plots.first.evaluate("node => node.layout.xaxis.type") == "log"
    names = plots.first.evaluate("node => node.data.map(trace => trace.name)")
    assert names[0] == "fused_blind"
    assert names[-1] == "chance"
    assert plots.nth(1).evaluate("node => node.data.map(trace => trace.name)") == ["after", "lift"]


def test_a_text_that_is_a_script_tag_is_shown_as_text(browser: Any, tmp_path: Path) -> None:
    folder = runs.text_audit(tmp_path)
    page = browser.new_page()
    messages: list[str] = []
    page.on("console", lambda m: messages.append(m.text))
    page.goto((folder / "report.html").as_uri())
    table = page.locator("#detection .table.tool")
    table.locator("input").fill("script")
    rows = table.locator("tbody tr:not([hidden])")
    assert rows.count() == 1
    assert material.HOSTILE in rows.inner_text()
    assert page.evaluate("window.hit") is None
    assert messages == []
    page.close()


def test_runs_are_compared_in_one_page(browser: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    from typer.testing import CliRunner

    again = runs.digits(tmp_path / "seed-1", seed=1)
    out = tmp_path / "comparison.html"
    result = CliRunner().invoke(app, ["report", str(folders["digits"]), str(again), "--out", str(out)])
    assert result.exit_code == 0, result.output
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    visit = Visit(page, out)
    tables = page.locator("#runs .table.tool")
    assert column(tables.first, 1) == ["digits", "seed-1"]
    heads = [text.strip() for text in tables.first.locator("thead th").all_inner_texts()]
    assert heads == ["run", "recipe.seed"]
    assert visit.messages == []
    assert visit.outside() == []
    page.close()
