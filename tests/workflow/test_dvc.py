"""``dvc repro`` does what ``snakemake`` does: the real thing, in a copy of the repository with a tiny configuration."""

import csv
import json
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from helpers.runs import DEFAULT, ONCE, call, copy_repository, expected_jobs, modules_of, snakemake, succeed, write_config

from tenas.code import closure
from tenas.errors import TenasError
from tenas.tracked import check_tracked, forget_seeds, users_files

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
STAGES = PIPELINE["stages"]
# Rules of rounds, and of limits, that the default run does not have.
OTHER_SEARCHES = {"limits", "prune"}
MEASURES = ("activations", "costs", "ntk", "regions", "synaptic_flow")


def allowed_rules(commands: list[str]) -> set[str]:
    """Of a stage's commands, the first of which checks the configuration."""
    assert re.fullmatch(r"python -m tenas\.config config/[\w-]+\.yaml", commands[0])
    found = [re.search(r"--allowed-rules ((?: ?\w+)+)", command)[1] for command in commands[1:]]
    return set(" ".join(found).split())


def outputs(stage: str) -> set[str]:
    """The paths that a stage gives DVC, for seed 0 of the default configuration."""
    found = set()
    for kind in ("outs", "metrics", "plots"):
        for entry in STAGES[stage].get(kind, []):
            name = entry if isinstance(entry, str) else next(iter(entry))
            found.add(name.replace("${item.seed}", "0").replace("${item.dataset}", "digits"))
    return found


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory, finished_default) -> Path:
    """A clone in which ``dvc repro`` has run once, after a run of Snakemake has compiled what both measure with."""
    folder = copy_repository(tmp_path_factory.mktemp("clone"))
    (folder / "dvc.lock").unlink(missing_ok=True)  # that of the default run
    write_config(folder, DEFAULT | {"benchmark": {}})
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "a clone"]):
        succeed(call("git", "-c", "user.name=test", "-c", "user.email=test@localhost", *command, cwd=folder))
    succeed(dvc(folder, "repro"))
    return folder


def dvc(folder: Path, *arguments: str):
    return call("dvc", *arguments, cwd=folder, PYTHONPATH=str(folder))


def change(folder: Path, **changes: object) -> None:
    path = folder / "config/config.yaml"
    config = yaml.safe_load(path.read_text())
    config |= {key: value for key, value in changes.items() if key in config}
    config["runs"]["digits"] |= {key: value for key, value in changes.items() if key not in config}
    write_config(folder, config)


# --- dvc.yaml against the workflow


def test_each_rule_of_a_run_belongs_to_one_stage():
    """Those that need more of the configuration (claims, a study, searches on a table) are for `snakemake` alone."""
    fenced = [rule for name, stage in STAGES.items() if name != "gather" for rule in allowed_rules(stage["cmd"])]
    needed = expected_jobs(DEFAULT, ROOT).keys() - {"all"}
    assert sorted(fenced) == sorted(needed | OTHER_SEARCHES)


@pytest.mark.dvc
def test_stages_track_every_file_of_the_default_run():
    """Against the workflow itself: what a dry run of config/config.yaml is going to make."""
    listed = succeed(snakemake(ROOT, "--dry-run", "--forceall", "--quiet", "rules", "--summary"))
    made = {line.split("\t")[0] for line in listed.splitlines() if line.startswith(("data/", "results/"))}
    tracked = set().union(*map(outputs, STAGES))
    untracked = {name for name in made if not any(name == out or name.startswith(f"{out}/") for out in tracked)}
    assert untracked == set()
    assert {out for out in tracked if out.startswith("results/") and not any(m.startswith(out) for m in made)} == set()


@pytest.mark.parametrize("name", sorted(STAGES.keys() - {"gather", "settings"}))
def test_a_stage_depends_on_the_code_that_its_rules_run(name):
    """On all of it, and on nothing of the package that they do not run."""
    rules = allowed_rules(STAGES[name]["cmd"]) - OTHER_SEARCHES
    code = {path.relative_to(ROOT).as_posix() for rule in rules for path in closure(modules_of(rule, MEASURES))}
    listed = {dep for dep in STAGES[name]["deps"] if dep.startswith("tenas/")}
    covers = {dep: {path for path in code if path == dep or path.startswith(f"{dep}/")} for dep in listed}
    assert code - set().union(*covers.values()) == set()
    assert {dep for dep, covered in covers.items() if not covered} == set()


def test_the_number_of_shards_is_no_parameter():
    for path in ("dvc.yaml", "paper/dvc.yaml"):
        text = (ROOT / path).read_text(encoding="utf-8")
        assert "- shards" not in text


@pytest.mark.dvc
def test_the_papers_runs_are_stages_of_their_own():
    """One per run and one per data set of their configuration, which fence in every rule that the workflow has for them."""
    config = yaml.safe_load((ROOT / "config/nas-bench-201.yaml").read_text(encoding="utf-8"))
    changed = json.loads(succeed(dvc(ROOT, "status", "--json", "paper/dvc.yaml")))
    stages = {f"prepare@{name}" for name in config["datasets"]} | {f"run@{name}" for name in config["runs"]}
    assert {name.partition(":")[2] for name in changed} == stages
    pipeline = yaml.safe_load((ROOT / "paper/dvc.yaml").read_text(encoding="utf-8"))["stages"]
    fenced = set().union(*(allowed_rules(pipeline[name]["do"]["cmd"]) for name in ("prepare", "run")))
    arguments = ("--dry-run", "--forceall", "--quiet", "rules", "--configfile", "config/nas-bench-201.yaml", "--", "all")
    planned = succeed(call("snakemake", *arguments, cwd=ROOT))
    needed = set(re.findall(r"^(\w+) +\d+$", planned, re.MULTILINE)) - {"all", "total", "claims"}
    # Its short trainings are looked up.
    assert fenced == needed | {"limits", "training"}


def test_analytics_are_off():
    assert "analytics = false" in (ROOT / ".dvc" / "config").read_text(encoding="utf-8")


@pytest.mark.dvc
def test_nothing_in_a_configuration_is_run_by_a_shell(tmp_path):
    """Not even where a stage is asked for alone, whose command DVC makes of the configuration's texts."""
    folder = copy_repository(tmp_path / "clone")
    succeed(call("git", "init", "--quiet", cwd=folder))
    datasets = DEFAULT["datasets"] | {"digits;touch ran;": {"source": "digits"}}
    for key, value, asked in (("seeds", ["0;touch ran;"], ()), ("dataset", "digits;touch ran;", ("--single-item", "prepare"))):
        write_config(folder, DEFAULT | {"runs": {"digits": DEFAULT["runs"]["digits"] | {key: value}}, "datasets": datasets})
        done = dvc(folder, "repro", *asked)
        assert done.returncode != 0
        assert "tenas: config/config.yaml: " in done.stdout
        assert not list(folder.rglob("ran"))


OWN = """
from tenas import Measure
from helper import SIGN

MEASURE = Measure("own", lambda network, images: SIGN * sum(p.numel() for p in network.parameters()), signed=True)
"""


@pytest.mark.dvc
def test_a_file_of_ones_own_has_to_be_a_dependency(tmp_path):
    """DVC would take the results of its older version for up to date."""
    folder = copy_repository(tmp_path / "clone")
    succeed(call("git", "init", "--quiet", cwd=folder))
    (folder / "config/own.py").write_text(OWN)
    (folder / "config/helper.py").write_text("SIGN = 1\n")
    rounds = [{"kind": "cells", "sample": 4, "keep": 1, "measures": {"config/own.py:MEASURE": ONCE}}]
    write_config(folder, DEFAULT)
    change(folder, search={"rounds": rounds}, retrain=None, retraining={})
    text = (folder / "dvc.yaml").read_text()
    for missing in ("config/helper.py", "config/own.py"):
        done = dvc(folder, "repro", "--single-item", "prepare")
        assert done.returncode != 0
        assert f"tenas: The stage 'settings' of dvc.yaml reads {missing}, which is not among its dependencies" in done.stdout
        text = text.replace("      - tenas/measures/catalogue.py\n", f"      - tenas/measures/catalogue.py\n      - {missing}\n")
        (folder / "dvc.yaml").write_text(text)
    done = dvc(folder, "repro", "--single-item", "prepare")
    assert "The stage 'search' of dvc.yaml reads config/helper.py" in done.stdout
    assert not (folder / "data/digits").exists()
    for file in ("config/helper.py", "config/own.py"):
        text = text.replace("      - tenas/stages/score.py\n", f"      - tenas/stages/score.py\n      - {file}\n")
    (folder / "dvc.yaml").write_text(text)
    succeed(dvc(folder, "repro", "--single-item", "prepare"))


def test_files_of_ones_own_by_stage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("own.py", "table.csv", "times.csv", "mine.yaml", "cells.csv"):
        (tmp_path / name).write_text("")
    rounds = [
        {"kind": "cells", "sample": "all", "measures": {"flops": {}}},
        {"kind": "cells", "sample": "cells.csv", "measures": {"naswot": {}}},
        {"kind": "training", "column": None},
    ]
    run = {
        "settings": {"space": "nas-bench-201", "rounds": rounds, "limits": {"latency": {"table": "times.csv"}}},
        "dataset": "mine", "preset": "mine.yaml", "retrain": "digits",
    }  # fmt: skip
    config = {"datasets": {"mine": {"source": "folder", "path": "photos"}}, "benchmark": {"nas-bench-201": "table.csv"}}
    found = {stage: {file.name for file in files} for stage, files in users_files(run, config).items()}
    assert found == {
        "prepare": {"photos"}, "settings": {"mine.yaml", "digits.yaml"}, "search": {"cells.csv", "times.csv", "photos"},
        "draw": set(), "lookup": {"table.csv"}, "retrain": {"photos"}, "export": set(), "plot": {"table.csv"},
    }  # fmt: skip


@pytest.mark.parametrize("name", ["settings", "whole"])
@pytest.mark.parametrize(
    ("listed", "is_whole"), [(["mine.yaml"], True), (["${runs.r.preset}"], True), (["."], True), (None, False)]
)
def test_dependencies_are_read_as_dvc_reads_them(tmp_path, monkeypatch, name, listed, is_whole):
    """Below ``do``, from the stage's folder, with values of the configuration; whatever the stages are called."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("")
    (tmp_path / "below").mkdir()
    stage = {"wdir": "..", "cmd": "snakemake results/r/search.json", "deps": listed}
    pipeline = tmp_path / "below/dvc.yaml"
    pipeline.write_text(yaml.safe_dump({"stages": {name: {"foreach": [1], "do": stage}}}))
    settings = {"space": "nas-bench-201", "rounds": [], "limits": {}}
    run = {"settings": settings, "dataset": "digits", "preset": "mine.yaml", "retrain": None}
    config = {"datasets": {"digits": {"source": "digits", "path": None}}, "benchmark": {}, "runs": {"r": run}}
    with nullcontext() if is_whole else pytest.raises(TenasError, match=r"reads \.\./mine\.yaml, which is not among"):
        check_tracked(config, pipeline)


def test_seeds_that_are_gone_are_no_dependency(tmp_path):
    for name in ("r/gathered/seed0", "r/gathered/seed1", "r/gathered/seed10", "r/score.log", "other/gathered/seed1"):
        (path := tmp_path / "logs" / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    forget_seeds({"runs": {"r": {"seeds": [0, 10]}}}, tmp_path)
    left = sorted(path.relative_to(tmp_path / "logs").as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["other/gathered/seed1", "r/gathered/seed0", "r/gathered/seed10", "r/score.log"]


# --- a clone in which it has run


@pytest.mark.dvc
def test_a_second_repro_runs_nothing(reproduced):
    output = succeed(dvc(reproduced, "repro"))
    assert "Running stage" not in output
    assert "up to date" in output
    assert "up to date" in succeed(dvc(reproduced, "status", "dvc.yaml"))


@pytest.mark.dvc
def test_nor_does_snakemake_after_it(reproduced):
    assert "Nothing to be done" in succeed(snakemake(reproduced, "--dry-run", root=reproduced))


@pytest.mark.dvc
def test_another_number_of_shards_runs_nothing(reproduced):
    change(reproduced, shards=5)
    assert "Running stage" not in succeed(dvc(reproduced, "repro"))
    assert "up to date" in succeed(dvc(reproduced, "status", "dvc.yaml"))
    assert "Nothing to be done" in succeed(snakemake(reproduced, "--dry-run", root=reproduced))
    change(reproduced, shards=DEFAULT["shards"])


@pytest.mark.dvc
def test_the_results_are_those_of_snakemake(reproduced, finished_default):
    for name in ("genotype.json", "round1/cells.csv", "round3/shortlist.json", "round4/trainings.csv", "retrain/history.csv"):
        ours, theirs = ((folder / "results/digits/seed0" / name).read_bytes() for folder in (reproduced, finished_default))
        assert ours == theirs


@pytest.mark.dvc
def test_metrics_and_plots_are_shown(reproduced):
    metrics = json.loads(succeed(dvc(reproduced, "metrics", "show", "--json")))
    values = metrics[""]["data"]["results/digits/metrics.json"]["data"]["seed0"]
    (row,) = csv.DictReader((reproduced / "results/digits/seed0/retrain/history.csv").open())
    assert values["valid_accuracy"] == pytest.approx(float(row["valid_accuracy"]))
    assert 0 <= values["test_accuracy"] <= 100
    assert values["cifar10_test"] > 10  # of the table that comes with the project
    assert "history.csv" in succeed(dvc(reproduced, "plots", "show", "--json"))


@pytest.mark.dvc
def test_git_sees_no_results(reproduced):
    assert succeed(call("git", "status", "--porcelain", cwd=reproduced)).split() == ["??", "dvc.lock"]


@pytest.mark.long
@pytest.mark.dvc
def test_a_change_runs_the_stages_that_it_touches(reproduced):
    """A change of the retraining is one of the short trainings too, so of the search."""
    change(reproduced, retraining=DEFAULT["runs"]["digits"]["retraining"] | {"weight_decay": 0.001})
    output = succeed(dvc(reproduced, "repro"))
    ran = set(re.findall(r"Running stage '(\w+)", output))
    # The drawing and the look-up only where another cell is found.
    assert ran - {"draw", "lookup"} == {"settings", "search", "retrain", "export", "gather", "summary", "plot"}
    assert "Nothing to be done" in succeed(snakemake(reproduced, "--dry-run", root=reproduced))


@pytest.mark.long
@pytest.mark.dvc
def test_a_second_seed_is_searched_and_summarised(reproduced):
    change(reproduced, seeds=[0, 1])
    output = succeed(dvc(reproduced, "repro"))
    assert {"search@1", "draw@1", "lookup@1", "retrain@1", "export@1", "gather@1", "summary", "plot"} == set(
        re.findall(r"Running stage '([\w@]+)'", output)
    )
    rows = list(csv.DictReader((reproduced / "results/digits/summary.csv").open()))
    assert [row["seed"] for row in rows] == ["0", "1"]
