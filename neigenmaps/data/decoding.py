"""One image file to uint8 pixels: RGB or grey, upright as its EXIF orientation says, shorter side resized, centre square kept."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
UNREADABLE = (
    OSError,
    UnidentifiedImageError,
    Image.DecompressionBombError,
    ValueError,
    SyntaxError,
)  # all that PIL raises

UPRIGHT = {  # by EXIF orientation; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(file: str | Path | BinaryIO, size: int, channels: int = 3) -> npt.NDArray[np.uint8] | None:
    """(channels, size, size), upright, the centre square; None if the file can't be read. channels: 1 is grey, 3 RGB."""
    try:
        with Image.open(file) as image:
            upright = _as_rgb(_upright(image))
            array = np.asarray(_fit(upright if channels == 3 else upright.convert("L"), size))
    except UNREADABLE:
        return None
    return np.atleast_3d(array).transpose(2, 0, 1).copy()


def _upright(image: Image.Image) -> Image.Image:
    """As the EXIF orientation says. Not PIL's `exif_transpose`, which writes the whole EXIF anew and so fails on broken tags."""
    motion = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if motion is None else image.transpose(motion)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # PIL would clip 16 bits at 255 rather than scale them
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _fit(image: Image.Image, size: int) -> Image.Image:
    """The centre square of the image with its shorter side resized to `size`, in one resampling."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
