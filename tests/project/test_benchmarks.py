"""Every script of benchmarks/ runs, with arguments that make it short."""

import csv
import json
import math
import re
import time
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from helpers.runs import call, succeed

import tenas
from benchmarks import gpu, ntk, operator_mix, regions, search, supernet
from benchmarks.side_by_side import Workers, table
from tenas.benchmark import read_index
from tenas.files import read_json, write_json
from tenas.measures import Measure
from tenas.measures.regions import linear_regions
from tenas.networks.single import cells as cells_alone
from tenas.spaces import get_space

SCRIPTS = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text(encoding="utf-8")}
# Arguments for a short run, and what it prints.
SHORT = {
    "ntk": (("--rounds", 1, "--least", 0.01, "--cases", "nas-bench-201,1,1,4"), r"\| nas-bench-201, C=1, n=4 +\|"),
    "before_and_after": ((ROOT, "--rounds", 1, "--least", 0.01, "--cases", 1), r"\| nas-bench-201, C=3, n=72 +\|"),
    "search": (("--data", "images", "--preset", "tiny.yaml", "--trials", 1), r"\| 3 +\| 12 +\|.*\n\nThe usual way, .* Ratio: "),
    "operator_mix": (("builtin", "run"), r"\| run +\| 2 +\| 0\.50 +\| 0\.32 +\|"),
    "supernet": (("builtin", "pruned"), r"\| pruned +\| 2 +\| linear_regions +\| -?\d\.\d\d \(\d\.\d\d\) +\|"),
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
    """What the scripts read: images, a preset, two runs of two seeds, one of which has measured something, a table."""
    folder = tmp_path_factory.mktemp("benchmarks")
    dataset = json.dumps({"source": "digits", "images": 60})
    succeed(call("tenas", "prepare", dataset, "--out", "images", cwd=folder))
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    succeed(call("tenas", "search", "--data", "images", "--preset", "tiny.yaml", "--seeds", 0, 1, "--out", "pruned", cwd=folder))
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


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_script_runs(folder, name):
    arguments, printed = SHORT[name]
    output = run(name, folder, *arguments)
    assert re.search(printed, output), output
    if name == "dag":
        assert (folder / "dag.svg").read_text().startswith("<?xml")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_proves_a_gpu_says_that_there_is_none(tmp_path):
    output = call("python", "-m", "benchmarks.gpu", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert output.returncode == 2
    assert re.fullmatch(r"benchmarks\.gpu: The device cuda was asked for, but .*\. Nothing was run\.\n", output.stdout)


@pytest.mark.slow
def test_what_proves_a_gpu_computes_the_same_on_a_cpu():
    """The tables are those of a GPU, but for launches."""
    tables = gpu.proofs("cpu", [("nas-bench-201", 1, 1, 4), ("darts", 1, 1, 4)], channels=2, cells=2, batch=4, steps=1)
    (columns, kernels), (_, measures), (_, layouts) = tables
    assert [len(row) for row in kernels] == [len(columns)] * 2
    assert gpu.failed(tables) == []
    kernels[1][2] = "4.0e-02"  # as TF32 does
    assert gpu.failed(tables) == ["darts, C=1, n=4"]
    assert {name: off for name, _, off, _ in measures if off not in ("0.0e+00", "-")} == {}
    assert all(float(rate) > 0 for _, rate in layouts)


@pytest.mark.long
def test_the_curves_of_the_ntk_are_drawn(folder):
    run("ntk", folder, "--plots", "curves", "--points", 1, "--least", 0.01)
    assert {path.name for path in (folder / "curves").iterdir()} == {f"{name}.svg" for name in ntk.CURVES}


@pytest.mark.slow
def test_what_only_a_search_can_be_timed_against(folder):
    (folder / "cells.yaml").write_text(
        TINY.replace("measures:", "rounds: [{kind: cells, sample: 4, keep: 1}]\nmeasures:"), encoding="utf-8"
    )
    output = call("python", "-m", "benchmarks.search", "--data", "images", "--preset", "cells.yaml", cwd=folder)
    assert output.returncode != 0
    assert "The preset cells.yaml does more than prune" in output.stdout


@pytest.mark.slow
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
    inputs = read_inputs(entry["measures"], folder / "images/images.npy")[:2]
    scorer = search.scorers_of(subjects, entry["measures"], (0, 1), *inputs)[search.KAPPA]
    ours = scorer(Measurement(5, search.KAPPA, 0)).value
    usual = condition_number(
        ntk_gram_by_loop(scorer.network(search.KAPPA, 5, 0), *scorer.inputs(search.KAPPA, 5, 0)), dtype=torch.float32
    )
    assert usual == pytest.approx(ours, rel=0.02)


def test_agreement_and_mix_by_hand():
    cells = [("a", "b", "b", "c"), ("a", "b", "c", "c"), ("a", "a", "c", "c")]
    # Pairs agree in 3, 2 and 3 of 4 edges.
    assert operator_mix.agreement(cells) == pytest.approx((3 + 2 + 3) / 12)
    assert operator_mix.mix_of(cells) == {"c": 5 / 12, "a": 4 / 12, "b": 3 / 12}


# Xiang et al., notebook op_strength: NASWOT and SynFlow without an operator (none, skip, 1x1, 3x3, pool), edge by edge.
WITHOUT = {
    "naswot": [
        [3455.233646, 3449.898772, 3449.538363, 3441.815563, 3461.179476],
        [3452.145851, 3448.696318, 3441.809174, 3440.652631, 3453.739943],
        [3446.521007, 3447.612434, 3435.455206, 3436.396744, 3449.275466],
        [3453.805194, 3435.985406, 3444.044047, 3445.595326, 3447.067855],
        [3451.055723, 3449.796894, 3442.625354, 3441.131751, 3453.311493],
        [3450.967554, 3448.211459, 3440.79926, 3443.240243, 3452.989921],
    ],
    "synflow": [
        [1.9286724e31, 7.9902829e30, 1.2421187e30, 9.4389076e26, 8.1915045e30],
        [3.1160799e30, 2.5018418e30, 1.4274537e30, 3.1382878e29, 2.5693895e30],
        [1.0312338e31, 4.9191575e30, 1.4241159e30, 1.0282498e28, 5.0386226e30],
        [2.0042808e30, 1.9513600e30, 1.5188352e30, 7.7041039e29, 1.9536326e30],
        [3.1659753e30, 2.4302743e30, 1.4853909e30, 2.8683071e29, 2.6891361e30],
        [1.9460309e31, 8.0147869e30, 1.1851808e30, 8.9686714e26, 7.7584293e30],
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "published"), [("naswot", 0.833333), ("synflow", 0.933333)])
def test_published_correlations_of_operators_come_out_of_their_scores(name, published):
    worth = supernet.worth_of(read_index("builtin"))
    operators = get_space("nas-bench-201").operators
    scores = {edge: dict(zip(operators, (-value for value in of), strict=True)) for edge, of in enumerate(WITHOUT[name])}
    assert supernet.correlation(scores, worth["mean"]) == pytest.approx(published, abs=1e-5)


def test_correlations_by_hand():
    """Four operators on one edge, three on the other: 1 - 6 sum(d^2) / (n (n^2 - 1))."""
    worth = {0: {"a": 90.0, "b": 91.0, "c": 92.0, "d": 93.0}, 1: {"a": 70.0, "b": 80.0, "c": 90.0}}
    # Ranks 1 3 2 4 against 1 2 3 4: d^2 sums to 2; ranks 3 2 1 against 1 2 3.
    scores = {0: {"a": -float("inf"), "b": 0.2, "c": 0.1, "d": 7.0}, 1: {"a": 3.0, "b": 2.0, "c": 1.0}}
    assert supernet.correlation(scores, worth) == pytest.approx(((1 - 6 * 2 / 60) + -1) / 2)
    assert supernet.best_kept(scores, worth) == 0.5
    # An edge whose scores are all the same tells nothing.
    assert supernet.correlation({1: dict.fromkeys("abc", 5.0)}, worth) == 0.0
    # Ranks within the edge, averaged: of a 1 and 3, of b 2 and 2, of c 3 and 1.
    assert supernet.mean_ranks([{1: {"a": 1.0, "b": 2.0, "c": 3.0}}, {1: {"a": 9.0, "b": 8.0, "c": 7.0}}]) == {
        1: {"a": 2.0, "b": 2.0, "c": 2.0}
    }


@pytest.mark.slow
@pytest.mark.parametrize("order", ["together", pytest.param("edge_by_edge", marks=pytest.mark.long)])
def test_scores_of_operators_are_the_harm_of_their_removal(folder, order):
    """Once more from the scores files: with the logarithm of kappa turned round, of the round that first tries the edge."""
    out = folder / order
    succeed(
        call("tenas", "search", "--data", "images", "--preset", "tiny.yaml", "--set", f"order={order}", "--out", out, cwd=folder)
    )
    scores = supernet.read_scores(out, 0)
    assert set(scores) == {"ntk_condition_number", "linear_regions", "rank_sum"}
    for edge in range(6):
        number = edge + 1 if order == "edge_by_edge" else 1
        values: dict[tuple[str, str], list[float]] = {}
        with (out / f"seed0/round{number}/scores/1.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                if row["edge"] in ("", str(edge)):
                    values.setdefault((row["operator"], row["measure"]), []).append(math.log(float(row["value"])))
        for name, sign in (("ntk_condition_number", 1), ("linear_regions", -1)):
            for operator, score in scores[name][edge].items():
                pairs = zip(values[operator, name], values["", name], strict=True)
                assert score == pytest.approx(sign * sum(rest - whole for rest, whole in pairs) / len(values["", name]))
        kept = read_json(out / "seed0/genotype.json", "genotype")["arch"].replace("|+|", "|").strip("|").split("|")[edge]
        assert kept.split("~")[0] in scores["rank_sum"][edge]
        if order == "edge_by_edge":
            assert scores["rank_sum"][edge][kept.split("~")[0]] == max(scores["rank_sum"][edge].values())


def sleeper(seconds: float) -> object:
    return lambda: time.sleep(seconds)


@pytest.mark.slow
def test_rates_are_of_all_processes_together():
    with Workers(2, 1) as workers:
        rate = workers.rate(sleeper, 0.02, least=0.2)
    assert 20 < rate <= 100


def test_a_table_is_markdown():
    assert table(["a", "bc"], [[1, "x"], [22, "y"]]) == "| a  | bc |\n|----|----|\n| 1  | x  |\n| 22 | y  |"


def test_regions_of_a_stack_of_cells_on_crops():
    # Squares of 2x2 pixels in five shades: some crops are like another.
    squares = torch.randint(5, (400, 3, 6, 6), generator=torch.Generator().manual_seed(0)).float() - 2
    images = squares.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    space = get_space("nas-bench-201")
    genotype = space.parse("|nor_conv_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|skip_connect~0|avg_pool_3x3~1|nor_conv_3x3~2|")

    def count(measure: Measure, cells: int) -> float:
        torch.manual_seed(1)
        network = tenas.build(genotype, channels=1, cells=cells, classes=10).train()
        torch.manual_seed(2)
        return measure(network, images)

    # One cell on crops of 3x3 is what a search counts: drawn here by plain indices, seen by the network for linear regions.
    torch.manual_seed(1)
    network = tenas.build(genotype, channels=1, cells=1, classes=10).train()
    alone = cells_alone(space, [(choice.operator,) for choice in genotype.cells[0]], channels=1).train()
    alone.set_mask(space.mask(genotype))
    alone.cell.load_state_dict(network.blocks[1].state_dict())
    torch.manual_seed(2)
    top, left, channel = (torch.randint(high, (400, 1, 1)).flatten() for high in (10, 10, 3))
    crops = [images[i, channel[i], top[i] : top[i] + 3, left[i] : left[i] + 3][None] for i in range(400)]
    assert count(regions.CROPS_3, 1) == linear_regions(alone, torch.stack(crops))
    # More pixels and more cells tell more crops apart.
    assert count(regions.CROPS_3, 1) < count(regions.CROPS_5, 1) < count(regions.CROPS_9, 1) <= 400
    assert count(regions.CROPS_3, 1) < count(regions.CROPS_3, 3)
