"""A commented configuration to start from: one search on a user's images. No torch."""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from tenas.code import PROJECT
from tenas.errors import TenasError, in_short
from tenas.settings.base import checked, parse_yaml
from tenas.settings.config import Config, check_input, refused
from tenas.settings.retrain import retrain_settings
from tenas.settings.search import search_settings


class Images(NamedTuple):
    """Facts about the images of a configuration.

    ``entry``: in its ``datasets``. ``height`` and ``width``: of the first image, in pixels. ``side``: of the resized images.
    """

    entry: Mapping[str, Any]
    classes: int
    train: int
    test: int
    height: int
    width: int
    side: int


TEMPLATE = """\
# yaml-language-server: $schema={schema}
# Search a network for the images in {path}, and train it. From the folder in which this file was written:
#
#     tenas run {file}
#         run search, training and export; the same command resumes an interrupted run
#     tenas status results/{name}
#         show its progress, from another terminal
#     tenas show results/{name}
#         show its results
#
# {train:,} images to search and train on, {test:,} held out for testing, {classes} classes.
# Keys left out have defaults; config/README.md of the project explains all keys.

shards: 2 # jobs per round; does not affect the result
device: auto # the CPU for scoring, a GPU for training if there is one; or cpu, cuda
threads: {{score: 1, retrain: 2}} # per job; as many jobs run at once as fit the cores

datasets:
  {key}:
    source: {source}
    path: {path}
    side: {side} # pixels of the resized images, cropped to the middle square; the first one has {height} x {width}

runs:
  {key}:
    space: nas-bench-201 # or darts, or your own space: path/to/file.py:OBJECT
    dataset: {key}
    preset: default # 1,000 cells measured untrained, 64 and then 16 of them more closely, the best trained for a few epochs
    search: # changes to the preset: fewer and shorter trainings, so that a first search takes minutes
      rounds:
        "3": {{keep: 8}} # 16 in the preset
        "4": {{training: {{epochs: 4}}}} # 12 in the preset
    limits: {{}} # on the finally trained network, such as {{parameters: 0.5e6, flops: 60%}}
    trainings: {trainings} # of the last round: real, or none (the search ends with the best-ranked cell, several times as fast)
    seeds: [0] # one search per seed
    retrain: {retrain} # a small network, trained for minutes; nas-bench-201: a large one, for a GPU; null: no retraining
    retraining: {{channels: 16, epochs: 30, flip: true}} # changes to that preset; flip: mirror images at random
"""


def _scalar(text: str) -> str:
    """Quote a text for YAML where it needs quotation marks."""
    with suppress(ValueError):
        if text.isprintable() and not set(text) & set("#{}[],&*!|>'\"%@`:?") and parse_yaml(text) == text:
            return text
    return json.dumps(text, ensure_ascii=not text.isprintable())


def configuration(name: str, file: str, images: Images) -> str:
    """Text of a configuration with one data set and one run, both called ``name``. ``file``: name of its file.

    Raises TenasError for an invalid name, and for too few images for the search.
    """
    if (why := refused(name)) is not None:
        raise TenasError(f"The name of a run and of its data set {why}, not {in_short(name)}.")
    source, path = images.entry["source"], images.entry["path"]
    check_input(path, "The path of the images")
    text = TEMPLATE.format(
        schema=PROJECT / "config" / "schemas" / "config.json", name=name, key=_scalar(name), file=_scalar(file),
        path=_scalar(path), source=source, **{key: getattr(images, key) for key in images._fields if key != "entry"},
        trainings="real" if images.test else "none", retrain="digits" if images.test else "null",
    )  # fmt: skip
    run = checked(Config, parse_yaml(text), file).runs[name]
    retraining = None if run.retrain is None else retrain_settings(run.retrain, run.retraining)
    settings = search_settings(run.space, run.preset, run.search, retraining=retraining, trainings=run.trainings)
    batches = [of["batch"] for round in settings["rounds"] for of in round.get("measures", {}).values() if "batch" in of]
    if max(batches) > images.train:
        raise TenasError(f"There are {images.train} images to search on in {path}; the search draws batches of {max(batches)}.")
    return text
