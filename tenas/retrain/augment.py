"""Augment whole batches of uint8 images on their device, with random numbers from NumPy."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tenas.device import send

# Weights of red, green and blue in a grey value (ITU-R BT.601), as in Pillow and torchvision.
GREY = (0.299, 0.587, 0.114)


class AugmentParams(NamedTuple):
    """Random parameters of an augmentation, one row per image.

    Drawn for the whole batch, so that those of an image do not depend on the process that trains on it.
    """

    shift: np.ndarray
    """int (b, 2): offset of the crop from the centre, rows and columns"""
    mirrored: np.ndarray
    """bool (b,)"""
    hole: np.ndarray
    """int (b, 2): row and column of the centre of the blanked square"""
    colour: np.ndarray
    """float32 (b, 4): factors of brightness, contrast and saturation; shift of the hue (1 is a full turn)"""

    def share(self, part: slice) -> "AugmentParams":
        """Rows of one process."""
        return AugmentParams(*(numbers[part] for numbers in self))


def draw_params(count: int, size: tuple[int, int], settings: Mapping[str, Any], generator: np.random.Generator) -> AugmentParams:
    """Draw the parameters for ``count`` images of ``size`` (height, width). ``settings``: of a retraining."""
    padding, jitter = settings["crop_padding"], settings["colour_jitter"] or {}
    width = np.array([jitter.get(key, 0) for key in ("brightness", "contrast", "saturation", "hue")])
    return AugmentParams(
        shift=generator.integers(-padding, padding + 1, (count, 2)),
        mirrored=generator.random(count) < (0.5 if settings["flip"] else 0),
        hole=generator.integers(size, size=(count, 2)),
        colour=(np.array([1, 1, 1, 0]) + width * generator.uniform(-1, 1, (count, 4))).astype(np.float32),
    )


def augment(images: Tensor, params: AugmentParams, settings: Mapping[str, Any], mean: Tensor, std: Tensor) -> Tensor:
    """Crop, mirror, jitter, standardise and cut out: uint8 (b, h, w, 3) -> float32 (b, 3, h, w)."""
    if settings["crop_padding"] or settings["flip"]:
        images = crop_and_flip(images, params.shift, params.mirrored)
    values = images.float() / 255
    if settings["colour_jitter"]:
        values = jitter_colours(values, send(params.colour, values.device))
    result = standardise(values, mean, std)
    return cut_out(result, settings["cutout"], params.hole) if settings["cutout"] else result


def standardise(values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Standardise images in [0, 1] per channel: (b, h, w, 3) -> (b, 3, h, w).

    The result is channels-last in memory, as the images were: the faster layout for small convolutions too.
    """
    return ((values - mean) / std).permute(0, 3, 1, 2)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Standardise images without augmentation, for an evaluation: uint8 (b, h, w, 3) -> float32 (b, 3, h, w)."""
    return standardise(images.float() / 255, mean, std)


def crop_and_flip(images: Tensor, shift: np.ndarray, mirrored: np.ndarray) -> Tensor:
    """Crop each image, at full size and shifted off the centre, and mirror it. Outside of the image the crop is black.

    ``images``: uint8 (b, h, w, 3). ``shift``: (b, 2) pixels. ``mirrored``: (b,) booleans.
    """
    b, height, width, _ = images.shape
    rows = np.arange(height) + shift[:, :1]
    columns = np.arange(width) + shift[:, 1:]
    columns[mirrored] = columns[mirrored, ::-1]
    rows, columns = (send(index, images.device) for index in (rows, columns))
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    each = torch.arange(b, device=images.device)[:, None, None]
    crops = images[each, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]]
    return crops * inside[..., None]


def cut_out(images: Tensor, side: int, middle: np.ndarray) -> Tensor:
    """Blank a square of ``side`` pixels, centred anywhere in the image and clipped at its border (DeVries and Taylor 2017).

    ``images``: standardised, (b, 3, h, w), so that zero is the mean colour. ``middle``: (b, 2), row and column.
    """
    height, width = images.shape[2:]
    top, left = middle[:, :1] - side // 2, middle[:, 1:] - side // 2
    rows, columns = np.arange(height), np.arange(width)
    in_rows, in_columns = (rows >= top) & (rows < top + side), (columns >= left) & (columns < left + side)
    kept = send(~(in_rows[:, None, :, None] & in_columns[:, None, None, :]), images.device)
    return images * kept


def grey(images: Tensor) -> Tensor:
    """Grey values: (b, h, w, 3) -> (b, h, w, 1)."""
    red, green, blue = torch.split(images, 1, -1)
    return GREY[0] * red + GREY[1] * green + GREY[2] * blue


def turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Shift the hue of images in [0, 1], (b, h, w, 3), by ``turn`` (b, 1, 1), 1 for a full turn; torchvision's adjust_hue."""
    red, green, blue = images.unbind(-1)
    value, least = images.amax(-1), images.amin(-1)
    spread = value - least
    # Grey has no hue: any value will do, as it is multiplied by a spread of zero.
    scale = torch.where(spread > 0, spread, torch.ones_like(spread))
    hue = torch.where(
        value == red,
        (green - blue) / scale,
        torch.where(value == green, 2 + (blue - red) / scale, 4 + (red - green) / scale),
    )
    # Alvy Ray Smith 1978, the inverse written as one formula for the three channels.
    around = (torch.arange(5, 0, -2, device=images.device) + (hue + 6 * turn)[..., None]).remainder(6)
    return value[..., None] - spread[..., None] * torch.minimum(around, 4 - around).clamp(0, 1)


def jitter_colours(images: Tensor, factors: Tensor) -> Tensor:
    """Jitter brightness, contrast, saturation, then hue of images in [0, 1], (b, h, w, 3), by ``factors`` (b, 4).

    Contrast is about the mean grey of the image. torchvision's ColorJitter applies the four in random order; on whole batches
    the order is fixed.
    """
    brightness, contrast, saturation, turn = factors[:, :, None, None, None].unbind(1)
    images = (images * brightness).clamp(0, 1)
    mean = grey(images).mean((1, 2, 3), keepdim=True)
    images = torch.lerp(mean, images, contrast).clamp(0, 1)
    images = torch.lerp(grey(images), images, saturation).clamp(0, 1)
    return turn_hue(images, turn[..., 0])
