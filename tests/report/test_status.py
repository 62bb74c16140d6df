"""What `tenas status` says of runs: finished, under way, killed, failed."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.runs import FUNNEL, ONCE, TINY, call, changed, killed_when, snakemake, succeed, workflow, write_config

from tenas import layout
from tenas.cli import main
from tenas.progress import duration
from tenas.report.status import failures, status

# A measure that fails while a file is there, between those that do not.
FRAGILE = """
from pathlib import Path

from tenas import Measure, TenasError


def fragile(network, images):
    if Path("fail").exists():
        raise TenasError("It cannot be measured today.")
    return 1.0


MEASURE = Measure("fragile", fragile)
"""


def said(folder: Path, *arguments: object) -> str:
    return succeed(call("tenas", "status", *arguments, cwd=folder))


def test_a_finished_run_and_its_study(funnel):
    text = said(funnel)
    assert "results/funnel: 1 of 1 seeds that have begun are done\n  seed 0  found |" in text
    assert re.search(r"found \|\S+\|, cifar10_test \d+\.\d\d %, cifar100_test \d+\.\d\d %", text)
    assert "results/study: done" in text
    assert "failed" not in text
    assert said(funnel, "results/study") == "results/study: done\n"


@pytest.mark.long
@pytest.mark.workflow
def test_a_killed_search_counts_what_it_has_kept_and_goes_on(tmp_path):
    measures = {"ntk_condition_number": {"repeats": 15, "batch": 4}, "linear_regions": None}
    write_config(tmp_path, changed(TINY, search={"measures": measures}, retrain=None, retraining={}) | {"shards": 1})
    killed_when(tmp_path, "results/digits/seed0/round1/scores/.1.partial", *workflow(), after=1)
    (partial,) = (tmp_path / "results/digits/seed0/round1/scores").glob(".*.partial")
    kept = len(partial.read_text().split("\n")[1:-1])
    planned = 15 * (6 * 4 + 1)
    assert 0 < kept < planned
    text = said(tmp_path)
    assert "0 of 1 seeds that have begun are done" in text
    # The rate is that between two measurements: a first one says nothing, and waits for the workers' start.
    rate = r", [\d.]+ per (second|minute), .* left" if kept > 1 else ""
    assert re.search(rf"seed 0  round 1 of 3, operators: {kept:,} of {planned:,} measurements{rate}$", text, re.MULTILINE)
    # An hour later nothing has come: no rate is made up.
    later = status([tmp_path / "results"], now=time.time() + 3600)
    assert re.search(rf"{kept:,} of {planned:,} measurements, nothing for 1 h 00 min$", later, re.MULTILINE)

    succeed(snakemake(tmp_path, "--unlock"))
    killed_when(tmp_path, "results/digits/seed0/round2/mask.json", *workflow(), "--rerun-incomplete")
    assert re.search(r"seed 0  round 3 of 3, operators: \d+ of \d+ measurements", said(tmp_path))
    again = ("tenas", "run", "config/config.yaml", "--cores", "2")
    assert "--unlock" in call(*again, cwd=tmp_path).stdout
    succeed(call(*again, "--unlock", cwd=tmp_path))
    succeed(call(*again, cwd=tmp_path))
    assert "1 of 1 seeds that have begun are done" in said(tmp_path)


@pytest.mark.long
@pytest.mark.workflow
def test_a_job_that_failed_is_named_with_its_log_until_it_has_run(tmp_path):
    (tmp_path / "own.py").write_text(FRAGILE, encoding="utf-8")
    (tmp_path / "fail").touch()
    rounds = [{"kind": "cells", "sample": 4, "keep": 2, "measures": {"own.py:MEASURE": ONCE, "flops": ONCE}}]
    config = {key: FUNNEL[key] for key in ("device", "datasets")} | {"shards": 1, "benchmark": {"nas-bench-201": None}}
    run = {"space": "nas-bench-201", "dataset": "digits", "preset": "pruning", "search": {"rounds": rounds}, "seeds": [0]}
    write_config(tmp_path, config | {"runs": {"mine": run}})
    assert snakemake(tmp_path).returncode != 0
    assert "  failed  It cannot be measured today.\n          logs/mine/score/seed0-round1-1.log\n" in said(tmp_path)
    (tmp_path / "fail").unlink()
    succeed(snakemake(tmp_path))
    assert "failed" not in said(tmp_path)


def test_a_job_has_failed_by_the_sentence_that_ends_its_log(tmp_path):
    """Warnings and remarks end nothing: a job that succeeds may say no more after them."""
    logs, run = tmp_path / "logs/mine", tmp_path / "results/mine"
    logs.mkdir(parents=True)
    ends = ("tenas: warning: A table has 14 cells.", "tenas: note: PyTorch finds no GPU.", "kappa: 8 of 8", "")
    for number, last in enumerate(ends):
        (logs / f"{number}.log").write_text(f"tenas: warning: First.\n{last}\n")
    assert failures(run) == []
    (logs / "4.log").write_text("tenas: warning: First.\ntenas: There is not enough memory.\n")
    assert [line.split("\n")[0] for line in failures(run)] == ["  failed  There is not enough memory."]


def test_short_trainings_and_the_retraining_are_counted_in_epochs(finished_default, tmp_path):
    run = tmp_path / "results" / "digits"
    shutil.copytree(finished_default / "results" / "digits", run)
    last = run / "seed0" / "round4"
    (run / "seed0" / "retrain" / "metrics.json").unlink()
    assert "    retraining: 1 of 1 epochs" in status([run])
    for path in (run / "seed0" / "genotype.json", last / "finalists.json", last / "trainings" / "2" / "metrics.json"):
        path.unlink()
    (last / "trainings" / "2" / "history.csv").unlink()
    text = status([run])
    assert "  seed 0  round 4 of 4, training: 1 of 2 epochs\n" in text
    best = (run / "seed0" / "round3" / "cells.csv").read_text()
    assert re.search(r"best so far (\S+)", text)[1] in best


def test_a_damaged_run_does_not_hide_the_others(funnel, tmp_path):
    shutil.copytree(funnel / "results", tmp_path / "results")
    damaged = tmp_path / "results" / "damaged"
    damaged.mkdir()
    (damaged / "search.json").write_text("{", encoding="utf-8")
    text = status([tmp_path / "results"])
    assert re.search(rf"^{re.escape(str(damaged))}: .*search\.json.*$", text, re.MULTILINE)
    assert "1 of 1 seeds" in text


@pytest.mark.parametrize("key", ["measurements", "shard", "wall_seconds"])
@pytest.mark.parametrize("value", [None, float("inf"), "1/" + "9" * 5000], ids=lambda value: str(value)[:8])
def test_a_record_that_holds_something_else_is_a_sentence(finished, tmp_path, capsys, key, value):
    """Of a run that has ended, and of one under way."""
    run = tmp_path / "run"
    shutil.copytree(finished / "results" / "digits", run)
    path = layout.path(layout.SCORES, run, seed=0, round=1, shard=1).with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    table = ["--seeds", "0", "--out", str(tmp_path / "s.csv"), "--metrics", str(tmp_path / "s.json")]
    for command in (["show", str(run)], ["summary", str(run), *table]):
        assert main(command) == (0 if key == "measurements" else 2)
        said = capsys.readouterr().err
        assert said.count("\n") == (0 if key == "measurements" else 1)
        assert said.startswith("tenas: ") or not said
    for number in range(1, 4):
        layout.path(layout.MASK, run, seed=0, round=number).unlink()
    layout.path(layout.GENOTYPE, run, seed=0).unlink()
    assert str(run) in status([run])


def test_a_folder_without_a_run_gets_a_sentence(tmp_path):
    result = call("tenas", "status", ".", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == "tenas: There is no run in .: neither search.json nor study.json, nor a folder that has one.\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (59.5, "1 min 00 s"), (250, "4 min 10 s"), (3600, "1 h 00 min"), (11_100, "3 h 05 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_it_starts_without_torch():
    result = call("python", "-X", "importtime", "-m", "tenas.cli", "status", ROOT / "results", cwd=ROOT)
    assert "report.status" in result.stdout
    assert not re.search(r"\| +torch$", result.stdout, re.MULTILINE)
