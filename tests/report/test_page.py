"""Reports in a browser: what a reader does with them. Skipped where Chromium is missing; CI has it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import infuser.report as rep
from tests.report import material
from tests.report.browsing import Visit, column, needs_axe, needs_chromium, number, unfold, violations

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rep.report(
        tmp_path_factory.mktemp("full") / "report.html", *material.everything(), title="Infusion on digits"
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One figure and one of each thing that can be sorted: it loads in a fraction of the time."""
    effects = [e for e in material.regime().effects if e.measure == "log_odds" and e.arm in ("edit", "noise")]
    parts = [*effects, material.edit_view(), *material.token_diffs(), *material.suspicions(), material.documents()]
    return rep.report(tmp_path_factory.mktemp("small") / "report.html", *parts, material.provenance())


@pytest.fixture
def visit(browser: Any, small: Path) -> Iterator[Visit]:
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
    yield Visit(page, small)
    page.close()


def test_opens_quietly_and_asks_for_nothing(browser: Any, full: Path) -> None:
    visit = Visit(browser.new_page(viewport={"width": 1280, "height": 900}), full)
    unfold(visit.page)
    visit.page.wait_for_timeout(200)
    assert visit.messages == []
    assert visit.outside() == []
    plots = visit.page.locator(".plot")
    assert plots.count() >= 12
    assert plots.count() == visit.page.locator(".plot.js-plotly-plot").count()
    visit.page.close()


def test_policy_refuses_requests_and_foreign_scripts(visit: Visit) -> None:
    page = visit.page
    assert page.evaluate("fetch('https://example.org/').then(() => 'sent', () => 'refused')") == "refused"
    page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "window.hit = 1";
        document.body.append(script);
        const image = new Image();
        image.src = "https://example.org/pixel.png";
        document.body.append(image);
    }""")
    page.wait_for_timeout(200)
    assert page.evaluate("window.hit") is None
    assert any("Content Security Policy" in message for message in visit.messages)


def test_a_click_on_a_heading_sorts_and_another_turns_it_round(visit: Visit) -> None:
    table = visit.page.locator("#detection .table.tool", has_text="most suspicious").last
    head = table.locator("thead th").nth(4)
    assert head.inner_text().startswith("f-INE")
    before = [number(x) for x in column(table, 5)]
    head.locator("button").click()
    down = [number(x) for x in column(table, 5)]
    assert head.get_attribute("aria-sort") == "descending"
    assert down == sorted(before, reverse=True)
    assert down != before
    head.locator("button").focus()
    visit.page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert [number(x) for x in column(table, 5)] == sorted(before)
    table.locator("thead th").nth(3).locator("button").click()
    assert head.get_attribute("aria-sort") is None
    truth = column(table, 4)
    assert truth == sorted(truth)
    assert set(truth) == {"clean", "edited"}


def test_ids_are_sorted_as_numbers(visit: Visit) -> None:
    table = visit.page.locator("#detection .table.tool").last
    table.locator("thead th").nth(1).locator("button").click()
    ids = [int(x) for x in column(table, 2)]
    assert ids == sorted(ids)
    assert [str(i) for i in ids] != sorted(str(i) for i in ids)


def test_typing_filters_rows_and_says_how_many(visit: Visit) -> None:
    table = visit.page.locator("#detection .table.tool").last
    total = len(column(table, 1))
    table.locator("input").fill("Edited")
    shown = column(table, 4)
    assert 0 < len(shown) < total
    assert set(shown) == {"edited"}
    assert table.locator("output").inner_text() == f"{len(shown)} of {total} rows"
    table.locator("input").fill("no such row")
    assert column(table, 1) == []
    table.locator("input").fill("")
    assert len(column(table, 1)) == total


def test_cards_are_sorted_filtered_and_unfolded(visit: Visit) -> None:
    block = visit.page.locator("#edits .cards").first
    cards = block.locator(".card:visible")
    assert cards.count() == 12
    block.locator("select").select_option("L2, 1/255")
    shown = [float(x) for x in block.locator(".card:visible [data-key='L2, 1/255'] dd").all_inner_texts()]
    assert shown == sorted(shown, reverse=True)
    everything = [float(x) for x in block.locator("[data-key='L2, 1/255'] dd").all_text_contents()]
    assert shown == sorted(everything, reverse=True)[:12]
    block.locator("button.more").click()
    assert cards.count() == 28
    block.locator("input").fill("label 3")
    assert 0 < cards.count() < 28
    assert all("label 3" in text for text in cards.locator("h4").all_inner_texts())


def test_pointing_at_a_probe_names_it(visit: Visit) -> None:
    point = visit.page.locator("#effect .plot").first.locator(".scatterlayer .trace").first.locator("path.point").first
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    visit.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    hover = visit.page.locator(".hoverlayer .hovertext")
    hover.first.wait_for()
    assert "edit, " in hover.first.text_content()


def test_pointing_at_a_substitution_shows_its_gain(visit: Visit) -> None:
    swap = visit.page.locator("#tokens .swap", has_text="cat")
    swap.hover()
    assert swap.evaluate("node => getComputedStyle(node, '::after').content") == '"gain +0.113"'
    visit.page.mouse.move(0, 0)
    assert swap.evaluate("node => getComputedStyle(node, '::after').content") == "none"
    swap.focus()
    assert swap.evaluate("node => getComputedStyle(node, '::after').content") == '"gain +0.113"'


def test_a_document_that_is_a_script_tag_is_text(visit: Visit) -> None:
    assert visit.page.locator("#tokens del", has_text=material.HOSTILE).is_visible()
    assert visit.page.evaluate("window.hit") is None
    assert visit.page.locator("#tokens ins", has_text="<img src=x onerror=window.hit=1>").is_visible()


def test_the_reader_chooses_dark_and_figures_follow(visit: Visit) -> None:
    from playwright.sync_api import expect

    page = visit.page
    title = page.locator("#effect .plot text.ytitle, #effect .plot text.xtitle").first

    def expect_colours(paper: str, ink: str) -> None:
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == paper
        # Plotly takes a title out and puts it back while it draws, so a figure's colour is waited for.
        expect(title).to_have_css("fill", ink)

    light = ("rgb(255, 255, 255)", "rgb(28, 30, 33)")
    expect_colours(*light)
    button = page.locator("#theme")
    assert button.get_attribute("aria-pressed") == "false"
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    expect_colours("rgb(20, 22, 26)", "rgb(230, 231, 233)")
    button.click()
    expect_colours(*light)
    page.emulate_media(color_scheme="dark")
    expect_colours(*light)  # the choice stands against the system


def test_the_system_chooses_dark_until_a_reader_does(visit: Visit) -> None:
    page = visit.page
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"
    assert page.locator("#theme").get_attribute("aria-pressed") == "true"


def test_a_phone_scrolls_downwards_only(browser: Any, full: Path) -> None:
    page = browser.new_page(
        viewport={"width": 390, "height": 844}, device_scale_factor=2, is_mobile=True, has_touch=True
    )
    visit = Visit(page, full)
    unfold(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    wide = page.evaluate("""() => [...document.querySelectorAll("section > *, .plot, .card, .controls")]
        .filter(n => n.getBoundingClientRect().right > 391).map(n => n.className || n.tagName)""")
    assert wide == []
    assert (
        float(page.evaluate("getComputedStyle(document.querySelector('.summary p')).fontSize").removesuffix("px")) >= 16
    )
    assert visit.messages == []
    page.close()


def test_everything_is_reached_by_keyboard(visit: Visit) -> None:
    page = visit.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    reached = set()
    for _ in range(400):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.tagName + ' ' + (document.activeElement.closest('section') || {}).id")
        )
        if "PRE provenance" in reached:
            break
    for wanted in (
        "SUMMARY edits",
        "SELECT edits",
        "INPUT detection",
        "BUTTON detection",
        "SPAN tokens",
        "PRE provenance",
    ):
        assert wanted in reached


@needs_axe
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_no_violation(browser: Any, full: Path, scheme: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    Visit(page, full)
    unfold(page)
    assert violations(page) == []
    page.close()


@needs_axe
def test_axe_would_see_a_violation(visit: Visit) -> None:
    assert violations(visit.page) == []
    visit.page.evaluate("document.querySelector('.cards input').parentElement.outerHTML = '<input>'")
    assert [found.partition(":")[0] for found in violations(visit.page)] == ["label"]
