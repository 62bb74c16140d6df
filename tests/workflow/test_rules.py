"""What a rule declares is what its stage reads, and the code that its digest covers is the code that it runs."""

import base64
import json
import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers import ROOT
from helpers.runs import (
    BUILDS,
    FUNNEL,
    ONCE,
    Job,
    call,
    copied,
    copy_repository,
    expected_jobs,
    files_below,
    job_counts,
    modules_of,
    planned,
    snakemake,
    succeed,
    traced,
    with_new_code,
    write_config,
)

from tenas.code import NO_RESULT, PACKAGE, closure, code_digest


class Case(NamedTuple):
    """A job of a finished run: one of its outputs. ``measures``: modules of what it measures by."""

    run: str
    target: str
    measures: tuple[str, ...] = ()


CASES = {
    "prepare": Case("funnel", "data/digits/card.json"),
    "search_settings": Case("funnel", "results/funnel/search.json"),
    "limits": Case("funnel", "results/funnel/limits.json"),
    "mask": Case("funnel", "results/funnel/seed0/round0/mask.json"),
    "sample": Case("funnel", "results/funnel/seed0/round2/sample.csv"),
    "sample of a shortlist": Case("funnel", "results/funnel/seed0/round3/sample.csv"),
    "score": Case("finished", "results/digits/seed0/round1/scores/1.csv", ("ntk", "ntk_grouped", "regions", "regions_grouped")),
    "score of cells": Case("funnel", "results/funnel/seed0/round2/scores/2.csv", ("baselines", "synaptic_flow")),
    "prune": Case("funnel", "results/funnel/seed0/round1/mask.json"),
    "shortlist": Case("funnel", "results/funnel/seed0/round2/shortlist.json"),
    "training": Case("funnel", "results/funnel/seed0/round4/trainings/2/metrics.json"),
    "finalists": Case("funnel", "results/funnel/seed0/round4/finalists.json"),
    "genotype": Case("funnel", "results/funnel/seed0/genotype.json"),
    "genotype of a mask": Case("finished", "results/digits/seed0/genotype.json"),
    "draw": Case("funnel", "results/funnel/seed0/genotype.svg"),
    "lookup": Case("funnel", "results/funnel/seed0/benchmark.json"),
    "table_search": Case("funnel", "results/table_search.csv"),
    "retrain_settings": Case("finished", "results/digits/retrain.json"),
    "retrain": Case("finished", "results/digits/seed0/retrain/metrics.json"),
    "export": Case("finished", "results/digits/seed0/export/export.json"),
    "plot": Case("funnel", "results/funnel/overview.html"),
    "summary": Case("funnel", "results/funnel/summary.csv"),
    "summary of a retraining": Case("finished", "results/digits/summary.csv"),
    "claims": Case("funnel", "results/claims.json"),
    "study_settings": Case("funnel", "results/study/study.json"),
    "study_cells": Case("funnel", "results/study/cells.csv"),
    "study_score": Case("funnel", "results/study/scores/1.csv", ("baselines", "costs")),
    "correlate": Case("funnel", "results/study/correlations.csv"),
}
# Those of six seconds and more.
LONG = {"limits", "score", "score of cells", "study_score", "training", "retrain", "export", "plot", "correlate", "claims"}
# What says when, how long and with how many seconds, in JSON files, at any depth.
TIMES = {"wall_seconds", "training_seconds", "seconds", "costs", "record_sha256", "result_sha256"}
# Archives with times in them.
DATED = {".pt", ".pt2", ".onnx"}


def files_of(folder: Path, path: str) -> list[str]:
    """The files of an output that is a folder, without Snakemake's own."""
    return [f"{path}/{name}" for name in sorted(files_below(folder / path)) if not name.startswith(".")]


def rule_of(name: str) -> str:
    return name.partition(" ")[0]


@pytest.fixture(scope="module")
def all_jobs(finished, funnel) -> dict[str, list[Job]]:
    return {folder.name: planned(folder, "--forceall") for folder in (finished, funnel)}


def digest_of(folder: Path, target: str) -> str | None:
    """The code digest that Snakemake noted for a job."""
    note = json.loads((folder / ".snakemake/metadata" / base64.urlsafe_b64encode(target.encode()).decode()).read_text())
    found = [text.strip("'") for text in note["params"] if re.fullmatch("'[0-9a-f]{64}'", text)]
    return found[0] if found else None


def without_times(value: object) -> object:
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if key not in TIMES}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def test_every_rule_has_its_case():
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "workflow/rules").glob("*.smk")))
    assert {rule_of(name) for name in CASES} == set(re.findall(r"^rule (\w+):", text, re.MULTILINE))


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.long) if name in LONG else name for name in CASES])
def test_a_rule_needs_its_declared_inputs_and_runs_the_code_of_its_digest(name, all_jobs, finished, funnel, tmp_path):
    """Its own command in a folder that holds the inputs alone: the outputs are those of the run, and every function that it
    calls is in a file of its digest."""
    case = CASES[name]
    source = {"finished": finished, "funnel": funnel}[case.run]
    (job,) = [job for job in all_jobs[case.run] if case.target in job.outputs]
    assert job.rule == rule_of(name)
    folder = tmp_path / "folder"
    for path in job.inputs:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / path, folder / path)
    for path in (*job.outputs, job.log):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
    assert job.command.startswith("tenas ")
    result = call("bash", "-c", traced(job.command.removeprefix("tenas "), tmp_path / "notes.json"), cwd=folder)
    assert result.returncode == 0, (folder / job.log).read_text()
    outputs = [name for path in job.outputs for name in (files_of(source, path) if (source / path).is_dir() else [path])]
    for path in outputs:
        ours, theirs = folder / path, source / path
        if path.endswith(".json"):
            assert without_times(json.loads(ours.read_text())) == without_times(json.loads(theirs.read_text())), path
        elif ours.suffix in DATED:
            assert ours.stat().st_size == pytest.approx(theirs.stat().st_size, rel=0.01), path
        else:
            assert ours.read_bytes() == theirs.read_bytes(), path
    made = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {path for path in made - {*job.inputs, *outputs, job.log} if not path.endswith("checkpoint.pt")} == set()
    notes = json.loads((tmp_path / "notes.json").read_text())
    assert notes["torch"] == (job.rule in BUILDS)
    if job.rule.endswith("_settings"):
        return  # what it makes stands in its parameters
    modules = modules_of(job.rule, case.measures)
    assert digest_of(source, case.target) == code_digest(*modules)
    covered = {path.relative_to(PACKAGE).as_posix() for path in closure(modules)}
    called = {path for path in notes["called"] if path.split("/")[0] not in NO_RESULT}
    assert called
    assert called - covered == set()


# --- edits


@pytest.fixture(scope="module")
def edited(finished, funnel, tmp_path_factory) -> Path:
    """A copy of the repository, with the finished runs in two folders of it."""
    root = copy_repository(tmp_path_factory.mktemp("repository"))
    for folder in (finished, funnel):
        copied(folder, root / folder.name)
        assert "Nothing to be done" in succeed(snakemake(root / folder.name, "--dry-run", root=root))
    return root


@pytest.fixture
def edit(request):
    """Append a line to a file, or replace a part of it; afterwards it is as it was, with its time."""
    before = []

    def change(path: Path, *replaced: str) -> None:
        text, status = path.read_text(), path.stat()
        before.append((path, text, status))
        assert not replaced or replaced[0] in text
        path.write_text(text.replace(*replaced) if replaced else f"{text}\n# edited\n")

    yield change
    for path, text, status in reversed(before):
        path.write_text(text)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    ("modules", "of_finished", "of_funnel"),
    [
        (["measures/ntk.py"], {"score"}, set()),
        # And score and training, after limits.
        pytest.param(["networks/single.py"], {"score"}, {"limits", "study_score"}, marks=pytest.mark.long),
        (["search/prune.py"], {"prune"}, {"prune"}),
        pytest.param(
            ["report/drawing.py", "report/summary.py"],
            {"draw", "plot", "summary"},
            {"draw", "plot", "summary"},
            marks=pytest.mark.long,
        ),
        # And plot, after retrain and training.
        (["retrain/train.py", "study/correlate.py"], {"retrain"}, {"training", "correlate"}),
        # claims, plot: baselines
        pytest.param(
            ["export/stage.py", "benchmark/searches.py"],
            {"export", "plot"},
            {"table_search", "claims", "plot"},
            marks=pytest.mark.long,
        ),
        (["networks/darts.py", "settings/base.py", "cli.py", "files.py", "stages/types.py"], set(), set()),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_edit_of_the_package_repeats_what_runs_it(edited, edit, modules, of_finished, of_funnel):
    for module in modules:
        edit(edited / "tenas" / module)
    for folder, rules in (("finished", of_finished), ("funnel", of_funnel)):
        assert with_new_code(planned(edited / folder, root=edited)) == rules, folder


def test_an_edit_of_the_catalogue_repeats_what_asks_it(edited, edit):
    """Traits of measures decide: what is scored, ranked and correlated follows from them, and what has no measure does not."""
    edit(edited / "tenas/measures/catalogue.py", "lower_is_better=True", "lower_is_better=False")
    repeated = {job.rule for job in planned(edited / "funnel", root=edited)}
    assert {"score", "prune", "shortlist", "study_score", "correlate"} <= repeated
    assert not {"prepare", "search_settings", "study_settings", "table_search"} & repeated


def test_a_touch_repeats_nothing(edited):
    for path in (edited / "tenas").rglob("*.py"):
        path.touch()
    assert "Nothing to be done" in succeed(snakemake(edited / "finished", "--dry-run", root=edited))


def test_an_edit_of_a_preset_is_noticed(edited, edit):
    edit(edited / "config/presets/pruning.yaml", "change: log", "change: relative")
    assert with_new_code(planned(edited / "finished", root=edited)) == {"search_settings"}


def test_the_configured_number_of_shards_holds_for_what_is_measured_again(edited, edit):
    """And not for what is there: see test_funnel.py."""
    five = ("--config", "shards=5")
    assert planned(edited / "funnel", *five, root=edited) == []
    edit(edited / "tenas/measures/baselines.py")
    again = job_counts(succeed(snakemake(edited / "funnel", "--dry-run", *five, root=edited)))
    whole = expected_jobs(FUNNEL | {"shards": 5}, edited / "funnel")
    assert [again[rule] for rule in ("score", "study_score")] == [whole[rule] for rule in ("score", "study_score")]


# --- a user's own files

OWN_SPACE = """
from torch import nn
from tenas.spaces import ChainSpace, Layer


def conv(kernel):
    def factory(inputs, outputs, stride):
        return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
    return factory


SPACE = ChainSpace("own", {"small": conv(1), "large": conv(3)}, [Layer(), Layer(width=2, stride=2), Layer()], channels=4)
"""
OWN_MEASURE = """
from tenas.measures import Measure
from weights import count


def largest(network, images):
    return max(map(count, network.parameters()))


MEASURE = Measure("largest", largest, lower_is_better=True)
"""
OWN_WEIGHTS = "def count(parameter):\n    return float(parameter.numel())\n"
OWN_SOURCE = """
import numpy as np
from tenas.data import Arrays, Loaded, Source


def load(path):
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    return Loaded(Arrays(images, np.arange(60) % 3), None, 3)


SOURCE = Source(load, needs_path=False)
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """A finished search in a space, by a measure, on images of a user's own."""
    folder = tmp_path_factory.mktemp("own")
    files = {"space.py": OWN_SPACE, "measure.py": OWN_MEASURE, "weights.py": OWN_WEIGHTS, "images.py": OWN_SOURCE}
    for name, text in files.items():
        (folder / name).write_text(text)
    rounds = [{"kind": "cells", "sample": 4, "keep": 2, "measures": {"measure.py:MEASURE": ONCE}}]
    rounds.append({"kind": "training", "training": {"channels": 2, "cells": 1, "epochs": 1, "batch": 16}})
    run = {
        "space": "space.py:SPACE", "dataset": "mine", "preset": "pruning", "seeds": [0],
        "search": {"exclude": [], "rounds": rounds},
    }  # fmt: skip
    dataset = {"source": "images.py:SOURCE", "images": 40}
    write_config(folder, {"shards": 1, "device": "cpu", "datasets": {"mine": dataset}, "runs": {"own": run}})
    succeed(snakemake(folder))
    return folder


@pytest.mark.long
@pytest.mark.workflow
@pytest.mark.parametrize(
    ("name", "rule", "kept"),
    [
        ("space.py", "mask", {"prepare", "search_settings"}),
        ("measure.py", "score", {"prepare", "search_settings", "mask", "sample"}),
        ("weights.py", "score", {"prepare", "search_settings", "mask", "sample"}),  # the measure imports it
        ("images.py", "prepare", {"search_settings", "mask", "sample"}),
    ],
)
def test_an_edit_of_a_file_of_ones_own_repeats_what_runs_it(own, edit, name, rule, kept):
    """``rule`` by itself; others after it, but for what is ``kept``."""
    edit(own / name)
    found = planned(own)
    assert with_new_code(found) == {rule}
    repeated = {job.rule for job in found}
    assert not repeated & kept
    assert {"score", "shortlist", "training", "finalists", "genotype", "draw", "summary"} <= repeated


@pytest.mark.long
@pytest.mark.workflow
def test_a_training_reads_a_source_of_ones_own(own, edit):
    """The data set itself, not what was prepared of it: by itself too it is repeated when the source changes."""
    edit(own / "images.py")
    target = "results/own/seed0/round2/trainings/1/metrics.json"
    assert with_new_code(planned(own, target, "--allowed-rules", "training")) == {"training"}


@pytest.mark.workflow
def test_a_touch_of_a_file_of_ones_own_repeats_nothing(own):
    for path in own.glob("*.py"):
        path.touch()
    assert "Nothing to be done" in succeed(snakemake(own, "--dry-run"))
