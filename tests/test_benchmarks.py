"""Every script of benchmarks/ runs, with arguments that make it short."""

import json
import re
import time
from pathlib import Path

import pytest
from runs import ROOT, call, succeed

from benchmarks import ntk, operator_mix, search
from benchmarks.side_by_side import Workers, table
from tenas.benchmark import read_index
from tenas.files import write_json
from tenas.spaces import get_space

SCRIPTS = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text(encoding="utf-8")}
# Arguments for a short run, and what it prints.
SHORT = {
    "ntk": (("--rounds", 1, "--least", 0.01, "--cases", "nas-bench-201,1,1,4"), r"\| nas-bench-201, C=1, n=4 +\|"),
    "search": (("--data", "images", "--preset", "tiny.yaml", "--trials", 1), r"\| 3 +\| 12 +\|.*\n\nThe usual way, .* Ratio: "),
    "operator_mix": (("builtin", "run"), r"\| run +\| 2 +\| 0\.50 +\| 0\.32 +\|"),
    "dag": (("--runs", 1, "--svg", "dag.svg"), r"\| 1 +\| 111 +\|"),
    "az_nas": (
        ("--table", "table.csv", "--cells", 3, "--batch", 4, "--channels", 2, "--stage-cells", 1, "--out", "az_nas.csv"),
        r"3 cells, .* s per cell\n\| ranking",
    ),
}  # fmt: skip
TINY = """
exclude: [none]
change: log
ranks: average
measures:
  ntk_condition_number: {repeats: 1, batch: 4, channels: 1, cells: 1, weights: kaiming_fan_out, redraw: true}
  linear_regions: {repeats: 2, inputs: crops, count: 300, blocks: 3, channels: 1, weights: kaiming_fan_in, redraw: true}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the scripts read: images, a preset, a run of two seeds, a table."""
    folder = tmp_path_factory.mktemp("benchmarks")
    dataset = json.dumps({"source": "digits", "images": 60})
    succeed(call("tenas", "prepare", dataset, "--out", "images", cwd=folder))
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    space = get_space("nas-bench-201")
    texts = (
        "|nor_conv_3x3~0|+|nor_conv_3x3~0|skip_connect~1|+|none~0|avg_pool_3x3~1|nor_conv_3x3~2|",
        "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_1x1~1|+|nor_conv_3x3~0|avg_pool_3x3~1|none~2|",
    )
    for seed, text in enumerate(texts):
        write_json(folder / f"run/seed{seed}/genotype.json", space.parse(text).to_json())
    read_index("builtin").head(200).to_csv(folder / "table.csv", index=False)
    return folder


def run(name: str, folder: Path, *arguments: object) -> str:
    return succeed(call("python", "-m", f"benchmarks.{name}", *arguments, cwd=folder))


def test_every_script_has_a_short_run():
    assert set(SHORT) == SCRIPTS


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_script_runs(folder, name):
    arguments, printed = SHORT[name]
    output = run(name, folder, *arguments)
    assert re.search(printed, output), output
    if name == "dag":
        assert (folder / "dag.svg").read_text().startswith("<?xml")


def test_the_curves_of_the_ntk_are_drawn(folder):
    run("ntk", folder, "--plots", "curves", "--points", 1, "--least", 0.01)
    assert {path.name for path in (folder / "curves").iterdir()} == {f"{name}.svg" for name in ntk.CURVES}


def test_what_only_a_search_can_be_timed_against(folder):
    (folder / "cells.yaml").write_text(
        TINY.replace("measures:", "rounds: [{kind: cells, sample: 4, keep: 1}]\nmeasures:"), encoding="utf-8"
    )
    output = call("python", "-m", "benchmarks.search", "--data", "images", "--preset", "cells.yaml", cwd=folder)
    assert output.returncode != 0
    assert "The preset cells.yaml does more than prune" in output.stdout


def test_the_usual_way_gives_the_same_condition_numbers(folder):
    """What is timed is the same measurement, done otherwise."""
    import torch

    from tenas.measures import condition_number
    from tenas.measures.ntk import ntk_gram_by_loop
    from tenas.scoring.shard import read_inputs
    from tenas.scoring.subjects import Measurement, Trials
    from tenas.settings import schedule, search_settings

    settings = search_settings("nas-bench-201", str(folder / "tiny.yaml"))
    entry, space = settings["rounds"][0], get_space("nas-bench-201")
    subjects = Trials(space.full_mask(["none"]), schedule(settings)[0])
    inputs = read_inputs(entry["measures"], folder / "images/images.npy")
    scorer = search.scorers_of(subjects, entry["measures"], (0, 1), *inputs)[search.KAPPA]
    ours = scorer(Measurement(5, search.KAPPA, 0)).value
    usual = condition_number(ntk_gram_by_loop(scorer.network(search.KAPPA, 5, 0), *scorer.inputs), dtype=torch.float32)
    assert usual == pytest.approx(ours, rel=0.02)


def test_agreement_and_mix_by_hand():
    cells = [("a", "b", "b", "c"), ("a", "b", "c", "c"), ("a", "a", "c", "c")]
    # Pairs agree in 3, 2 and 3 of 4 edges.
    assert operator_mix.agreement(cells) == pytest.approx((3 + 2 + 3) / 12)
    assert operator_mix.mix_of(cells) == {"c": 5 / 12, "a": 4 / 12, "b": 3 / 12}


def sleeper(seconds: float) -> object:
    return lambda: time.sleep(seconds)


def test_rates_are_of_all_processes_together():
    with Workers(2, 1) as workers:
        rate = workers.rate(sleeper, 0.02, least=0.2)
    assert 20 < rate <= 100


def test_a_table_is_markdown():
    assert table(["a", "bc"], [[1, "x"], [22, "y"]]) == "| a  | bc |\n|----|----|\n| 1  | x  |\n| 22 | y  |"
