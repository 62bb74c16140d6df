"""What the tests of retraining share: a small one, and what it leaves."""

import csv
from pathlib import Path

from tenas.retrain import retrain
from tenas.spaces import load_genotype

# Two convolutions and three skips: cheap, and deep enough to learn.
ARCH = "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_1x1~1|+|skip_connect~0|skip_connect~1|avg_pool_3x3~2|"
TINY = {
    "dataset": {"source": "digits", "side": 8},
    "channels": 4,
    "cells": 1,
    "epochs": 4,
    "batch": 64,
    "learning_rate": 0.1,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 0.0005,
    "crop_padding": 1,
    "flip": False,
    "cutout": 2,
    "label_smoothing": 0.1,
    "clip": 5.0,
    "warmup_epochs": 1,
    "validation": 0.2,
}
# Every kind of operator, and skips in both cells.
DARTS = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('skip_connect', 1), ('dil_conv_3x3', 0), ('skip_connect', 2), ('avg_pool_3x3', 1), "
    "('skip_connect', 0), ('skip_connect', 2), ('skip_connect', 3)], normal_concat=range(2, 6), reduce=[('max_pool_3x3', 0), "
    "('skip_connect', 1), ('sep_conv_5x5', 2), ('skip_connect', 0), ('dil_conv_5x5', 1), ('skip_connect', 2), "
    "('skip_connect', 3), ('max_pool_3x3', 1)], reduce_concat=range(2, 6))"
)
# Of a training that has ended.
FILES = ["checkpoint.pt", "history.csv", "metrics.json", "network.pt"]


def train_tiny(out: Path, *, arch: str = ARCH, seed: int = 0, threads: int = 1, **changes: object) -> dict:
    settings = {**TINY, **changes}
    return retrain(settings, load_genotype(arch), seed=seed, threads=threads, device="cpu", out=out)


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "history.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))
