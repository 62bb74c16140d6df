"""Turn a data set into the small file of images that a search reads."""

from pathlib import Path
from typing import Annotated

from tenas.stages.types import Count, Seed


def prepare(
    data: Annotated[
        str, "a folder of classes, an .npz file, a source's name, path/to/file.py:object, or a configuration's entry as JSON"
    ],
    *,
    path: Annotated[str | None, "folder or file of a named source: cifar10, imagenet16-120, ..."] = None,
    images: Annotated[Count | None, "number of images that the search draws from, at most 10,000 (the default)"] = None,
    side: Annotated[
        Count | None, "height and width of the resized images in pixels (default: those of the source, mostly 32)"
    ] = None,
    seed: Annotated[Seed | None, "seed of the sample (default: 0)"] = None,
    out: Annotated[Path, "folder for images.npy, labels.npy, card.json and preview.png"],
) -> str:
    """Turn a data set into the small file of images that a search reads.

    Examples:
        tenas prepare photos --side 48 --out data/photos
        tenas prepare cifar10 --path data/downloads --out data/cifar10
        tenas prepare '{"source": "npz", "path": "photos.npz", "images": 500}' --out data/photos
    """
    from tenas.data.entry import entry_of
    from tenas.data.prepared import in_words, prepare

    return in_words(prepare(entry_of(data, path=path, images=images, side=side, seed=seed), out), out)
