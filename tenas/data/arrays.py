"""Convert images and labels given as NumPy arrays or torch tensors to the form of a data set. Does not import torch."""

import numpy as np

from tenas.data.sources import UNLABELLED
from tenas.errors import TenasError

SMALLEST = 8
CLASSES = 10  # without labels; only the width of the classifier depends on it


def _array(values: object) -> np.ndarray:
    """A NumPy array from an array, or from a tensor on any device."""
    if hasattr(values, "detach"):
        tensor = values.detach().cpu()
        values = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return np.asarray(values)


def as_pixels(images: object) -> np.ndarray:
    """Images as uint8 (n, h, w, 3), from that form or from floats (n, 3, h, w).

    Floats from 0 to 1 range from black to white. Other floats, such as normalised images, are scaled so that the smallest value
    becomes 0 and the largest 255: a search normalises each channel itself, so only the rounding to 256 steps is lost.
    Raises TenasError for another shape or dtype, values that are not finite, and images smaller than 8 x 8.
    """
    array = _array(images)
    known = array.dtype.kind == "f" or array.dtype == np.uint8
    channels = 1 if array.dtype.kind == "f" else 3
    if not known or array.ndim != 4 or array.shape[channels] != 3 or 0 in array.shape:
        forms = ("uint8 (n, height, width, 3)", "float (n, 3, height, width)")
        wanted = forms[channels == 1] if known else " or ".join(forms)
        raise TenasError(f"The images are {array.dtype} {array.shape}; they must be {wanted}, grey ones in three channels.")
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise TenasError("The images have values that are not finite.")
        low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
        array = np.rint((array - low) * (255 / (high - low))).astype(np.uint8).transpose(0, 2, 3, 1)
    if min(array.shape[1:3]) < SMALLEST:
        raise TenasError(
            f"The images have {array.shape[1]} x {array.shape[2]} pixels; it must be at least {SMALLEST} x {SMALLEST}."
        )
    return np.ascontiguousarray(array)


def as_labels(labels: object | None, count: int, classes: int | None = None) -> tuple[np.ndarray, int]:
    """Labels as int64 (count,), all -1 if there are none, and the number of classes. Raises TenasError for faulty labels."""
    if classes is not None and (isinstance(classes, bool) or not isinstance(classes, int | np.integer) or classes < 2):
        raise TenasError(f"There must be at least 2 classes, as a whole number, not {classes!r}.")
    if labels is None:
        return np.full(count, UNLABELLED), int(classes or CLASSES)
    array = _array(labels)
    if array.shape != (count,) or array.dtype.kind not in "iu":
        raise TenasError(f"The labels are {array.dtype} {array.shape}; they must be {count} integers, one for each image.")
    most = int(array.max())
    classes = int(classes or most + 1)
    if array.min() < 0 or most >= classes:
        raise TenasError(f"The labels go from {array.min()} to {most}; allowed: 0 to {classes - 1}.")
    return array.astype(np.int64), classes
