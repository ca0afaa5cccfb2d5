"""What notebooks show."""

from __future__ import annotations

import ast
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import infuser.html
from infuser.html import amplified, data_uri, number, png
from infuser.types import Edit, Effect, Estimate, Scores, Suspicion


@pytest.mark.parametrize("shape", [(5, 7), (1, 5, 7), (3, 5, 7), (2, 5, 7)])
def test_png_is_read_back_by_pillow_pixel_by_pixel(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    read = np.asarray(Image.open(io.BytesIO(png(pixels))))
    expected = pixels.transpose(1, 2, 0) if shape[0] == 3 else pixels.reshape(-1, 5, 7)[0]
    np.testing.assert_array_equal(read, expected)
    damaged = bytearray(png(pixels))
    damaged[45] ^= 0xFF
    with pytest.raises((OSError, SyntaxError)):
        Image.open(io.BytesIO(bytes(damaged))).load()


def test_png_of_a_view_with_strides() -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(pixels[::2, ::2])))), pixels[::2, ::2])


def test_difference_is_amplified_and_clipped_around_mid_grey() -> None:
    before = np.array([[0, 10, 100, 255]], np.uint8)
    after = np.array([[20, 10, 99, 230]], np.uint8)
    assert amplified(before, after).tolist() == [[255, 128, 118, 0]]


def test_numbers_have_a_true_minus() -> None:
    assert number(-0.5) == "−0.5"
    assert number(None) == "–"
    assert number(0.0, signed=True) == "0"


def nouns(name: str) -> list[object]:
    ids = np.arange(12)
    images = np.random.default_rng(0).integers(0, 256, (12, 1, 8, 8), dtype=np.uint8)
    labels = np.zeros(12, dtype=np.int64)
    estimate = Estimate(0.5, (0.2, 0.8), 20, (1, 2, 3))
    return [
        Scores(np.arange(12.0), ids, name, "f", (name,)),
        Edit(ids, images, 255 - images, labels, labels, None, name, np.ones(12)),
        Effect(name, "clean", name, estimate, 0.01, {}),
        Suspicion(np.arange(12.0), ids, name, name),
    ]


def test_nouns_show_themselves_escaped() -> None:
    for plain, hostile in zip(nouns("plain"), nouns("<script>x</script>"), strict=True):
        shown = hostile._repr_html_()
        assert "&lt;script&gt;x&lt;/script&gt;" in shown
        assert "<script" not in shown
        assert shown.replace("&lt;script&gt;x&lt;/script&gt;", "plain") == plain._repr_html_()


def test_nouns_show_their_content() -> None:
    scores, edit, effect, suspicion = (noun._repr_html_() for noun in nouns("m"))
    assert "11 (+11)" in scores
    assert edit.count("<img ") == 3 * 8
    assert data_uri(np.asarray(nouns("m")[1].before[0])) in edit
    assert "and 4 more" in edit
    for shown in ("+0.5", "[0.2, 0.8]", "<td>20</td>", "<td>3</td>"):
        assert shown in effect
    assert "<td>1</td><td>11</td>" in suspicion


def test_text_edits_and_unlabelled_targets() -> None:
    before = np.array([[1, 2, 3], [4, 5, 6]])
    after = np.array([[1, 9, 3], [4, 5, 6]])
    shown = Edit(np.arange(2), before, after, before, after, None, "greedy")._repr_html_()
    assert "1 changed" in shown
    assert "<img" not in shown


def test_only_the_standard_library_is_imported() -> None:
    tree = ast.parse(Path(infuser.html.__file__).read_text(encoding="utf-8"))
    outer = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    names = {alias.name for n in outer if isinstance(n, ast.Import) for alias in n.names}
    names |= {n.module for n in outer if isinstance(n, ast.ImportFrom) and n.module}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names
