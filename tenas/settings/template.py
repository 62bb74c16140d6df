"""A configuration to begin with: one search on a user's own images, with comments that say what to change. No torch."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml

from tenas.code import PROJECT
from tenas.errors import TenasError
from tenas.settings.base import checked
from tenas.settings.config import Config
from tenas.settings.retrain import retrain_settings
from tenas.settings.search import search_settings


class Images(NamedTuple):
    """What a configuration says of the images that it is for.

    ``entry``: of its ``datasets``. ``height`` and ``width``: of the first image, in pixels. ``side``: that all are resized to.
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
# A search for a network for the images in {path}, and the training of what it finds. From the folder that this was written in:
#
#     tenas run {file}
#         the search, the training, the export; the same command goes on where it was stopped
#     tenas status results/{name}
#         how far it is, from another terminal
#     tenas show results/{name}
#         what it has found
#
# {train:,} images to search and train on, {test:,} that are held out for testing, {classes} classes.
# What is left out has a default; config/README.md of the project explains every key.

shards: 2 # jobs that a round is split into; the result does not depend on it
device: auto # a GPU where there is one; or cpu, cuda
threads: {{score: 1, retrain: 2}} # of a job; as many jobs run at once as fit the cores

datasets:
  {key}:
    source: {source}
    path: {quoted}
    side: {side} # pixels that each image's middle square is resized to; the first one has {height} x {width}

runs:
  {key}:
    space: nas-bench-201 # or darts, or one of your own: path/to/file.py:OBJECT
    dataset: {key}
    preset: default # 1,000 cells measured untrained, 64 and then 16 of them more closely, the best trained for a few epochs
    search: # keys of the preset that are different: fewer and shorter trainings, so that a first search takes minutes
      rounds:
        "3": {{keep: 8}} # 16 in the preset
        "4": {{training: {{epochs: 4}}}} # 12 in the preset
    limits: {{}} # on the network that is trained in the end, such as {{parameters: 0.5e6, flops: 60%}}
    trainings: {trainings} # of the last round: real, or none (the best-ranked cell is found then, several times as fast)
    seeds: [0] # each is a search of its own
    retrain: {retrain} # a small network, trained for minutes; nas-bench-201: a large one, for a GPU; null: the search alone
    retraining: {{channels: 16, epochs: 30, flip: true}} # keys that are different; flip: mirror every second image
"""


def _scalar(text: str) -> str:
    """A text as YAML reads it back: bare where it can be, else in quotation marks."""
    plain = text.strip() == text and not set(text) & set("#{}[],&*!|>'\"%@`:?\n") and yaml.safe_load(text) == text
    return text if plain else json.dumps(text, ensure_ascii=False)


def configuration(name: str, file: str, images: Images) -> str:
    """The text of a configuration with one data set and one run, both called ``name``. ``file``: its own name.

    Raises TenasError for a name that is none, and for images too few for the search that it describes.
    """
    source, path = images.entry["source"], images.entry["path"]
    text = TEMPLATE.format(
        schema=PROJECT / "config" / "schemas" / "config.json", name=name, key=_scalar(name), file=file, path=path,
        source=source, quoted=_scalar(path), **{key: getattr(images, key) for key in images._fields if key != "entry"},
        trainings="real" if images.test else "none", retrain="digits" if images.test else "null",
    )  # fmt: skip
    run = checked(Config, yaml.safe_load(text), file).runs[name]
    retraining = None if run.retrain is None else retrain_settings(run.retrain, run.retraining)
    settings = search_settings(run.space, run.preset, run.search, retraining=retraining, trainings=run.trainings)
    batches = [of["batch"] for round in settings["rounds"] for of in round.get("measures", {}).values() if "batch" in of]
    if max(batches) > images.train:
        raise TenasError(f"There are {images.train} images to search on in {path}; the search draws batches of {max(batches)}.")
    return text
