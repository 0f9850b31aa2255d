"""Images of strangers become pixels, or a sentence."""

from __future__ import annotations

import io

import numpy as np
import pytest

from modelfiles import images
from modelfiles.images import ImageError, image_pixels, image_planes

pillow = pytest.importorskip("PIL.Image")


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    pillow.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_pixels_come_out_as_they_went_in(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    stream = io.BytesIO()
    pillow.fromarray(PIXELS).save(stream, kind, **options)
    assert np.array_equal(image_pixels(stream.getvalue(), 8), PIXELS)


def test_planes_are_red_then_green_then_blue() -> None:
    planes = np.frombuffer(image_planes(encoded(PIXELS), 8), np.uint8).reshape(3, 8, 8)
    assert np.array_equal(planes, PIXELS.transpose(2, 0, 1))


def test_grey_and_transparent_images_get_three_colours() -> None:
    assert image_pixels(encoded(PIXELS[:, :, 0]), 8).shape == (8, 8, 3)
    transparent = np.dstack([PIXELS, PIXELS[:, :, 0]])
    assert np.array_equal(image_pixels(encoded(transparent), 8), PIXELS)


@pytest.mark.parametrize(
    "data",
    [b"", b"no image", encoded(PIXELS)[:120], b"%!PS-Adobe-3.0 EPSF-3.0\n", b"GIF89a" + bytes(40)],
    ids=["empty", "text", "cut", "postscript", "empty gif"],
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="can be read"):
        image_pixels(data, 8)


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 63)
    with pytest.raises(ImageError, match="8 x 8 pixels; the limit is 63"):
        image_pixels(encoded(PIXELS), 8)
