"""Reports without a browser: one file that stands alone, escapes everything, and is the same bytes every time."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import infuser.report as rep
from infuser.errors import InfuserError
from infuser.report import axes, forest, plots
from infuser.report.blocks import Figure, Prose, Row, Table
from infuser.report.report import render
from infuser.report.sections import sections
from infuser.types import Edit, Effect, Estimate, Scores
from tests.report import material

VOID = {"meta", "img", "input", "br", "link", "hr"}


class Page(HTMLParser):
    """The elements of a page, with whatever is not closed or closed twice."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.faults: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(text)
        self.faults += [f"<{tag}> is not closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}, open {self.open[-3:]}")
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif not (self.open and self.open[-1] == "style"):
            self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def text() -> str:
    return render(material.everything(), "Infusion on digits")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the library, whose five megabytes need not be parsed for every case."""
    monkeypatch.setattr(plots, "library", lambda: "/* plotly */")


def test_every_element_is_closed_and_every_id_and_reference_fits(page: Page) -> None:
    assert page.faults == []
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    pointed = [a["href"].removeprefix("#") for a in page.of("a") if a.get("href")]
    pointed += [a["aria-labelledby"] for _, a in page.elements if a.get("aria-labelledby")]
    assert len(pointed) > 10
    assert set(pointed) <= set(ids)


def test_the_check_of_elements_sees_a_fault() -> None:
    assert Page("<div><p>a</div>").faults != []


def test_page_refers_to_nothing_outside_itself(page: Page) -> None:
    addresses = [a.get(key) for _, a in page.elements for key in ("src", "href", "srcset", "action", "data", "poster")]
    outside = [x for x in addresses if x is not None and not x.startswith(("data:image/png;base64,", "#"))]
    assert outside == []
    assert page.of("link") == []
    policy = next(a["content"] for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-")
    assert "unsafe-eval" not in policy


def test_policy_allows_the_two_scripts_of_the_page_and_no_other(page: Page) -> None:
    import base64
    import hashlib

    policy = next(a["content"] for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy") or ""
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    kinds = [a.get("type") for a in page.of("script")]
    assert kinds == ["application/json", None, None]
    found = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in page.scripts[1:]]
    assert found == allowed


def test_no_inline_event_handlers(page: Page) -> None:
    assert [key for _, a in page.elements for key in a if key.startswith("on")] == []


def test_one_plotly_and_a_size_that_can_be_mailed(text: str) -> None:
    assert text.count("plotly.js v") == 1
    assert len(text.encode()) < 8_000_000


def test_a_page_without_figures_carries_no_plotly() -> None:
    small = render([rep.Summary("Asked?", ("Found.",))], "t")
    assert len(small) < 40_000
    assert Page(small).faults == []


def test_same_parts_give_the_same_bytes(text: str, tmp_path: Path) -> None:
    path = rep.report(tmp_path / "report.html", *material.everything(), title="Infusion on digits")
    assert path.read_bytes() == text.encode()
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert render(material.everything(), "Another title") != text


def test_every_kind_of_part_makes_its_section(page: Page) -> None:
    shown = [a["id"] for a in page.of("section") if a.get("id")]
    assert shown == [
        "caveats", "effect", "transfer", "probes", "edits", "tokens", "predicted", "scores", "detection", "trade-off",
        "metrics", "trials", "provenance",
    ]  # fmt: skip


def hostile_parts(name: str) -> list[object]:
    images, labels = material.digits()
    classes = tuple(f"{name}{i}" for i in range(10))
    estimate = Estimate(1.0, (0.5, 1.5), 8, (1,), unit_of_n=name, method=name)
    ids = np.arange(3)
    scores = Scores(np.arange(3.0), ids, name, name, (name,))
    return [
        rep.Summary(name, (name,)),
        rep.Caveat(name, name),
        Effect(name, name, name, estimate, 0.1, {name: 1.0}),
        rep.Regime(
            name,
            (Effect("edit", "clean", "log_odds", estimate, 0.1, {name: 1.0}),),
            (rep.ArmStats(name, {name: name}),),
        ),
        rep.ProbeView(name, name, 0, 1, classes, {name: np.full(10, 0.1), name + "2": np.full(10, 0.1)}),
        rep.EditView(
            Edit(ids, images[ids], images[ids], labels[ids], labels[ids], None, name), name, classes, None, {name: ids}
        ),
        rep.TokenDiff(1, (name,), (name + "x",), np.array([0.1]), name),
        rep.Documents(ids, (name, name, name), labels[ids], classes),
        scores,
        rep.Detection(
            name,
            (rep.Roc(name, np.array([0.1, 1.0]), np.array([0.5, 1.0])),),
            (rep.DetectorResult(name, name, estimate),),
            1,
            9,
        ),
        rep.TradeOff(name, np.array([0.0, 1.0]), np.array([1.0, 0.0]), estimate),
        rep.Metric(name, estimate),
        rep.PredictedMeasured((name,), np.ones(1), np.ones(1), name),
        rep.TransferMatrix({(name, name): Effect(name, name, name, estimate, None, {})}),
        rep.Provenance(name, {name: name}, {name: name}, {name: name}),
        rep.ComparedRun(
            name,
            {name: name},
            (
                rep.Regime(
                    name,
                    (
                        Effect(name, name, name, estimate, None, {}),
                        Effect("edit", "clean", name, estimate, 0.1, {name: 1.0}),
                    ),
                ),
            ),
            (rep.Metric(name, estimate),),
        ),
        rep.Sheet(name, {name: {name: name}}, name, name),
    ]


@pytest.mark.usefixtures("light")
@pytest.mark.parametrize(
    "name",
    [
        "</script><script>window.hit = 1</script>",
        '"><img src=x onerror=hit()>',
        "<!--<script>",
        "{{ 7*7 }}",
        "</style>",
    ],
)
def test_whatever_data_says_is_text(name: str) -> None:
    plain = Page(render(hostile_parts("plain"), "plain"))
    page = Page(render(hostile_parts(name), name))
    assert page.faults == []
    # The same elements in the same order with the same attribute names: nothing of the text was read as a tag.
    assert [(t, list(a)) for t, a in page.elements] == [(t, list(a)) for t, a in plain.elements]
    assert page.text.count(name) > 20
    specs = json.loads(page.scripts[0])
    assert json.dumps(specs).count(json.dumps(axes.safe(name))[1:-1]) > 5


def test_specifications_are_valid_plotly_and_colours_are_the_pages_own() -> None:
    go = pytest.importorskip("plotly.graph_objects")
    css = (Path(rep.__file__).parent / "style.css").read_text()
    figures = [
        figure
        for section in sections(material.everything())
        for block in section.blocks
        for figure in (block.figures if isinstance(block, Row) else (block,))
        if isinstance(figure, Figure)
    ]
    assert len(figures) >= 12
    for figure in figures:
        written = json.dumps(figure.spec)
        for token in set(re.findall(r'"@(\w+)"', written)):
            assert f"--{token}:" in css
        go.Figure(json.loads(re.sub(r'"@\w+"', '"#123456"', written)))
        assert figure.alt
    with pytest.raises(ValueError, match="Invalid"):
        go.Figure({"data": [{"type": "scatter", "mode": "wavy", "x": [1]}]})


def test_forest_places_values_where_they_belong() -> None:
    effects = [material.effect("edit", 0.9, 0.2, "log_odds"), material.effect("noise", 0.0, 0.1, "log_odds")]
    spec = forest.forest(effects, ["edit", "noise"], [True, False]).spec
    points, black_bars, _, accent_bars, accent_means = spec["data"]
    expected = [*effects[0].per_probe.values(), *effects[1].per_probe.values()]
    assert points["x"] == expected
    assert all(abs(y + row) <= 0.25 for y, row in zip(points["y"], [0] * 20 + [1] * 20, strict=True))
    assert accent_bars["x"] == [*effects[0].interval, None]
    assert black_bars["x"] == [*effects[1].interval, None]
    assert black_bars["y"] == [-1, -1, None]
    assert accent_means["x"] == [effects[0].value]
    assert "n = 20 probes, 3 seeds" in accent_means["text"][0]


def test_panels_that_share_their_names_share_their_rows() -> None:
    def drawn(second: list[str]) -> Row:
        effects = [material.effect(arm, 0.5, 0.1, "log_odds") for arm in ("noise", "edit", "random_docs")]
        effects += [material.effect(arm, 0.01, 0.1, "probability") for arm in second]
        (section,) = sections(effects)
        (row,) = (block for block in section.blocks if isinstance(block, Row))
        return row

    row = drawn(["random_docs", "edit", "noise"])
    names = [figure.spec["layout"]["yaxis"]["ticktext"] for figure in row.figures]
    assert names == [["edit", "noise", "random docs"]] * 2
    assert row.layout == "forest"
    black_means = row.figures[1].spec["data"][2]
    assert black_means["y"] == [-1, -2]
    assert [text.partition(" − ")[0] for text in black_means["text"]] == ["noise", "random docs"]
    assert drawn(["edit", "noise"]).layout == "stack"  # other rows: every panel says its own


def test_each_control_has_its_own_zero_line() -> None:
    effects = [material.effect("edit", 0.5, 0.1, "log_odds", control) for control in ("clean", "noise")]
    (section,) = sections([*effects, material.effect("noise", 0.1, 0.1, "log_odds")])
    rows = [block for block in section.blocks if isinstance(block, Row)]
    assert [row.caption.partition(",")[0] for row in rows] == ["Difference from clean", "Difference from noise"]
    assert [len(row.figures[0].spec["layout"]["yaxis"]["ticktext"]) for row in rows] == [2, 1]


def test_insertion_gets_its_own_axis_only_when_it_would_flatten_the_rest() -> None:
    def drawn(insertion: float) -> list[int]:
        effects = [
            material.effect("edit", 0.9, 0.1, "log_odds"),
            material.effect("insert_k", insertion, 0.1, "log_odds"),
        ]
        (section,) = sections(effects)
        return [len(block.figures) for block in section.blocks if isinstance(block, Row)]

    assert drawn(11.0) == [1, 1]
    assert drawn(1.2) == [1]


def test_a_part_of_another_kind_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(InfuserError, match=r"cannot show this. Got: dict"):
        rep.report(tmp_path / "r.html", {"a": 1})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("light")
def test_the_package_is_the_verb(tmp_path: Path) -> None:
    path = rep(tmp_path / "r.html", material.effect("edit", 0.9, 0.1, "log_odds"), title="Called")  # type: ignore[operator]
    assert "<title>Called</title>" in path.read_text(encoding="utf-8")


@pytest.mark.usefixtures("light")
def test_effect_without_interval_points_or_p_is_shown() -> None:
    bare = Effect("edit", "clean", "log_odds", Estimate(0.4, None, 2, (1,)), None, {})
    page = Page(render([bare, Estimate(0.2, None, 1)], "t"))
    assert page.faults == []
    assert "+0.4" in page.text


@pytest.mark.usefixtures("light")
def test_scores_that_are_missing_with_a_reason_are_shown() -> None:
    scores = Scores(np.array([[1.0, np.nan, 0.5]]), np.arange(3), "m", "mu", reasons={"1": "never trained on"})
    assert Page(render([scores], "t")).faults == []


def test_records_check_what_they_hold() -> None:
    with pytest.raises(InfuserError, match="probabilities and classes differ"):
        rep.ProbeView("p", "text", 0, 1, ("a", "b"), {"clean": np.ones(3)})
    with pytest.raises(InfuserError, match="influence is not one number per document"):
        rep.EditView(material.edit(), influence=np.ones(3))
    with pytest.raises(InfuserError, match="document 4: tokens before and after differ in number"):
        rep.TokenDiff(4, ("a",), ("a", "b"))


def test_pictures_of_edits_keep_to_a_budget_and_say_so() -> None:
    rng = np.random.default_rng(0)
    before = rng.integers(0, 256, (300, 3, 64, 64), dtype=np.uint8)
    labels = np.zeros(300, dtype=np.int64)
    edit = Edit(np.arange(300), before, 255 - before, labels, labels, None, "inverted", np.arange(300.0))
    text = render([edit], "t")
    assert len(text) < 2_600_000
    shown = re.search(r"(\d+) of them are shown", text)
    assert shown is not None
    assert text.count("before</figcaption>") == int(shown[1]) < 300
    assert "document 299 before" in text  # the largest predicted gain is among them
    assert "document 0 before" not in text


def test_token_ids_are_diffed_without_padding() -> None:
    before = np.array([[5, 6, 7, -1], [1, 2, 3, 4]])
    after = np.array([[5, 9, 7, -1], [1, 2, 3, 8]])
    edit = Edit(np.array([10, 11]), before, after, before, after, None, "greedy")
    page = Page(render([rep.EditView(edit, pieces={5: "Once", 6: " a", 9: " the", 7: " cat"})], "t"))
    words = " ".join(page.text.split())
    assert "1 of 3" in words
    assert "1 of 4" in words
    assert [t for t, _ in page.elements].count("ins") == 2
    assert "-1" not in words


@pytest.mark.usefixtures("light")
def test_results_json_becomes_sentences_effects_and_points() -> None:
    parts = rep.from_results(material.results(), config="k: 28", hashes={"data": "abc"})
    summary, caveat, regime, provenance = parts
    assert isinstance(summary, rep.Summary)
    assert (
        "28 of the 1,437 training documents of digits (1.9\xa0%) are changed by at most 16/255 a pixel" in summary.asked
    )
    assert "+0.86 [0.76, 0.96] against clean (n = 20 probes, 3 seeds, p = 0.0001)" in summary.found[0]
    assert len(summary.found) == 3
    assert caveat == rep.Caveat("", "too few seeds: 3")
    assert isinstance(regime, rep.Regime)
    edit = next(e for e in regime.effects if e.arm == "edit" and e.measure == "log-odds")
    assert len(edit.per_probe) == 20
    assert {e.measure for e in regime.effects} == {"log-odds", "probability"}
    assert isinstance(provenance, rep.Provenance)
    assert Page(render(parts, "t")).faults == []


@pytest.mark.usefixtures("light")
def test_runs_are_compared_side_by_side() -> None:
    a, b = material.results(), material.results() | {"radius": 8}
    b["regimes"] = {"last_epoch": {**b["regimes"]["last_epoch"], "effects": b["regimes"]["last_epoch"]["effects"][:2]}}
    configs = {"runs/a": {"k": 28, "recipe": {"lr": 0.1}}, "runs/b": {"k": 28, "recipe": {"lr": 0.2}}}
    found = sections(rep.compare_results({"runs/a": a, "runs/b": b}, configs))
    assert [section.id for section in found] == ["runs"]
    tables = {block.caption: block for block in found[0].blocks if isinstance(block, Table)}
    settings = tables["Settings that differ"]
    assert settings.columns == ("run", "recipe.lr")  # k is alike
    assert [[cell.text for cell in row] for row in settings.rows] == [["runs/a", "0.1"], ["runs/b", "0.2"]]
    [alike] = [block for block in found[0].blocks if isinstance(block, Prose)]
    assert alike.code == "k: 28"
    arms = next(table for caption, table in tables.items() if "log-odds" in caption)
    assert arms.columns == ("run", *(name.replace("_", " ") for name in material.ARMS))
    assert [cell.text for cell in arms.rows[0]][1] == "+0.86 [0.76, 0.96]"
    assert [cell.text for cell in arms.rows[1]][3:] == ["–"] * 4  # an arm that a run does not have
    page = Page(render(rep.compare_results({"runs/a": a, "runs/b": b}, configs), "Two runs"))
    assert page.faults == []


@pytest.mark.usefixtures("light")
@pytest.mark.parametrize(
    ("names", "expected"),
    [(("a", "b"), [("The runs have the same settings.", ""), ("", "Alike in all runs")]), (("a",), [("", "Settings")])],
)
def test_runs_of_the_same_settings_have_no_table_of_differences(names, expected) -> None:
    results, configs = {name: material.results() for name in names}, {name: {"k": 28} for name in names}
    [section] = sections(rep.compare_results(results, configs))
    prose = [block for block in section.blocks if isinstance(block, Prose)]
    assert [(" ".join(block.paragraphs), block.title) for block in prose] == expected
    assert prose[-1].code == "k: 28"


def test_audits_are_compared_by_their_recall() -> None:
    audit = {
        "n": 100, "dataset": "digits", "model": "simple_cnn", "ranked_by": "loss", "suspects": [], "planted": None,
        "precision": {"rows": [], "reason": "unknown: no documents were named as trusted"},
        "recall": {"kind": "label_flips", "reason": None, "rows": [
            {"detector": "loss", "depth": 0.1, "value": 0.8, "ci95": [0.6, 0.9], "n": 20, "seeds": [0]}]},
    }  # fmt: skip
    compared = rep.compare_results({"a": audit, "b": audit | {"model": "mlp"}})
    assert compared[0].found[1].startswith("b: Of 20 planted label flips, loss has 80 % [60, 90]")
    found = sections(compared)
    tables = [block for block in found[0].blocks if isinstance(block, Table)]
    assert tables[0].columns == ("run", "model")
    assert [cell.text for cell in tables[1].rows[0]][1:] == ["0.80 [0.60, 0.90]"] * 2
    said = rep.from_results(audit)[0]
    assert said.found[0].startswith("Of 20 planted label flips, loss has 80 % [60, 90] in the first 10 % of its list")


def test_what_is_no_results_file_is_refused() -> None:
    with pytest.raises(InfuserError, match="not the results of a run"):
        rep.from_results({"schema": 1})
