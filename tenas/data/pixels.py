"""Image files and PIL images as pixels: uint8 RGB."""

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tenas.errors import TenasError
from tenas.files import FACTOR

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset(
    {".apng", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff",
     ".webp"}
)  # fmt: skip
# Formats that are tried for every file, whatever its suffix. Not all of Pillow's: for EPS it would run another program.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# Of files that may be as small as they like.
MOST_PIXELS = 2**25
# Bytes up to which a read need not be looked at.
LONG = 2**20
# Tags of EXIF and of TIFF.
ORIENTATION, PHOTOMETRIC, SAMPLE_FORMAT, SIGNED = 0x0112, 0x0106, 0x0153, 2


def is_image(name: str) -> bool:
    """Whether a file is an image by its suffix, in any case."""
    return os.path.splitext(name)[1].lower() in SUFFIXES  # not Path: ImageNet has 1.3 million names


def to_rgb(image: "Image.Image") -> "Image.Image":
    """A PIL image of any mode in RGB, black to white as 0 to 255; an alpha channel is left out.

    Of 16 bits the upper eight are kept, for grey images as Pillow does for coloured ones. Floats are taken from 0 to 1.
    Raises ValueError if the value of white is unknown: 32-bit integers, other floats.
    """
    from PIL import Image

    # Pillow turns white-is-zero around for eight bits only.
    inverted = image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == 0  # type: ignore[attr-defined]
    if image.mode == "F":
        values = np.asarray(image)
        # Not min and max: a NaN must not pass.
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError("its floats are not all from 0 to 1")
        return Image.fromarray(np.rint((1 - values if inverted else values) * 255).astype(np.uint8)).convert("RGB")
    # Pillow reads signed bytes as unsigned.
    signed = image.format == "TIFF" and SIGNED in np.ravel(image.tag_v2.get(SAMPLE_FORMAT, ()))  # type: ignore[attr-defined]
    if signed or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ValueError("its pixels are signed or 32-bit integers, for which the value of white is not known")
    if image.mode.startswith("I"):
        upper = (np.asarray(image) >> 8).astype(np.uint8)
        return Image.fromarray(255 - upper if inverted else upper).convert("RGB")
    return image.convert("RGB")


def fit(image: "Image.Image", side: int, middle: float = 1.0) -> np.ndarray:
    """A PIL image as uint8 (side, side, 3): its middle square, resized (bilinear, anti-aliased when shrinking).

    ``middle``: the square's share of the image's shorter side.
    """
    from PIL import Image

    width, height = image.size
    square = min(width, height) * middle
    left, top = (width - square) / 2, (height - square) / 2
    box = (left, top, left + square, top + square)
    return np.asarray(to_rgb(image).resize((side, side), Image.Resampling.BILINEAR, box=box))


class _File(io.BufferedReader):
    """A file that takes no memory for more bytes than it has, which Pillow asks for where a length is damaged."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > LONG:
            size = min(size, os.fstat(self.fileno()).st_size)
        return super().read(size)

    def __repr__(self) -> str:
        return repr(os.fspath(self.name))


@contextmanager
def _opened(path: Path) -> Iterator["Image.Image"]:
    """A picture whose header was read."""
    from PIL import Image

    with _File(io.FileIO(path)) as file, Image.open(file, formats=FORMATS) as image:
        yield image


def decode(path: Path, side: int | None = None, middle: float = 1.0) -> np.ndarray:
    """Read an image file as uint8 (side, side, 3), the middle square as in ``fit``; without ``side`` the whole, (h, w, 3).

    Reads the first of several frames or pages. Raises TenasError if the file is damaged or not an image.
    """
    try:
        with _opened(path) as image:
            width, height = image.size
            # Before memory is taken, of 4 to 16 bytes for each pixel. Pillow's own limit is near a gigabyte.
            if width * height > max(MOST_PIXELS, FACTOR * (size := path.stat().st_size)):
                raise ValueError(f"it claims to have {width:,} x {height:,} pixels in {size:,} bytes, unlike any picture")
            if side is None:
                return np.asarray(to_rgb(image))
            # JPEGs decode several times faster at 1/2, 1/4 or 1/8 of their size; twice the side keeps the result sharp.
            image.draft("RGB", (int(2 * side / middle),) * 2)
            return fit(image, side, middle)
    except Exception as error:
        # On damaged files the decoders raise almost any exception: struct.error, IndexError, MemoryError for an invalid size.
        raise TenasError(f"The image {path} cannot be read: {str(error).rstrip('.') or type(error).__name__}.") from error


def remarks(paths: Iterable[Path]) -> list[str]:
    """Warnings about what ``decode`` ignores in image files: alpha channels, further frames, orientation. Reads headers only."""
    total = alpha = frames = turned = 0
    for path in paths:
        with _opened(path) as image:
            total += 1
            alpha += image.has_transparency_data
            # The JPEG of a phone, with a preview, is MPO.
            frames += image.format != "MPO" and getattr(image, "is_animated", False)
            turned += image.getexif().get(ORIENTATION, 1) not in (0, 1)
    said = (
        (alpha, "an alpha channel, which is left out: transparent pixels count with the colour stored under them"),
        (frames, "several frames or pages, of which the first is read"),
        (turned, "an EXIF orientation, which is not applied: they are read as stored"),
    )
    return [f"{count} of the {total} images drawn have {what}." for count, what in said if count]
