"""Images and labels given as arrays: what is allowed, and conversion of NumPy arrays and torch tensors. Does not import torch."""

from typing import Any, Protocol, TypeVar

import numpy as np

from tenas.data.parts import UNLABELLED
from tenas.errors import TenasError

SMALLEST = 8
CLASSES = 10  # default without labels; determines only the width of the classifier
UNEVEN = 0.75  # share of the largest class from which an accuracy says little
MOST_CLASSES = 100_000  # ImageNet-21k has 21,841 classes; a larger number is more likely a faulty label


class _Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...


Pixels = TypeVar("Pixels", bound=_Shaped)


def check_pixels(images: Pixels, what: str) -> Pixels:
    """Check that ``images``, an array or its header, is uint8 (n, h, w, 3). Raises TenasError otherwise, with advice."""
    shape = images.shape
    if images.dtype == np.uint8 and len(shape) == 4 and shape[3] == 3 and 0 not in shape:
        return images
    way = ""
    if images.dtype != np.uint8:
        way = ": scale to 0 to 255, and astype(numpy.uint8)"
    elif len(shape) == 4 and shape[1] == 3:
        way = ": transpose(0, 2, 3, 1)"
    elif len(shape) == 3 or (len(shape) == 4 and shape[3] == 1):
        way = ": repeat grey images in three channels"
    elif len(shape) == 4 and shape[3] == 4:
        way = ": leave out the alpha channel"
    raise TenasError(f"{what} must be uint8 of the shape (n, height, width, 3); it is {images.dtype} {shape}{way}.")


def check_classes(classes: object, least: int = 1) -> int:
    """Check a number of classes. Raises TenasError for an invalid one, and for more than MOST_CLASSES."""
    if isinstance(classes, bool) or not isinstance(classes, int | np.integer) or not least <= classes <= MOST_CLASSES:
        raise TenasError(
            f"There must be at least {least} classes and at most {MOST_CLASSES:,}, as a whole number, not {classes!r}."
        )
    return int(classes)


def check_labels(labels: np.ndarray, count: int, classes: int | None, what: str, least: int = 0) -> int:
    """The number of classes of integer ``labels`` (count,) from ``least``: ``classes``, or the largest + 1.

    Raises TenasError for another shape or dtype, and for labels out of range.
    """
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        way = ""
        if labels.shape == (count,):
            way = ": numpy.unique(labels, return_inverse=True)[1]" if labels.dtype.kind in "USO" else ": astype(int)"
        elif labels.ndim == 2 and len(labels) == count:
            way = ": ravel()" if labels.shape[1] == 1 else ": argmax(1), if each row has a 1 at its class"
        raise TenasError(f"{what} are {labels.dtype} {labels.shape}; they must be {count} integers, one for each image{way}.")
    low, high = int(labels.min()), int(labels.max())
    most = min(max(high, 0) + 1, MOST_CLASSES) if classes is None else classes
    if low < least or high >= most:
        way = ": number the classes from 0, without gaps" if most == MOST_CLASSES else ""
        raise TenasError(f"{what} go from {low} to {high}; allowed: {least} to {most - 1}{way}.")
    return high + 1 if classes is None else classes


def label_warnings(labels: np.ndarray, classes: int) -> list[str]:
    """Warnings about labels with which results mean little. ``labels``: of all images, including UNLABELLED ones."""
    found, counts = np.unique(labels[labels != UNLABELLED], return_counts=True)
    if classes == 1 or len(found) == 1:
        return ["All images are of one class: losses, accuracies and trainings on them mean little."]
    if 0 < len(found) < classes:
        absent = np.setdiff1d(np.arange(classes), found)
        named = ", ".join(map(str, absent[:5])) + (", ..." if len(absent) > 5 else "")
        return [
            f"Of the {classes} classes only {len(found)} have images; without any: {named}. The classifier is wider for them."
        ]
    if len(found) and (share := counts.max() / counts.sum()) >= UNEVEN:
        return [f"{share:.0%} of the images are of one class: an accuracy of {100 * share:.2f} % is that of guessing it."]
    return []


def _array(values: object, what: str) -> np.ndarray:
    """A NumPy array from an array, or from a tensor on any device."""
    if hasattr(values, "detach"):
        tensor = values.detach().cpu()
        values = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise TenasError(f"{what} have values that are masked: leave them out, or fill them.")
    try:
        return np.asarray(values)
    except ValueError as error:
        raise TenasError(f"{what} are no array: {error}.") from error


def as_pixels(images: object) -> np.ndarray:
    """Images as uint8 (n, h, w, 3), from that form or from floats (n, 3, h, w).

    Floats from 0 to 1 range from black to white. Other floats, such as normalised images, are scaled so that the smallest value
    becomes 0 and the largest 255: a search normalises each channel itself, so only the rounding to 256 steps is lost.
    Raises TenasError for another shape or dtype, values that are not finite, and images smaller than 8 x 8.
    """
    array = _array(images, "The images")
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
        if low == high:
            raise TenasError(f"The images have the same value everywhere, {low}.")
        array = np.rint((array - low) * (255 / (high - low))).astype(np.uint8).transpose(0, 2, 3, 1)
    check_size(array.shape[1], array.shape[2], "The images have")
    return np.ascontiguousarray(array)


def check_size(height: int, width: int, what: str) -> None:
    """Raise TenasError for images smaller than SMALLEST."""
    if min(height, width) < SMALLEST:
        raise TenasError(f"{what} {height} x {width} pixels; it must be at least {SMALLEST} x {SMALLEST}.")


def as_labels(labels: object | None, count: int, classes: int | None = None, what: str = "The labels") -> tuple[np.ndarray, int]:
    """Labels as int64 (count,), all -1 if there are none, and the number of classes. Raises TenasError for faulty labels."""
    if labels is None:
        return np.full(count, UNLABELLED), int(classes or CLASSES)
    array = _array(labels, what)
    found = check_labels(array, count, classes, what)
    return array.astype(np.int64), found
