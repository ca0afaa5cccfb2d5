"""How the nouns show themselves in a notebook: HTML from the standard library alone, everything from data escaped."""

from __future__ import annotations

import base64
import html
import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from infuser.types import Array, Edit, Effect, Scores, Suspicion

AMPLIFIED = 10  # differences of a few grey levels cannot be seen; ten times as large they can
_SHOWN = 8  # rows of a notebook table


def png(pixels: Array) -> bytes:
    """Return an image as a lossless PNG file.

    Args:
        pixels: uint8, (H, W), (1, H, W) or (3, H, W); of other channel counts the first is shown.

    Source: Portable Network Graphics, W3C Recommendation, sections 5, 9 (filter 0) and 11.

    >>> import numpy as np
    >>> png(np.zeros((1, 8, 8), np.uint8))[1:4]
    b'PNG'
    """
    planes = pixels[None] if pixels.ndim == 2 else pixels
    if len(planes) != 3:
        planes = planes[:1]
    channels, height, width = planes.shape
    rows = planes.transpose(1, 2, 0).reshape(height, width * channels)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b""))
    packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def data_uri(pixels: Array) -> str:
    """Return an image as the address of an `img` that needs no file beside the page."""
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode("ascii")


def amplification(before: Array, after: Array) -> int:
    """Return how many times larger differences can be shown without being cut off, at most ten.

    >>> import numpy as np
    >>> amplification(np.array([[100]], np.uint8), np.array([[116]], np.uint8))
    7
    """
    largest = int(abs(after.astype("int32") - before.astype("int32")).max(initial=1))
    return max(1, min(AMPLIFIED, 127 // max(largest, 1)))


def amplified(before: Array, after: Array, times: int = AMPLIFIED) -> Array:
    """Return the difference of two uint8 images, `times` as large, around mid-grey: lighter was raised.

    >>> import numpy as np
    >>> amplified(np.array([[100, 100]], np.uint8), np.array([[101, 98]], np.uint8)).tolist()
    [[138, 108]]
    """
    difference = after.astype("int32") - before.astype("int32")
    return cast("Array", (128 + times * difference).clip(0, 255).astype("uint8"))


def is_image(documents: Array) -> bool:
    """Say whether documents (k, ...) are stored as pictures: uint8 (k, C, H, W)."""
    return bool(documents.dtype == "uint8" and documents.ndim == 4)


def number(value: float | None, digits: int = 3, signed: bool = False) -> str:
    """Return a number for people, with a true minus sign; a dash where there is none.

    >>> number(-0.12345), number(2.0, signed=True), number(float("nan"))
    ('−0.123', '+2', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    shown = f"{value:+.{digits}g}" if signed and value else f"{value:.{digits}g}"
    return shown.replace("-", "−")


def scores_html(scores: Scores) -> str:
    """Return the strongest proponents and opponents of the first queries."""
    rows = []
    for q, name in enumerate(scores.queries[:_SHOWN]):
        value = dict(zip(scores.ids.tolist(), scores.values[q].tolist(), strict=True))
        k = min(5, len(scores.ids))
        named = [
            ", ".join(f"{i} ({number(value[i], signed=True)})" for i in ids.tolist())
            for ids in (scores.top(k, q), scores.bottom(k, q))
        ]
        rows.append([name, *named])
    queries, documents = scores.values.shape
    caption = (
        f"Scores of {documents} documents for {_counted(queries, 'query', 'queries')}: {scores.method}; {scores.unit}"
    )
    return _table(caption, ["query", "proponents (raise f)", "opponents (lower f)"], rows, queries)


def edit_html(edit: Edit) -> str:
    """Return the first edited documents: pictures before, after and their difference, or the tokens that changed."""
    rows: list[list[object]] = []
    for i, id_ in enumerate(edit.ids[:_SHOWN].tolist()):
        before, after = edit.before[i], edit.after[i]
        if is_image(edit.before):
            shown: list[object] = [
                _Picture(before, f"document {id_} before"),
                _Picture(after, f"document {id_} after"),
                _Picture(amplified(before, after), f"document {id_}, difference times {AMPLIFIED}"),
            ]
        else:
            changed = int((before != after).sum())
            shown = [f"{before.size} values", f"{changed} changed", ""]
        targets = [edit.targets_before[i], edit.targets_after[i]]
        label = "–" if targets[0].ndim else " → ".join(dict.fromkeys(str(t) for t in targets))
        gain = number(None if edit.gains is None else float(edit.gains[i]), signed=True)
        rows.append([id_, label, *shown, gain])
    within = f" within {edit.constraint}" if edit.constraint is not None else ", without a ball"
    caption = f"Edit of {_counted(len(edit), 'document')}{within}: {edit.made_by}"
    head = ["id", "label", "before", "after", f"difference ×{AMPLIFIED}", "predicted gain"]
    return _table(caption, head, rows, len(edit))


def effect_html(effect: Effect) -> str:
    """Return the effect as a row: both arms, mean, interval, p, n and seeds."""
    estimate = effect.estimate
    interval = "–" if estimate.interval is None else "[" + ", ".join(number(x) for x in estimate.interval) + "]"
    head = ["arm", "control", "mean difference", f"{estimate.level:.0%} interval", "p", estimate.unit_of_n, "seeds"]
    p = number(effect.p, 2)
    mean = number(estimate.value, signed=True)
    row = [effect.arm, effect.control, mean, interval, p, estimate.n, len(estimate.seeds)]
    return _table(f"Effect on {effect.measure}", head, [row], 1)


def suspicion_html(suspicion: Suspicion) -> str:
    """Return the most suspicious documents."""
    value = dict(zip(suspicion.ids.tolist(), suspicion.values.tolist(), strict=True))
    top = suspicion.top(min(_SHOWN, len(suspicion))).tolist()
    rows = [[rank + 1, id_, number(value[id_])] for rank, id_ in enumerate(top)]
    caption = f"Suspicion of {_counted(len(suspicion), 'document')} by {suspicion.detector} ({suspicion.told})"
    return _table(caption, ["rank", "id", "suspicion"], rows, len(suspicion))


class _Picture:
    """A cell that holds an image."""

    def __init__(self, pixels: Array, alt: str) -> None:
        self.pixels, self.alt = pixels, alt

    def __str__(self) -> str:
        style = "width:48px;image-rendering:pixelated"
        return f'<img src="{data_uri(self.pixels)}" alt="{html.escape(self.alt)}" style="{style}">'


def _counted(n: int, one: str, many: str | None = None) -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[object]], total: int) -> str:
    body = [
        "<tr>" + "".join(f"<td>{c if isinstance(c, _Picture) else html.escape(str(c))}</td>" for c in row) + "</tr>"
        for row in rows
    ]
    if total > len(body):
        body.append(f'<tr><td colspan="{len(head)}">and {total - len(body):,} more</td></tr>')
    columns = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    return (
        f"<table><caption>{html.escape(caption)}</caption><thead><tr>{columns}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table>"
    )
