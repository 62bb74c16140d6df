"""Ranking discrete cells, against the same written out in plain Python; and finalists by their short trainings."""

import json
import math
import random
import statistics
from functools import cmp_to_key

import numpy as np
import pytest
from helpers.engine import KAPPA, NAS, ON_A_BATCH, cells_of
from hypothesis import given, settings
from hypothesis import strategies as st

from tenas.errors import TenasError
from tenas.files import write_csv, write_json
from tenas.measures import MEASURES
from tenas.provenance import sealed
from tenas.scoring.subjects import Cells, Measurement
from tenas.search.finalists import looked_up, rank_finalists, trained
from tenas.search.repeats import bootstrap_counts
from tenas.search.shortlist import aggregated, kept, mean_score, rank_cells, read_shortlist, shortlist_json
from tenas.settings import search_settings

# A decision warns of nothing.
pytestmark = pytest.mark.filterwarnings("error")
SEEDS = st.integers(0, 2**31)
NAMES = (KAPPA, "synflow", "naswot")  # less is better; never negative; signed


def round_of(
    keep: int = 5, each: int = 0, aggregate: str = "log_rank_sum", repeats: int = 3, names=NAMES, sample: int = 30
) -> dict:
    measures = {name: ON_A_BATCH | {"repeats": repeats} for name in names}
    rounds = [{"kind": "cells", "sample": sample, "keep": keep, "each": each, "aggregate": aggregate, "measures": measures}]
    return search_settings("nas-bench-201", "pruning", {"rounds": rounds})["rounds"][0]


def values_of(entry: dict, cells: Cells, seed: int, coarse: bool = False) -> dict[Measurement, float]:
    """A value for each measurement; ``coarse`` ones are often equal, and some are infinite."""
    generator = random.Random(seed)
    found = {}
    for name, options in entry["measures"].items():
        for cell in cells.cells:
            for repeat in range(options["repeats"]):
                value = math.exp(generator.gauss(0, 3)) if name != "naswot" else generator.gauss(0, 3)
                if coarse:
                    value = float(generator.randint(1, 3))
                    value = {0: math.inf, 1: 0.0}.get(generator.randint(0, 15), value) if name == KAPPA else value
                    value = -math.inf if name == "naswot" and generator.random() < 0.1 else value
                found[Measurement(cell.number, name, repeat)] = value
    return found


def mean_by_hand(name: str, values: list[float]) -> float:
    """More is better: the mean, of logarithms where the measure is never negative; an infinite repeat is the mean's."""
    measure = MEASURES[name]
    scores = [v if measure.signed else (math.log(v) if v > 0 else -math.inf) for v in values]
    scores = [-score if measure.lower_is_better else score for score in scores]
    if -math.inf in scores:
        return -math.inf
    return math.inf if math.inf in scores else round(sum(scores) / len(scores), 12)


def ranks_by_hand(means: list[float]) -> list[float]:
    """1 for the best, equal ones share their mean rank."""
    return [sum(m > mean for m in means) + (sum(m == mean for m in means) + 1) / 2 for mean in means]


def ranking_by_hand(entry: dict, cells: Cells, values: dict) -> tuple[dict, list[float], list[int]]:
    """Ranks by measure, the aggregate, and the cells in the order of their places."""
    ranks = {}
    for name, options in entry["measures"].items():
        means = [mean_by_hand(name, [values[c.number, name, r] for r in range(options["repeats"])]) for c in cells.cells]
        ranks[name] = ranks_by_hand(means)
    n = len(cells.cells)
    if entry["aggregate"] == "rank_sum":
        total = [-sum(rank[i] for rank in ranks.values()) for i in range(n)]
    else:
        # AZ-NAS, equation 10: the worst has rank 1, the best m; the sum over measures of log(rank / m).
        total = [sum(math.log((n + 1 - rank[i]) / n) for rank in ranks.values()) for i in range(n)]
    first = next(iter(ranks.values()))

    def compare(i: int, j: int) -> float:
        if abs(total[i] - total[j]) > 1e-11:
            return total[j] - total[i]
        return first[i] - first[j] or i - j

    return ranks, total, sorted(range(n), key=cmp_to_key(compare))


@pytest.mark.parametrize("aggregate", ["rank_sum", "log_rank_sum"])
@pytest.mark.parametrize("coarse", [False, True])
@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_the_ranking_in_plain_python(aggregate, coarse, seed):
    entry, cells = round_of(aggregate=aggregate), cells_of(NAS, 30, 1)
    values = values_of(entry, cells, seed, coarse)
    ranks, total, order = ranking_by_hand(entry, cells, values)
    columns, rows, chosen = rank_cells(entry, cells, values)
    assert list(rows[0]) == columns
    assert [row["cell"] for row in rows] == list(range(1, 31))
    for name in NAMES:
        assert [row[f"{name}_rank"] for row in rows] == ranks[name]
    assert [row[aggregate] for row in rows] == pytest.approx(total, abs=1e-10)
    assert [row["place"] for row in rows] == [order.index(i) + 1 for i in range(30)]
    assert [cell.number for cell in chosen] == [i + 1 for i in order[:5]]
    assert [row["kept"] for row in rows] == [int(i in order[:5]) for i in range(30)]
    assert all(0 <= row["kept_share"] <= 1 for row in rows)
    assert sum(row["kept_share"] for row in rows) == pytest.approx(5, abs=1e-4)


def test_means_and_their_errors():
    entry, cells = round_of(), cells_of(NAS, 30, 1)
    values = values_of(entry, cells, 3)
    _, rows, _ = rank_cells(entry, cells, values)
    for row in rows:
        for name in NAMES:
            mine = [values[row["cell"], name, repeat] for repeat in range(3)]
            scores = mine if name == "naswot" else [math.log(value) for value in mine]
            sign = -1 if name == KAPPA else 1
            assert row[f"{name}_score"] == pytest.approx(sign * statistics.mean(scores), abs=1e-11)
            assert row[f"{name}_se"] == pytest.approx(statistics.stdev(scores) / math.sqrt(3))


def test_a_singular_kernel_in_any_repeat_is_the_worst_and_said():
    entry, cells = round_of(names=(KAPPA,)), cells_of(NAS, 30, 1)
    values = values_of(entry, cells, 0)
    values[Measurement(4, KAPPA, 1)] = math.inf
    for repeat in range(3):
        values[Measurement(9, KAPPA, repeat)] = math.inf
    _, rows, chosen = rank_cells(entry, cells, values)
    assert rows[3][f"{KAPPA}_score"] == rows[8][f"{KAPPA}_score"] == -math.inf
    assert rows[3][f"{KAPPA}_rank"] == rows[8][f"{KAPPA}_rank"] == 29.5
    assert rows[3][f"{KAPPA}_se"] != "" == rows[8][f"{KAPPA}_se"]
    assert {4, 9}.isdisjoint(cell.number for cell in chosen)
    assert not any(math.isnan(value) for row in rows for value in row.values() if isinstance(value, float))


@given(seed=SEEDS, keep=st.integers(1, 12), each=st.integers(0, 6))
@settings(max_examples=40, deadline=None)
@pytest.mark.slow
def test_the_best_of_each_measure_have_their_seats(seed, keep, each):
    """Seats of the first measure come first where there are too few; the rest goes to the best of all together."""
    entry, cells = round_of(keep, each, repeats=1), cells_of(NAS, 20, 2)
    values = values_of(entry, cells, seed)
    ranks, _, order = ranking_by_hand(entry, cells, values)
    seats = []
    for name in NAMES:
        best = sorted(range(20), key=lambda i: (ranks[name][i], order.index(i)))[:each]
        seats += [i for i in best if i not in seats]
    expected = seats[:keep]
    expected += [i for i in order if i not in expected][: keep - len(expected)]
    _, rows, chosen = rank_cells(entry, cells, values)
    assert len(chosen) == min(keep, 20)
    assert {cell.number - 1 for cell in chosen} == set(expected)
    # Best first by all together, whatever seat a cell has.
    assert [order.index(cell.number - 1) for cell in chosen] == sorted(order.index(cell.number - 1) for cell in chosen)
    assert all(row["kept_share"] == "" for row in rows)  # a single repeat has nothing to be resampled


def test_a_cell_that_is_bad_by_one_measure_is_not_among_the_best():
    """Two measures that say the opposite: all sums of ranks are equal, the sum of logarithms prefers who is good by both."""
    cells, names = cells_of(NAS, 20, 2), ("synflow", "zen")
    values = {
        Measurement(cell.number, name, 0): 100.0 + sign * cell.number
        for cell in cells.cells
        for name, sign in zip(names, (-1, 1), strict=True)
    }
    best = {}
    for aggregate in ("rank_sum", "log_rank_sum"):
        _, rows, chosen = rank_cells(round_of(1, 0, aggregate, 1, names, 20), cells, values)
        assert [row["synflow_rank"] + row["zen_rank"] for row in rows] == [21] * 20
        best[aggregate] = chosen[0].number
    assert best == {"rank_sum": 1, "log_rank_sum": 10}  # equal ones go by the first measure


def test_the_kept_share_says_how_sure_a_choice_is():
    """With signal and little noise choices are sure; without signal a cell is kept as often as any other."""
    entry, cells = round_of(4, repeats=20, names=("synflow", "naswot"), sample=16), cells_of(NAS, 16, 2)
    generator = random.Random(0)
    sure = {}
    for signal in (0.0, 30.0):
        values = {}
        for name in ("synflow", "naswot"):
            for cell in cells.cells:
                for repeat in range(20):
                    score = generator.gauss(0, 1) + signal * (cell.number % 4 == 1)
                    values[Measurement(cell.number, name, repeat)] = math.exp(score) if name == "synflow" else score
        _, rows, chosen = rank_cells(entry, cells, values)
        sure[signal] = [row["kept_share"] for row in rows if row["kept"]]
        if signal:
            assert {cell.number for cell in chosen} == {1, 5, 9, 13}
    assert min(sure[30.0]) == 1.0
    assert statistics.mean(sure[0.0]) < 0.9


@pytest.mark.parametrize("each", [0, 2])
@pytest.mark.parametrize("aggregate", ["rank_sum", "log_rank_sum"])
def test_the_kept_share_is_that_of_choices_on_repeats_drawn_again(aggregate, each):
    entry, cells = round_of(4, each, aggregate, repeats=3, sample=12), cells_of(NAS, 12, 4)
    values = values_of(entry, cells, 8)
    _, rows, _ = rank_cells(entry, cells, values)
    generator, drawn = np.random.default_rng(12), {}
    for name in NAMES:
        scores = np.array([[-math.log(values[c.number, name, r]) if name == KAPPA else values[c.number, name, r]
                            for r in range(3)] for c in cells.cells])  # fmt: skip
        scores = np.log(scores) if name == "synflow" else scores
        counts = bootstrap_counts(3, 1000, generator)[1:]
        means = np.round([[sum(n * s for n, s in zip(count, row, strict=True)) / 3 for row in scores] for count in counts], 9)
        drawn[name] = ((means[:, None] > means[..., None]) + (means[:, None] == means[..., None]) / 2).sum(axis=-1) + 0.5
    share = np.zeros(12)
    for sample in zip(*drawn.values(), strict=True):
        total = sum(sample) if aggregate == "rank_sum" else -sum(np.log((13 - ranks) / 12) for ranks in sample)
        share[kept(sample, -np.round(total, 9), 4, each)] += 1 / 1000
    assert [row["kept_share"] for row in rows] == pytest.approx(share.tolist(), abs=1e-6)


def test_scores_are_equal_that_differ_after_the_twelfth_digit():
    for apart, equal in ((2e-13, True), (2e-12, False)):
        low, high = mean_score(MEASURES["naswot"], np.array([[0.5], [0.5 + apart]]), np.ones((1, 1)))[0]
        assert (low == high) == equal


def test_sums_are_equal_that_differ_after_the_twelfth_digit():
    """By the order of summation, or by the processor."""
    first, second = np.array([2.0, 3.0, 1.0, 4.0]), np.array([3.0, 2.0 + 4e-13, 1.0, 4.0])
    sums = aggregated([first, second], "log_rank_sum")
    assert sums[0] == sums[1]


def test_of_equal_places_by_a_measure_the_better_cell_has_the_seat():
    first, second = np.array([1.5, 1.5, 3.0]), np.array([3.0, 1.0, 2.0])
    assert kept([first, second], -(first + second), 1, 1) == [1]


def test_fewer_cells_than_seats():
    entry, cells = round_of(9, 3, repeats=2, sample=9), cells_of(NAS, 4, 2)
    _, rows, chosen = rank_cells(entry, cells, values_of(entry, cells, 0))
    assert len(chosen) == 4
    assert all(row["kept"] == row["kept_share"] == 1 for row in rows)
    assert kept([np.array([1.0, 2.0])], np.array([2.0, 1.0]), 5, 0) == [0, 1]


def test_a_shortlist_survives_its_file(tmp_path):
    cells = cells_of(NAS, 3, 5)
    write_json(tmp_path / "shortlist.json", shortlist_json(NAS, cells.cells[::-1]))
    found = read_shortlist(tmp_path / "shortlist.json", NAS)
    assert (found.space, found.cells) == (NAS, cells.cells[::-1])
    with pytest.raises(TenasError, match=r"The shortlist .*none\.json cannot be read"):
        read_shortlist(tmp_path / "none.json", NAS)


# --- finalists


def test_finalists_go_by_accuracy_and_equal_ones_by_the_shortlist():
    cells = cells_of(NAS, 5, 3).cells
    accuracies = [80.0, 91.5, 90.0, 91.5, 10.0]
    results = [{"valid_accuracy": a, "best_epoch": 3} for a in accuracies]
    columns, rows, best = rank_finalists(cells, results, 3)
    assert best == [cells[1], cells[3], cells[2]]
    assert [row["place"] for row in rows] == [4, 1, 3, 2, 5]
    assert [row["kept"] for row in rows] == [0, 1, 1, 1, 0]
    assert [row["shortlisted"] for row in rows] == [1, 2, 3, 4, 5]
    assert list(columns) == list(rows[0])
    assert {row["best_epoch"] for row in rows} == {3}
    _, _, best = rank_finalists(cells, results, 9)
    assert len(best) == 5


def test_finalists_that_were_looked_up_have_no_training(tmp_path):
    cells = cells_of(NAS, 4, 3).cells
    table = tmp_path / "table.csv"
    write_csv(table, ("arch", "short"), [{"arch": c.arch, "short": 50 + i} for i, c in enumerate(cells)])
    results = looked_up(table, "short", NAS, cells)
    assert results == [{"valid_accuracy": 50.0 + i} for i in range(4)]
    _, rows, best = rank_finalists(cells, results, 1)
    assert best == [cells[3]]
    assert all(row["best_epoch"] == "" for row in rows)
    with pytest.raises(TenasError, match="no table of nas-bench-201 was given"):
        looked_up(None, "short", NAS, cells)
    with pytest.raises(TenasError, match="'long'"):
        looked_up(table, "long", NAS, cells)
    write_csv(table, ("arch", "short"), [{"arch": c.arch, "short": 50} for c in cells[:3]])
    with pytest.raises(TenasError, match="has no 'short' of the cell"):
        looked_up(table, "short", NAS, cells)


def test_finalists_that_were_trained(tmp_path):
    cells = cells_of(NAS, 3, 3).cells
    paths = [tmp_path / f"{place}.json" for place in (1, 2, 3)]
    for path, cell in zip(paths, cells, strict=True):
        path.write_text(json.dumps({"arch": cell.arch, "valid_accuracy": 5.0, "best_epoch": 2}))
    expected = {"valid_accuracy": 5.0, "best_epoch": 2}
    assert trained(paths, cells) == [expected] * 3
    # Places for which the shortlist had no cell come after those for which it had.
    assert trained([*paths, tmp_path / "4.json"], cells) == [expected] * 3
    with pytest.raises(TenasError, match="The shortlist has 3 cells, but there are 2 trainings: one is missing"):
        trained(paths[:2], cells)
    with pytest.raises(TenasError, match=r"2\.json is of another cell than the shortlist has in its place"):
        trained([paths[0], paths[1], paths[2]], [cells[0], cells[2], cells[1]])
    made = {"provenance": {"machine": {"device": "cuda", "gpu": "Card 9"}}}
    paths[2].write_text(json.dumps(json.loads(paths[2].read_text()) | made))
    assert trained(paths, cells) == [expected] * 3  # the others don't say where they were trained
    paths[0].write_text(json.dumps(json.loads(paths[0].read_text()) | {"provenance": {"machine": {"device": "cpu"}}}))
    with pytest.raises(TenasError, match=r"The trainings of the shortlist are of different kinds of devices"):
        trained(paths, cells)
    for key, what in (("code", "code"), ("data_sha256", "images")):
        for number, path in enumerate(paths):
            record = {"provenance": {key: {"train": number // 2}}}
            path.write_text(json.dumps({"arch": cells[number].arch, **expected, **record}))
        with pytest.raises(TenasError, match=rf"trainings of .* made with different {what}: .*1\.json and .*3\.json"):
            trained(paths, cells)
    paths[1].unlink()
    with pytest.raises(TenasError, match=r"The training's metrics .*2\.json cannot be read"):
        trained(paths, cells)


def test_metrics_of_a_finalist_are_those_that_were_written(tmp_path):
    (cell,) = cells_of(NAS, 1).cells
    metrics = sealed({"arch": cell.arch, "valid_accuracy": 5.0, "best_epoch": 2})
    write_json(tmp_path / "1.json", metrics)
    assert trained([tmp_path / "1.json"], [cell]) == [{"valid_accuracy": 5.0, "best_epoch": 2}]
    write_json(tmp_path / "1.json", metrics | {"valid_accuracy": 95.0})
    with pytest.raises(TenasError, match=r"The training's metrics .*1\.json is not what was written"):
        trained([tmp_path / "1.json"], [cell])
    for damage in ({"valid_accuracy": "5.0"}, {"valid_accuracy": float("nan")}, {"best_epoch": None}, {"best_epoch": True}):
        write_json(tmp_path / "1.json", sealed({"arch": cell.arch, "valid_accuracy": 5.0, "best_epoch": 2} | damage))
        with pytest.raises(TenasError, match=r"The training's metrics .*1\.json are damaged: .* is no number"):
            trained([tmp_path / "1.json"], [cell])
