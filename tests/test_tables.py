"""The numbers of README and docs are those of experiments/results."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tables
import tables_format

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", tables.PAGES)
def test_the_numbers_of_a_page_are_fresh(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert tables.renewed(text) == text, "run: python experiments/tables.py"


def test_every_table_has_its_place() -> None:
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in tables.PAGES)
    assert sorted(re.findall(r"<!-- numbers: ([\w-]+) -->", text)) == sorted(tables.PLACES)


def test_a_typed_number_would_be_seen() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert tables.renewed(page.replace(" predictions flip", " predictions do flip")) == page
    assert page.count(" predictions flip") == 1


def test_a_leading_zero_is_left_out_and_no_other() -> None:
    values = (0.5, -0.5, 10.05, 100.0, -20.0, 1.0)
    assert [tables_format.two_places(value) for value in values] == [".50", "-.50", "10.05", "100.00", "-20.00", "1.00"]
    assert [tables_format.three_places(value) for value in (0.1234, 20.1234)] == [".123", "20.123"]
