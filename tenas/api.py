"""Python API: lists of what exists, measures of networks, searches on images, networks of genotypes.

All of it can be imported from ``tenas`` itself. Torch is imported when something is measured or built, not before.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tenas import layout
from tenas.errors import LARGEST_SEED, TenasError, one_of, whole_number
from tenas.files import read_json, scratch_folder
from tenas.measures.catalogue import BUILT_IN as MEASURES
from tenas.measures.catalogue import Measure, get_measure
from tenas.progress import shown, silent
from tenas.settings.base import preset_files
from tenas.settings.search import search_settings
from tenas.spaces import BUILT_IN as SPACES
from tenas.spaces import Genotype, Mask, Space, known, load_genotype

if TYPE_CHECKING:
    import pandas as pd

    from tenas.networks import Network


def list_spaces() -> list[str]:
    """Names of the built-in search spaces.

    Examples:
        >>> list_spaces()
        ['nas-bench-201', 'darts']
    """
    return list(SPACES)


def list_measures() -> list[str]:
    """Names of the built-in measures.

    Examples:
        >>> "naswot" in list_measures()
        True
    """
    return list(MEASURES)


def list_presets(kind: Literal["search", "retrain"] = "search") -> list[str]:
    """Names of the presets of searches, or of retrainings: those in ./config and the built-in ones.

    Examples:
        >>> {"paper", "released"} <= set(list_presets())
        True
    """
    if kind not in ("search", "retrain"):
        raise one_of("kind of preset", kind, ("search", "retrain"))
    return sorted(preset_files(kind))


def list_sources() -> list[str]:
    """Names of the built-in sources of images.

    Examples:
        >>> "folder" in list_sources()
        True
    """
    from tenas.data.sources import SOURCES

    return list(SOURCES)


def measure(name: str | Measure) -> Measure:
    """Get a measure of networks at initialisation (a zero-cost proxy): a function (network, images, labels=None) -> number.

    ``name``: one of ``list_measures()``, or ``path/to/file.py:object``. ``network``: any ``torch.nn.Module`` that maps a batch to
    logits (n, classes). ``images``: a tensor (n, 3, h, w). ``labels``: a tensor (n,) of integers from 0, for loss-based measures.
    The attributes ``lower_is_better``, ``signed`` and ``needs_labels`` describe the measure.
    Raises TenasError for an unknown name; calling the measure raises it for missing labels and for a value of NaN.

    Examples:
        >>> import torch
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
        >>> measure("parameters")(network, torch.zeros(2, 3, 2, 2))
        83
        >>> measure("snip").needs_labels
        True
    """
    return get_measure(name)


def build(
    genotype: Genotype | str | os.PathLike[str],
    *,
    channels: int,
    cells: int,
    classes: int,
    space: str | Space | None = None,
    seed: int | None = None,
    **more: Any,
) -> Network:
    """Build the network of a genotype: a ``torch.nn.Module`` from images (n, 3, h, w) to logits (n, classes), newly initialised.

    ``genotype``: that of a search, the path of a genotype.json, or the text of one; for a text of a user's space give the
    ``space``. ``channels`` and ``cells``: see tenas.networks.Network, which also takes ``more`` (``stem``, ``auxiliary``).
    ``seed``: of the weights; by default torch's generator goes on where it is.
    Raises TenasError for a text that is no genotype, and for sizes below 1.

    Examples:
        >>> cell = "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"
        >>> network = build(cell, channels=16, cells=5, classes=10)
        >>> sum(parameter.numel() for parameter in network.parameters())
        802426
    """
    from tenas.networks import Network
    from tenas.networks.initialise import seeded

    if isinstance(space, Space):
        known(space)
    channels, cells, classes = (
        whole_number(value, name) for value, name in ((channels, "channels"), (cells, "cells"), (classes, "classes"))
    )
    seed = None if seed is None else whole_number(seed, "seed", 0, LARGEST_SEED)
    found = load_genotype(genotype, space)
    with nullcontext() if seed is None else seeded(seed):
        return Network(found, channels=channels, cells=cells, classes=classes, **more)


@dataclass(frozen=True)
class SearchRound:
    """A finished round of a search.

    ``kind``: operators, edges, cells or training. ``table``: one row per trial or cell that competed, with its measures, their
    errors and ranks, and whether it was pruned or kept (docs/method.md). ``kept``: the mask after a round of operators or edges;
    after one of cells or trainings the texts of the cells kept, best first. ``settings``: of the round, with all defaults.
    """

    number: int
    kind: str
    table: pd.DataFrame = field(repr=False)
    kept: Mask | tuple[str, ...] = field(repr=False)
    settings: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class SearchResult:
    """Result of ``tenas.search``.

    ``genotype``: the architecture found; ``genotype.arch`` is its text. ``rounds``: their rankings and decisions. ``settings``:
    of the search, resolved. ``folder``: all files of the search, as the workflow writes them; None without ``out``.
    """

    genotype: Genotype
    rounds: tuple[SearchRound, ...]
    seed: int
    settings: dict[str, Any] = field(repr=False)
    folder: Path | None = None

    def svg(self) -> str:
        """A drawing of the genotype, as the text of an SVG file."""
        from tenas.report.drawing import draw

        return draw(self.genotype)

    def _repr_svg_(self) -> str:
        return self.svg()

    def __str__(self) -> str:
        return self.genotype.arch


def search(
    space: str | Space,
    images: object,
    *,
    labels: object | None = None,
    preset: str = "default",
    seed: int = 0,
    limits: Mapping[str, Any] | None = None,
    classes: int | None = None,
    threads: int = 1,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    progress: bool = True,
    trainings: str | None = None,
    changes: Mapping[str, Any] | None = None,
    table: str | os.PathLike[str] = "builtin",
    out: str | os.PathLike[str] | None = None,
) -> SearchResult:
    """Search a space on images, by the rounds of a preset, in this process.

    Args:
        space: name of a space, ``path/to/file.py:object``, or a space itself.
        images: uint8 (n, h, w, 3) or float (n, 3, h, w), of numpy or torch; oblong ones are cropped to the central square.
            Floats in [0, 1] are black to white; other ranges are scaled to black and white. Duplicates are left out.
        labels: (n,) integers from 0. Without them loss-based measures are refused, and so are short trainings; those of the
            preset are left out, with a warning.
        preset: name of a preset (``list_presets()``), or path of a YAML file.
        seed: of weights, batches and samples; the same seed gives the same result on the same kind of processor.
        limits: on the finally trained network: ``{"parameters": 0.5e6, "flops": "60%"}``, or ``latency`` with
            ``table``, ``column`` and ``most``.
        classes: of the images; by default as many as the labels have, without labels 10.
        threads: worker processes on the CPU. With more than one, a script must call this under
            ``if __name__ == "__main__":``.
        device: cpu, cuda, or auto: the CPU to measure, a GPU to train if there is one.
        progress: whether to show a bar, or lines if stderr is no terminal.
        trainings: mode of the rounds of trainings: real, table:COLUMN, none; by default that of the preset.
        changes: changed keys of the preset, as in a run's ``search`` in a configuration.
        table: table of the space, for trainings that are looked up; builtin is the built-in one.
        out: folder to keep the files in; the same call then resumes an interrupted one.

    Raises:
        TenasError: for unusable images, labels, settings or limits.

    Examples:
        >>> import numpy as np
        >>> images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
        >>> rounds = [{"kind": "cells", "sample": 6, "keep": 2, "measures": {"parameters": {
        ...     "repeats": 1, "batch": 2, "channels": 4, "cells": 1, "weights": "pytorch", "redraw": True}}}]
        >>> found = search("nas-bench-201", images, changes={"rounds": rounds}, limits={"parameters": "50%"}, progress=False)
        >>> [(round.kind, len(round.table), len(round.kept)) for round in found.rounds]
        [('cells', 6, 2)]
        >>> found.genotype.arch == found.rounds[0].kept[0]
        True
    """
    from tenas.data.prepared import prepare_arrays
    from tenas.device import DEVICES, torch_defaults
    from tenas.scoring.workers import Workers
    from tenas.search.given import check_others, searched_before
    from tenas.stages.search import search_seed

    space = known(space)
    seed, threads = whole_number(seed, "seed", 0, LARGEST_SEED), whole_number(threads, "threads")
    if device not in DEVICES:
        raise one_of("device", device, DEVICES)
    if threads > 1:
        _check_workers(space)
    if labels is None:
        settings = _settings_without_labels(space, preset, changes, limits, trainings)
    else:
        settings = search_settings(space, preset, changes, limits=limits, trainings=trainings)
    scratch = nullcontext(out) if out is not None else scratch_folder()
    with torch_defaults(), scratch as name, Workers(threads) as workers:
        folder = Path(name)
        others = searched_before(folder, [seed])
        card = prepare_arrays(images, labels, classes, folder / "data", replace=not others)
        check_others(settings, card["sha256"], Path(table), others, folder)
        found = search_seed(
            settings,
            folder / "data",
            seed,
            folder,
            workers=workers,
            device=device,
            table=Path(table),
            progress=shown if progress else silent,
        )
        return SearchResult(
            load_genotype(found, space),
            tuple(_round(settings, space, folder, seed, number) for number in range(1, len(settings["rounds"]) + 1)),
            seed,
            settings,
            None if out is None else folder,
        )


def _trains(settings: Mapping[str, Any]) -> bool:
    """Whether a search trains cells instead of looking trainings up."""
    return any(round["kind"] == "training" and round["column"] is None for round in settings["rounds"])


def _settings_without_labels(
    space: Space,
    preset: str,
    changes: Mapping[str, Any] | None,
    limits: Mapping[str, Any] | None,
    trainings: str | None,
) -> dict[str, Any]:
    """Resolve the settings of a search without labels; trainings of the preset are left out, with a warning."""
    settings = search_settings(space, preset, changes, limits=limits, trainings=trainings)
    if trainings is None and _trains(settings):
        warnings.warn(
            "Without labels nothing can be trained: the rounds of trainings are left out, the best-ranked cells kept.",
            stacklevel=3,
        )
        settings = search_settings(space, preset, changes, limits=limits, trainings="none")
    _check_needs_no_labels(settings)
    return settings


def _check_needs_no_labels(settings: Mapping[str, Any]) -> None:
    """Raise TenasError for short trainings and loss-based measures."""
    if _trains(settings):
        raise TenasError("Short trainings need labels: give them, or trainings='none' to leave the trainings out.")
    for round in settings["rounds"]:
        for name in round.get("measures", {}):
            if get_measure(name).needs_labels:
                raise TenasError(f"The measure {name} is loss-based and needs labels.")


def _check_workers(space: Space) -> None:
    """Raise TenasError where worker processes could not import the space, or would import the running script and run it again."""
    if space._token is not None:
        raise TenasError(
            f"The space {space.name} was made in this process, and worker processes cannot import it: put it into a file and "
            "name it path/to/file.py:object, or use one thread."
        )
    main = sys.modules.get("__main__")
    script = getattr(main, "__file__", None)
    if script is None or getattr(main, "__spec__", None) is not None or not Path(script).is_file():
        return
    if b"__main__" not in Path(script).read_bytes():
        raise TenasError(
            f"Worker processes import the script {script} and would run it again: put its search under "
            "'if __name__ == \"__main__\":', or use one thread."
        )


def _round(settings: Mapping[str, Any], space: Space, folder: Path, seed: int, number: int) -> SearchRound:
    """Read a round from its files."""
    import pandas as pd

    entry = settings["rounds"][number - 1]
    kind = entry["kind"]
    state = layout.path(layout.STATE[kind], folder, seed=seed, round=number)
    kept: Mask | tuple[str, ...]
    if kind in ("operators", "edges"):
        kept = space.read_mask(state)
    else:
        kept = tuple(cell["arch"] for cell in read_json(state, "list of cells")["cells"])
    table = pd.read_csv(layout.path(layout.TABLE[kind], folder, seed=seed, round=number))
    return SearchRound(number, kind, table, kept, entry)
