"""Inputs of measures, drawn from a seed: batches of images, crops, noise."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenas.errors import TenasError
from tenas.measures.catalogue import Measure

CROP = 3


def _constants(card: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the channels. Raises TenasError for images that they cannot normalise."""
    mean, std = (np.asarray(card[key], np.float32) for key in ("mean", "std"))
    if (std == 0).any():
        raise TenasError("A channel of the images is constant: they cannot be normalised.")
    return mean, std


def normalised(images: np.ndarray, card: Mapping[str, Any]) -> Tensor:
    """Standardise each channel by the data card: uint8 (n, h, w, 3) -> float32 (n, 3, h, w)."""
    mean, std = map(torch.from_numpy, _constants(card))
    return ((torch.from_numpy(images).float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def draw_indices(available: int, count: int, seed: int) -> np.ndarray:
    """Draw ``count`` different indices of ``available`` images, ascending."""
    return np.sort(np.random.default_rng(seed).choice(available, count, replace=False))


def draw_images(images: np.ndarray, card: Mapping[str, Any], count: int, seed: int) -> Tensor:
    """Draw ``count`` different images, standardised. Raises TenasError if there are too few."""
    if count > len(images):
        raise TenasError(
            f"A batch of {count} images was asked for, but the data set has {len(images)}: lower 'batch', or prepare more images."
        )
    return normalised(images[draw_indices(len(images), count, seed)], card)


def draw_crops(images: np.ndarray, card: Mapping[str, Any], count: int, seed: int) -> Tensor:
    """Draw ``count`` random 3x3 crops of one random channel each, standardised: float32 (count, 1, 3, 3).

    As in the released code. Small crops share activation patterns, whereas almost every whole image has its own.
    """
    generator = np.random.default_rng(seed)
    n, height, width, channels = images.shape
    index = generator.integers(n, size=count)
    top, left = generator.integers(height - CROP + 1, size=count), generator.integers(width - CROP + 1, size=count)
    channel = generator.integers(channels, size=count)
    offsets = np.arange(CROP)
    rows, columns = top[:, None, None] + offsets[:, None], left[:, None, None] + offsets
    crops = images[index[:, None, None], rows, columns, channel[:, None, None]]
    mean, std = (constant[channel][:, None, None] for constant in _constants(card))
    return torch.from_numpy((crops.astype(np.float32) / 255 - mean) / std)[:, None]


def draw_noise(images: np.ndarray, count: int, seed: int) -> Tensor:
    """Draw standard normal noise of the images' shape: float32 (count, 3, h, w)."""
    _, height, width, channels = images.shape
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(seed % 2**63))


def draw_inputs(
    measure: Measure, settings: Mapping[str, Any], images: np.ndarray, card: Mapping[str, Any], seed: int, device: str
) -> tuple[Any, ...]:
    """Draw the inputs of a measure besides the network: (images,), (images, labels), or for linear regions (blocks,).

    Raises TenasError for too few images, and for a measure that needs labels if ``card`` has none.
    """
    if measure.inputs == "regions":
        count = settings["count"]
        if settings["inputs"] == "crops":
            inputs = draw_crops(images, card, count, seed)
            # A crop has one channel, as the released network has; a wider network reads it in each of its channels.
            inputs = inputs.expand(-1, settings["channels"], -1, -1)
        else:
            inputs = draw_images(images, card, min(count, len(images)), seed)
        return (inputs.to(device).tensor_split(settings["blocks"]),)
    if settings.get("inputs") == "noise":
        batch = draw_noise(images, settings["batch"], seed).to(device)
    else:
        batch = draw_images(images, card, settings["batch"], seed).to(device)
    if not measure.needs_labels:
        return (batch,)
    if "labels" not in card:
        raise TenasError(f"The measure {measure.name} needs the labels of the images.")
    labels = torch.from_numpy(card["labels"][draw_indices(len(images), settings["batch"], seed)])
    return batch, labels.to(device)
