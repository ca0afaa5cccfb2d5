import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from infuser.data.untrusted import MAX_BYTES, MAX_PIXELS, decode_image, decode_images, open_regular, require_memory
from infuser.errors import InfuserError
from tests.data.files import encoded, pixels


def png_claiming(width, height):
    """A PNG whose header claims a size that its few bytes of data do not fill."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "WEBP"])
def test_lossless_formats_give_their_pixels(kind):
    colour = pixels(0, 6, 5, 3)
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(decode_image(encoded(colour, kind, **options), "x"), colour.transpose(2, 0, 1))
    if kind != "WEBP":
        grey = pixels(0, 6, 5)
        np.testing.assert_array_equal(decode_image(encoded(grey, kind), "x"), grey[None])


def test_palettes_black_and_white_and_opaque_alpha_are_read():
    colour = pixels(0, 6, 5, 3)
    file = io.BytesIO()
    Image.fromarray(colour).quantize(16).save(file, "PNG")
    palette = decode_image(file.getvalue(), "x")
    np.testing.assert_array_equal(
        palette, np.asarray(Image.fromarray(colour).quantize(16).convert("RGB")).transpose(2, 0, 1)
    )
    file = io.BytesIO()
    Image.fromarray(pixels(0, 6, 5) > 127).save(file, "PNG")
    np.testing.assert_array_equal(decode_image(file.getvalue(), "x"), ((pixels(0, 6, 5) > 127) * 255)[None])
    alpha = np.dstack([colour, np.full((6, 5), 255, np.uint8)])
    np.testing.assert_array_equal(decode_image(encoded(alpha), "x"), colour.transpose(2, 0, 1))
    alpha[0, 0, 3] = 254
    with pytest.raises(InfuserError, match="transparent"):
        decode_image(encoded(alpha), "x")


def test_sixteen_bits_and_several_frames_are_refused():
    file = io.BytesIO()
    Image.fromarray(np.full((3, 3), 40000, np.uint16)).save(file, "PNG")
    with pytest.raises(InfuserError, match="not an 8-bit image"):
        decode_image(file.getvalue(), "x")
    file = io.BytesIO()
    frames = [Image.fromarray(pixels(i, 3, 3)) for i in range(3)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(InfuserError, match="several frames"):
        decode_image(file.getvalue(), "x")


@pytest.mark.parametrize("size", [(MAX_PIXELS // 16, 17), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_before_it_is_decoded(size, monkeypatch, recwarn):
    decoded = []
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded.append)
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(InfuserError, match="too many pixels"):
        decode_image(png_claiming(*size), "x")
    assert not decoded
    assert before == Image.MAX_IMAGE_PIXELS


def test_the_largest_size_is_not_refused_for_its_size():
    with pytest.raises(InfuserError, match="not an image that can be read"):  # its data are too short
        decode_image(png_claiming(4096, 4096), "x")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_truncated_images_are_refused(kind):
    raw = encoded(pixels(0, 16, 16, 3), kind)
    decode_image(raw, "x")
    for cut in (0, 1, 10, len(raw) // 2, len(raw) - 30):
        with pytest.raises(InfuserError, match="x is not an image that can be read"):
            decode_image(raw[:cut], "x")


def test_formats_that_run_programs_are_unknown():
    with pytest.raises(InfuserError, match="not an image"):
        decode_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "x")


def test_counts_that_disagree():
    raw = encoded(pixels(0, 3, 3))
    with pytest.raises(InfuserError, match="more images"):
        decode_images([("a", raw), ("b", raw)], 1, "x")
    with pytest.raises(InfuserError, match="fewer images"):
        decode_images([("a", raw)], 2, "x")
    with pytest.raises(InfuserError, match="too large"):
        decode_images([("a", raw)], 2**40, "x")


def test_limits(tmp_path):
    require_memory(MAX_BYTES, "x")
    with pytest.raises(InfuserError, match="too large"):
        require_memory(MAX_BYTES + 1, "x")
    with pytest.raises(InfuserError, match="not a regular file"):
        open_regular(tmp_path)
    with pytest.raises(InfuserError, match="cannot read"):
        open_regular("a\0b")
