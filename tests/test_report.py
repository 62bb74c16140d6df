"""The report: the table over a run's seeds, what `tenas show` prints, the figure of the rankings."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tenas.benchmark import look_up
from tenas.errors import TenasError
from tenas.files import format_csv, write_csv, write_json
from tenas.report import accuracies, plot_rankings, show, summarise
from tenas.spaces import get_space, load_genotype

# An index of a few cells is enough here.
pytestmark = pytest.mark.filterwarnings("ignore::tenas.benchmark.index.IncompleteTableWarning")
ARCHS = [genotype.arch for _, genotype in zip(range(12), get_space("nas-bench-201").genotypes(), strict=False)]


def save_seed(run: Path, seed: int, *, shards: dict[int, list[float]], accuracy: float | None = None) -> Path:
    """A seed's files as its stages write them: ``shards`` gives for each round the seconds of its shards."""
    folder = run / f"seed{seed}"
    write_json(folder / "genotype.json", {"space": "nas-bench-201", "arch": ARCHS[seed]})
    write_json(folder / "benchmark.json", look_up(load_genotype(ARCHS[seed]), None))
    for round, seconds in shards.items():
        for i, wall in enumerate(seconds, start=1):
            record = {"shard": f"{i}/{len(seconds)}", "wall_seconds": wall}
            write_json(folder / f"round{round}" / "scores" / f"{i}.json", record)
    if accuracy is not None:
        metrics = {"arch": ARCHS[seed], "test_accuracy": accuracy, "valid_accuracy": accuracy + 1, "best_epoch": 3}
        write_json(folder / "retrain" / "metrics.json", metrics | {"epochs": 4, "parameters": 12345})
    return folder


def test_a_row_a_seed(tmp_path):
    save_seed(tmp_path, 0, shards={1: [1.5, 2.25], 2: [4.0]}, accuracy=96.5)
    save_seed(tmp_path, 2, shards={1: [1.0], 2: [2.0]})
    columns, rows = summarise(tmp_path, [0, 2])
    assert columns == [
        "seed", "arch", "search_seconds", "pruned_share", "parameters", "best_epoch", "valid_accuracy", "test_accuracy"
    ]  # fmt: skip
    assert rows == [
        {
            "seed": 0, "arch": ARCHS[0], "search_seconds": 7.75, "pruned_share": None, "parameters": 12345, "best_epoch": 3,
            "valid_accuracy": 97.5, "test_accuracy": 96.5,
        },
        {"seed": 2, "arch": ARCHS[2], "search_seconds": 3.0, "pruned_share": None},
    ]  # fmt: skip
    assert format_csv(columns, rows).splitlines()[2] == f"2,{ARCHS[2]},3.0,,,,,"


def test_how_sure_a_search_was_is_the_mean_over_the_decisions_that_led_to_its_genotype(tmp_path):
    folder = save_seed(tmp_path, 0, shards={1: [1.0]})
    genotype = {"space": "nas-bench-201", "arch": ARCHS[0], "made_by": {"inputs": {"round2/mask.json": "0"}}}
    write_json(folder / "genotype.json", genotype)
    # Round 3 is left from an earlier search.
    for number, rows in {1: [(1, 0.9), (0, 0.1), (1, 0.6)], 2: [(1, 0.3)], 3: [(1, 0.0)]}.items():
        table = [{"trial": i, "pruned": pruned, "pruned_share": share} for i, (pruned, share) in enumerate(rows)]
        write_csv(folder / f"round{number}" / "ranking.csv", ["trial", "pruned", "pruned_share"], table)
    _, (row,) = summarise(tmp_path, [0])
    assert row["pruned_share"] == 0.6


def test_shards_that_an_earlier_search_left_do_not_count(tmp_path):
    folder = save_seed(tmp_path, 0, shards={1: [1.0] * 5})
    save_seed(tmp_path, 0, shards={1: [10.0, 20.0]})
    assert (folder / "round1" / "scores" / "5.json").exists()
    _, rows = summarise(tmp_path, [0])
    assert rows[0]["search_seconds"] == 30


def test_accuracies_of_the_benchmark_have_columns_of_their_own(tmp_path):
    index = tmp_path / "index.csv"
    index.write_text(
        "arch,cifar10_test,cifar100_test\n"
        + "".join(f"{arch},{90 + i}.5,{70 - i}\n" for i, arch in enumerate(ARCHS[:4]))
        + f"{ARCHS[3].replace('none~0|+', 'skip_connect~0|+', 1)},80.25,\n"
    )
    for seed in (0, 1):
        folder = save_seed(tmp_path / "run", seed, shards={1: [1.0]}, accuracy=90.0 + 2 * seed)
        write_json(folder / "benchmark.json", look_up(load_genotype(ARCHS[seed]), index))
    columns, rows = summarise(tmp_path / "run", [1, 0])
    assert columns[8:] == [
        "cifar10_test", "cifar10_test_rank", "cifar10_test_regret",
        "cifar100_test", "cifar100_test_rank", "cifar100_test_regret",
    ]  # fmt: skip
    assert [list(row.values())[8:] for row in rows] == [[91.5, 3, 2.0, 69.0, 2, 1.0], [90.5, 4, 3.0, 70.0, 1, 0.0]]

    text = show(tmp_path / "run")
    assert "cifar10_test 91.50 %, rank 3 of 5, 2.00 below the best" in text
    assert "retrained, 2 seeds: 91.00 (1.41) %" in text


def test_a_run_is_shown_with_what_it_has(tmp_path):
    run = tmp_path / "results" / "digits"
    save_seed(run, 10, shards={1: [61.4]})
    save_seed(run, 2, shards={1: [2.0]}, accuracy=98.61)
    text = show(run)
    assert text.index("seed 2") < text.index("seed 10")
    assert ARCHS[2] in text
    assert "98.61 % of the test images, epoch 3 of 4 (99.61 % in validation), 12,345 parameters" in text
    assert "No index file was given for the space nas-bench-201." in text
    assert "61 s of scoring" in text
    assert text.count("retrained") == 1
    assert "report" not in text
    (tmp_path / "results" / "report.html").touch()
    (run / "summary.csv").touch()
    assert show(run).splitlines()[-2:] == [
        f"table: {run / 'summary.csv'}",
        f"report: {tmp_path / 'results' / 'report.html'}",
    ]


def test_a_run_without_results_gets_a_sentence(tmp_path):
    with pytest.raises(TenasError, match="no seed there has a genotype yet"):
        show(tmp_path)
    with pytest.raises(TenasError, match=r"genotype\.json cannot be read"):
        summarise(tmp_path, [0])


@pytest.mark.parametrize("name", ["benchmark.json", "retrain/metrics.json"])
def test_results_of_another_genotype_are_not_mixed(tmp_path, name):
    folder = save_seed(tmp_path, 0, shards={1: [1.0]}, accuracy=90.0)
    stale = json.loads((folder / name).read_text()) | {"arch": ARCHS[1]}
    write_json(folder / name, stale)
    with pytest.raises(TenasError, match=f"{name} is of another genotype"):
        summarise(tmp_path, [0])
    with pytest.raises(TenasError, match=f"{name} is of another genotype"):
        show(tmp_path)


def save_ranking(
    folder: Path, round: int, changes: list[tuple[object, object]], cells: tuple[str, str] = ("cell", "cell")
) -> None:
    columns = ["cell", "edge", "target", "source", "operator"]
    columns += ["kappa_change", "kappa_se", "regions_change", "regions_se", "pruned"]
    rows = [
        {
            "cell": cells[i // 2],
            "edge": i // 2, "target": 1 + i // 2, "source": 0, "operator": f"operator_{round}_{i}",
            "kappa_change": kappa, "kappa_se": 0.1, "regions_change": regions, "regions_se": "", "pruned": i % 2,
        }
        for i, (kappa, regions) in enumerate(changes)
    ]  # fmt: skip
    write_csv(folder / f"round{round}" / "ranking.csv", columns, rows)


def test_the_figure_shows_every_trial_of_every_round(tmp_path):
    for round in (1, 2, 10):
        save_ranking(tmp_path, round, [(0.5, -1), (-0.25, 2), ("-inf", 0), ("inf", 1)])
    rankings = [tmp_path / f"round{round}" / "ranking.csv" for round in (1, 2, 10)]
    plot_rankings(rankings, tmp_path / "rankings.svg")
    svg = (tmp_path / "rankings.svg").read_text()
    for round in (1, 2, 10):
        for i in range(4):
            assert svg.count(f"operator_{round}_{i}<") == 1
        assert f"round {round}: kappa" in svg
        assert f"round {round}: regions" in svg
    assert svg.index("round 2: kappa") < svg.index("round 10: kappa")
    # Both colours are there, and the same rankings are the same bytes.
    assert len(re.findall("#ee6677", svg)) > 5
    assert len(re.findall("#4477aa", svg)) > 5
    plot_rankings(rankings, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == (tmp_path / "rankings.svg").read_bytes()


def test_cell_types_are_told_apart(tmp_path):
    save_ranking(tmp_path, 1, [(1, 1)] * 4, ("normal", "reduction"))
    plot_rankings([tmp_path / "round1" / "ranking.csv"], tmp_path / "rankings.svg")
    svg = (tmp_path / "rankings.svg").read_text()
    assert "normal 1&lt;-0 operator_1_0" in svg
    assert "reduction 2&lt;-0 operator_1_3" in svg


def test_a_faulty_ranking_gets_a_sentence_and_leaves_nothing(tmp_path):
    def refused(sentence: str) -> None:
        with pytest.raises(TenasError, match=sentence):
            plot_rankings([tmp_path / "round1" / "ranking.csv"], tmp_path / "rankings.svg")
        assert not (tmp_path / "rankings.svg").exists()

    refused("round1/ranking.csv cannot be read")
    save_ranking(tmp_path, 1, [(1, 1), (2, "much")])
    refused("damaged in line 3: could not convert string to float: 'much'")
    path = tmp_path / "round1" / "ranking.csv"
    save_ranking(tmp_path, 1, [(1, 1), (2, 2)])
    text = path.read_text()
    path.write_text(text[: text.index("operator_1_1")])
    refused("damaged in line 3")
    path.write_text(text.replace("pruned", "gone"))
    refused("lacks pruned")
    path.write_text(text.splitlines()[0] + "\n")
    refused("lacks measures or rows")


def test_the_report_is_read_without_torch():
    heavy = "{'torch', 'matplotlib', 'pandas'}"
    code = f"import sys, tenas.report, tenas.benchmark; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_summary_is_csv_that_reads_back(tmp_path):
    save_seed(tmp_path, 3, shards={1: [0.1, 0.2]}, accuracy=1 / 3)
    columns, rows = summarise(tmp_path, [3])
    write_csv(tmp_path / "summary.csv", columns, rows)
    with (tmp_path / "summary.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["arch"] == ARCHS[3]
    assert float(row["test_accuracy"]) == 1 / 3
    assert row["search_seconds"] == "0.3"


def test_the_metrics_are_the_accuracies_alone():
    rows = [{"seed": 3, "arch": "a", "search_seconds": 9.0, "parameters": 5, "best_epoch": 2, "valid_accuracy": None,
             "test_accuracy": 90.5, "cifar10_test": 93.1, "cifar10_test_rank": 7, "cifar10_test_regret": 1.2}]  # fmt: skip
    assert accuracies(rows) == {"seed3": {"test_accuracy": 90.5, "cifar10_test": 93.1}}
