"""Write a configuration to start from."""

from pathlib import Path
from typing import Annotated


def new(
    name: Annotated[str, "name of the run and of its data set"],
    *,
    images: Annotated[Path, "a folder with one folder of images per class (or train/ and val/ with those), or an .npz file"],
    out: Annotated[Path | None, "file to write (default: NAME.yaml)"] = None,
) -> str:
    """Write a commented configuration for a search on your own images, ready to run.

    Examples:
        tenas new flowers --images photos/flowers
        tenas new flowers --images flowers.npz --out config/flowers.yaml
    """
    from tenas.data.entry import entry_of
    from tenas.data.prepared import filled
    from tenas.data.sources import load, size_of
    from tenas.errors import TenasError
    from tenas.files import write_text
    from tenas.settings.template import Images, configuration

    out = Path(f"{name}.yaml") if out is None else out
    if out.exists():
        raise TenasError(f"The file {out} already exists: choose another one with --out.")
    if not images.exists():
        raise TenasError(f"There is no folder or file {images}.")
    entry = filled(entry_of(str(images)))
    loaded, side = load(entry)
    height, width = size_of(loaded.train)
    test = 0 if loaded.test is None else len(loaded.test.labels)
    # The networks of the space halve images twice.
    side = max(8, min(side, height, width) // 4 * 4)
    found = Images(entry, loaded.classes, len(loaded.train.labels), test, height, width, side)
    write_text(out, configuration(name, str(out), found))
    return f"{out}: {found.train} images of {found.classes} classes\nnow: tenas run {out}"
