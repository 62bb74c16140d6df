"""Paths of all files of a run, defined nowhere else: Snakemake's patterns, relative to the run's folder.

``path(SCORES, run_folder, seed=0, round=1, shard=2)`` fills in a pattern; ``results(SCORES)`` is the pattern for the workflow.
"""

import os
from pathlib import Path

# Of a run.
SEARCH = "search.json"
LIMITS = "limits.json"
RETRAIN = "retrain.json"
SUMMARY = "summary.csv"
METRICS = "metrics.json"
OVERVIEW = "overview.html"
FIGURES = "figures"
# Of a seed.
SEED = "seed{seed}"
GENOTYPE = f"{SEED}/genotype.json"
DRAWING = f"{SEED}/genotype.svg"
LOOKUP = f"{SEED}/benchmark.json"
# Of a round. Its state after it is a mask, or a list of cells.
ROUND = f"{SEED}/round{{round}}"
MASK = f"{ROUND}/mask.json"
SAMPLE = f"{ROUND}/sample.csv"
SCORES = f"{ROUND}/scores/{{shard}}.csv"
SCORES_RECORD = f"{ROUND}/scores/{{shard}}.json"
RANKING = f"{ROUND}/ranking.csv"
CELLS = f"{ROUND}/cells.csv"
SHORTLIST = f"{ROUND}/shortlist.json"
TRAINING = f"{ROUND}/trainings/{{place}}"
TRAINING_METRICS = f"{TRAINING}/metrics.json"
TRAINING_HISTORY = f"{TRAINING}/history.csv"
TRAININGS = f"{ROUND}/trainings.csv"
FINALISTS = f"{ROUND}/finalists.json"
STATE = {"operators": MASK, "edges": MASK, "cells": SHORTLIST, "training": FINALISTS}
TABLE = {"operators": RANKING, "edges": RANKING, "cells": CELLS, "training": TRAININGS}
# Of the retraining of a seed's genotype.
CHECKPOINT = "checkpoint.pt"  # in the folder of any training
HISTORY = f"{SEED}/retrain/history.csv"
RETRAIN_METRICS = f"{SEED}/retrain/metrics.json"
NETWORK = f"{SEED}/retrain/network.pt"
PROGRAM = f"{SEED}/export/network.pt2"
ONNX = f"{SEED}/export/network.onnx"
EXPORT = f"{SEED}/export/export.json"
# Of a study.
STUDY = "study.json"
STUDY_CELLS = "cells.csv"
STUDY_SCORES = "scores/{shard}.csv"
STUDY_SCORES_RECORD = "scores/{shard}.json"
CORRELATIONS = "correlations.csv"
CORRELATIONS_RECORD = "correlations.json"
FOREST = "forest.svg"
SCATTER = "scatter.svg"
# Of a prepared data set, relative to its own folder.
IMAGES, LABELS, CARD, PREVIEW = "images.npy", "labels.npy", "card.json", "preview.png"


def path(pattern: str, folder: str | os.PathLike[str] = ".", **wildcards: int | str) -> Path:
    """Fill in a pattern, below the folder of its run. Raises KeyError for a wildcard without a value."""
    return Path(folder) / pattern.format(**wildcards)


def results(pattern: str, wildcard: str = "run") -> str:
    """The workflow's pattern, relative to the working directory, with a wildcard for the run (``study`` for a study)."""
    return f"results/{{{wildcard}}}/{pattern}"


def prepared(name: str) -> str:
    """The workflow's pattern of a file of a prepared data set."""
    return f"data/{{dataset}}/{name}"


def record_of(scores: str | os.PathLike[str]) -> Path:
    """The record next to a file of scores."""
    return Path(scores).with_suffix(".json")


def checkpoint_of(scores: str | os.PathLike[str]) -> Path:
    """The hidden file next to scores that holds the measurements so far (tenas.scoring.checkpoint)."""
    return Path(scores).with_name(f".{Path(scores).stem}.partial")
