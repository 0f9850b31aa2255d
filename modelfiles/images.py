"""Turns an image file into pixels for a classifier: bounded, scaled to a square, red, green and blue.

Decoding is Pillow's (the `images` extra). Called in a sandbox worker for strangers' images and in training.
"""

from __future__ import annotations

import io
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["MAX_PIXELS", "ImageError", "image_pixels", "image_planes"]

MAX_PIXELS: Final = 50_000_000
FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""What is decoded: a short list keeps rarely used decoders away from strangers' bytes."""


class ImageError(ValueError):
    """The bytes are no image that can be read, or Pillow is not installed."""


def image_pixels(data: bytes, side: int) -> npt.NDArray[np.uint8]:
    """The image as [side, side, 3], stretched to the square. Raises `ImageError`."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImageError("reading images needs Pillow: pip install 'gemmule[images]'") from error
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(
                    f"the image has {image.width} x {image.height} pixels; the limit is {MAX_PIXELS}"
                )
            scaled: Any = image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    except ImageError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"no image of {', '.join(FORMATS)} can be read from these bytes") from error
    pixels: npt.NDArray[np.uint8] = np.asarray(scaled, np.uint8)
    return pixels


def image_planes(data: bytes, side: int) -> bytes:
    """The image as the frames carry it: planes of red, green and blue, row-major. Raises `ImageError`."""
    return image_pixels(data, side).transpose(2, 0, 1).tobytes()
