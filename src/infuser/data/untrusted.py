"""Bytes from strangers into arrays: whatever a file claims is checked before memory or time is spent on it.

Nothing here unpickles, follows a path that a file names, or decodes an image before its header has been read.
"""

from __future__ import annotations

import io
import math
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Literal

import numpy as np

from infuser.errors import InfuserError, listed
from infuser.types import Array

MAX_PIXELS = 2**24  # of one image: 4,096 x 4,096
MAX_BYTES = 2**33  # of one array: 8 GiB
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM")
_GREY = {"1", "L"}
_COLOUR = {"RGB", "P", "CMYK", "YCbCr"}
_ALPHA = {"RGBA": "RGB", "LA": "L", "PA": "RGB"}

Mode = Literal["L", "RGB"]


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Return a regular file opened for reading; the caller closes it.

    Raises:
        InfuserError: it is missing, cannot be read, or is a folder, pipe or device.
    """
    path = Path(path)
    try:
        # Asked before opening: opening a pipe that nobody writes to would wait for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise InfuserError(f"{path.name} is not a regular file", got=str(path))
        return open(path, "rb")
    except FileNotFoundError as error:
        raise InfuserError(f"{path.name} is missing", got=str(path), remedy="check the path") from error
    except (OSError, ValueError) as error:
        raise InfuserError(f"cannot read {path.name}", got=str(error)) from error


def require_inside(root: Path, paths: Iterable[Path]) -> None:
    """Refuse links that lead out of a folder.

    Raises:
        InfuserError: there are some; all are listed.
    """
    inside = root.resolve()
    outside = [path for path in paths if not path.resolve().is_relative_to(inside)]
    if outside:
        raise InfuserError(
            f"links in {root.name} lead out of it",
            got=listed([str(path.relative_to(root)) for path in outside]),
            remedy="copy the files",
        )


def read_array(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[np.generic], what: str) -> Array:
    """Return the array that the rest of `file` holds, which must be exactly as long as `shape` and `dtype` say.

    At most one byte more than that is read, so that a compressed file cannot expand beyond its own header.
    """
    size = math.prod(shape) * dtype.itemsize
    require_memory(size, what)
    if size == 0:
        raise InfuserError(f"{what} is empty", got=f"shape {shape}")
    parts, missing = [], size + 1
    while missing and (part := file.read(min(missing, 2**24))):
        parts.append(part)
        missing -= len(part)
    if missing != 1:
        raise InfuserError(
            f"{what} has another size than its header says",
            got=f"{size + 1 - missing} bytes" if missing else f"more than {size} bytes",
            expected=f"{size} bytes for {' x '.join(map(str, shape)) or 'one'} of {dtype}",
            causes=["the file was truncated", "the file is not what its name says"],
            remedy="fetch the file again",
        )
    return np.frombuffer(b"".join(parts), dtype).reshape(shape)


def require_memory(size: int, what: str) -> None:
    """Refuse an array of more than MAX_BYTES.

    Raises:
        InfuserError: it is larger.
    """
    if size > MAX_BYTES:
        raise InfuserError(
            f"{what} is too large for a data set in memory",
            got=f"{size / 2**30:.3g} GiB",
            expected=f"at most {MAX_BYTES / 2**30:g} GiB",
            causes=["a damaged or hostile header"],
        )


def decode_image(raw: bytes, what: str) -> Array:
    """Return an encoded image as uint8 (C, H, W), C = 1 for grey and 3 for colour.

    The size that the header claims is checked before a pixel is decoded. Rotation flags are not applied.

    Raises:
        InfuserError: not a whole image of a known format, too many pixels, more than 8 bits, several frames, or
            transparent pixels.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
            width, height = image.size
            if not 0 < width * height <= MAX_PIXELS:
                raise InfuserError(
                    f"{what} has too many pixels", got=f"{width} x {height}", expected=f"at most {MAX_PIXELS} pixels"
                )
            if (frames := getattr(image, "n_frames", 1)) != 1:
                raise InfuserError(f"{what} has several frames", got=frames, expected="one")
            return _pixels(image, what)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InfuserError(f"{what} has too many pixels", got=str(error), expected=f"at most {MAX_PIXELS}") from error
    except InfuserError:
        raise
    # The decoders raise whatever a malformed file makes them stumble over: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise InfuserError(
            f"{what} is not an image that can be read",
            got=f"{len(raw)} bytes ({type(error).__name__}: {error})",
            expected=f"a whole {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image",
            causes=["it is truncated or damaged"],
        ) from error


def _pixels(image: object, what: str) -> Array:
    from PIL import Image

    assert isinstance(image, Image.Image)
    if image.mode in _ALPHA or "transparency" in image.info:
        opaque = _ALPHA.get(image.mode, "L" if image.mode in _GREY else "RGB")
        alpha = image.convert("RGBA").getchannel("A")
        if np.asarray(alpha).min() < 255:
            raise InfuserError(
                f"{what} has transparent pixels", expected="opaque pixels", remedy="paint it on a background"
            )
        # By way of RGBA, since a palette with transparency does not convert to RGB without a warning.
        image = image.convert("RGBA").convert(opaque)
    elif image.mode in _GREY or image.mode in _COLOUR:
        image = image.convert("L" if image.mode in _GREY else "RGB")
    else:
        raise InfuserError(
            f"{what} is not an 8-bit image", got=f"mode {image.mode}", expected="grey, colour or a palette in 8 bits"
        )
    pixels = np.array(image)  # a copy that owns its memory
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def decode_images(items: Iterable[tuple[str, bytes]], count: int, what: str, mode: Mode | None = None) -> Array:
    """Return `count` encoded images of one size as uint8 (count, C, H, W).

    Args:
        items: (name for messages, encoded bytes) in order, read once.
        count: how many there are.
        what: the data set, for messages.
        mode: "L" refuses colour, "RGB" makes grey images colour; None keeps grey if all are grey, else makes RGB.

    Raises:
        InfuserError: an image cannot be read, or the sizes differ (all sizes are listed; nothing is resized).
    """
    if count < 1:
        raise InfuserError(f"{what} is empty", expected="at least one image")
    images: Array | None = None
    sizes: dict[tuple[int, int], list[str]] = {}
    done = 0
    for name, raw in items:
        if done == count:
            raise InfuserError(f"{what} holds more images than it says", expected=count)
        pixels = _in_mode(decode_image(raw, name), mode, name)
        channels, height, width = pixels.shape
        sizes.setdefault((height, width), []).append(name)
        if images is None:
            require_memory(count * pixels.size, what)
            images = np.empty((count, *pixels.shape), np.uint8)
        if channels > images.shape[1]:
            require_memory(3 * images.size, what)
            images = np.repeat(images, 3, axis=1)
        if len(sizes) == 1:
            images[done] = pixels  # a grey image among colour ones is repeated over the channels
        done += 1
    if len(sizes) > 1:
        by_count = sorted(sizes.items(), key=lambda item: -len(item[1]))
        raise InfuserError(
            f"{what} holds images of {len(sizes)} sizes; they are not resized, since that would change every pixel",
            got="; ".join(f"{w} x {h}: {len(names)} ({listed(names, 3)})" for (h, w), names in by_count[:8]),
            expected="one size",
            remedy="resize or crop the images yourself and save them losslessly (PNG)",
        )
    if images is None or done != count:
        raise InfuserError(f"{what} holds fewer images than it says", got=done, expected=count)
    return images


def _in_mode(pixels: Array, mode: Mode | None, name: str) -> Array:
    if mode == "L" and len(pixels) != 1:
        raise InfuserError(f"{name} is in colour", expected="grey images (mode L)")
    return np.repeat(pixels, 3, axis=0) if mode == "RGB" and len(pixels) == 1 else pixels
