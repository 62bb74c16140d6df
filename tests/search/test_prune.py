"""Ranking and pruning, against the paper's algorithm and the released code's ranks written out in plain Python."""

import math
import random

import numpy as np
import pytest
from helpers.engine import KAPPA, NAS, REGIONS, first_round, random_values, small
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tenas.errors import TenasError
from tenas.files import sha256, write_csv, write_json
from tenas.measures import get_measure
from tenas.scoring.subjects import Measurement, Trials, plan, trials_of
from tenas.scoring.table import read_scores, score_columns, score_rows
from tenas.search.limits import Limits
from tenas.search.prune import aggregated, change, mean_change, pruned, rank_round, ranks
from tenas.search.repeats import bootstrap_counts
from tenas.search.shortlist import mean_score
from tenas.spaces.base import Round, after, operators_left
from tenas.spaces.sums import Sums

# A decision warns of nothing.
pytestmark = pytest.mark.filterwarnings("error")


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_the_papers_algorithm(seed):
    """Algorithm 1: sort by the change in kappa, descending, and in R, ascending; prune the smallest sum of places an edge."""
    options, subjects = small("paper"), first_round([])
    trials = subjects.trials[1:]
    values = random_values(options["measures"], subjects, seed)

    def mean(trial, measure):
        return sum(values[0, measure, r] - values[trial, measure, r] for r in range(3)) / 3

    numbers = list(range(1, len(trials) + 1))
    by_kappa = sorted(numbers, key=lambda t: mean(t, KAPPA), reverse=True)
    by_regions = sorted(numbers, key=lambda t: round_off(mean(t, REGIONS)))
    total = {t: by_kappa.index(t) + by_regions.index(t) for t in numbers}
    expected = set()
    for edge in range(6):
        rivals = [t for t in numbers if trials[t - 1].edge == edge]
        expected.add(min(rivals, key=lambda t: (total[t], by_kappa.index(t))))

    _, rows, left = rank_round(options, subjects, values)
    assert {row["trial"] for row in rows if row["pruned"]} == expected
    assert left == subjects.mask.without(trials[t - 1] for t in expected)
    assert [row["rank_sum"] for row in rows] == [total[t] + 2 for t in numbers]


def round_off(x: float) -> float:
    return round(x, 9)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
@example(seed=761865)  # with changes that end in half a thousandth
def test_the_released_codes_ranks(seed):
    """Relative changes rounded to 3 decimals, equal ones share a rank, and ranks have no gaps."""
    options, subjects = small("released"), first_round()
    values = random_values(options["measures"], subjects, seed)
    _, rows, _ = rank_round(options, subjects, values)

    def mean(trial, measure):
        return round_off(
            # 0.7205 lies between two thousandths: NumPy takes the even one, Python's round what the last bit says.
            sum(
                round((values[0, measure, r] - values[trial, measure, r]) / values[0, measure, r] * 1000) / 1000 for r in range(3)
            )
            / 3
        )

    for measure, reverse in ((KAPPA, True), (REGIONS, False)):
        means = [mean(row["trial"], measure) for row in rows]
        places = sorted(set(means), reverse=reverse)
        assert [row[f"{measure}_rank"] for row in rows] == [places.index(m) + 1 for m in means]


def test_changes_are_right_side_up():
    """What lowers kappa when it goes, and takes no linear regions with it, is what is pruned."""
    options, subjects = small(repeats=4), first_round()
    values = {m: 100.0 if m.measure == KAPPA else 1000.0 for m in plan(options["measures"], subjects.ids)}
    victim = 7
    for repeat in range(4):
        values[Measurement(victim, KAPPA, repeat)] = 50.0
        values[Measurement(victim, REGIONS, repeat)] = 1010.0
    _, rows, left = rank_round(options, subjects, values)
    row = rows[victim - 1]
    assert row[f"{KAPPA}_change"] == pytest.approx(math.log(2), abs=1e-12)
    assert row[f"{REGIONS}_change"] == pytest.approx(-math.log(1.01), abs=1e-12)
    assert row[f"{KAPPA}_rank"] == row[f"{REGIONS}_rank"] == 1
    assert row["pruned"] == 1
    assert row["pruned_share"] == 1.0
    assert row["operator"] not in left.operators("cell", row["edge"])


def test_with_single_repeats_nothing_is_known_of_how_sure_it_is():
    options, subjects = small(repeats=1), first_round()
    _, rows, _ = rank_round(options, subjects, random_values(options["measures"], subjects, 0))
    assert {row["pruned_share"] for row in rows} == {""}


def test_standard_errors_and_counts():
    options, subjects = small(repeats=5), first_round()
    values = random_values(options["measures"], subjects, 0)
    columns, rows, _ = found = rank_round(options, subjects, values)
    of_measures = [f"{measure}_{part}" for measure in (KAPPA, REGIONS) for part in ("change", "se", "n", "singular", "rank")]
    assert columns == [*Trials.columns, *of_measures, "rank_sum", "pruned", "pruned_share"]
    assert all(set(row) == set(columns) for row in rows)
    assert rank_round(options, subjects, values) == found
    for row in rows:
        for measure in (KAPPA, REGIONS):
            changes = [math.log(values[0, measure, r] / values[row["trial"], measure, r]) for r in range(5)]
            mean = sum(changes) / 5
            variance = sum((c - mean) ** 2 for c in changes) / 4
            assert row[f"{measure}_change"] == pytest.approx(mean, abs=1e-11)
            assert row[f"{measure}_se"] == pytest.approx(math.sqrt(variance / 5))
            assert row[f"{measure}_n"] == 5


def test_trials_with_images_of_their_own_are_set_against_the_whole_on_the_same():
    options = small(repeats=3, images="own")
    subjects = trials_of(first_round().mask, first_round().round, options)
    values = random_values(options["measures"], subjects, 3)
    values[Measurement(subjects.whole(4), KAPPA, 1)] = math.inf  # it is mended by the fourth trial, and by no other
    _, rows, _ = rank_round(options, subjects, values)
    assert len(rows) == 24
    for trial, row in enumerate(rows, start=1):
        for measure in (KAPPA, REGIONS):
            # Of 24 trials, subject 24 + t is the whole network on the images of trial t.
            changes = [math.log(values[24 + trial, measure, r] / values[trial, measure, r]) for r in range(3)]
            assert row[f"{measure}_change"] == pytest.approx(sum(changes) / 3, abs=1e-11)
    assert [row[f"{KAPPA}_rank"] for row in rows].index(1) == 3


def test_singular_kernels_are_kept_counted_and_ranked_worst():
    options, subjects = small(), first_round()
    trials = subjects.round.trials
    values = random_values(options["measures"], subjects, 1)
    values[Measurement(3, KAPPA, 1)] = math.inf  # one repeat of one trial turns singular
    for trial in subjects.ids:
        values[Measurement(trial, KAPPA, 2)] = math.inf  # in this repeat all are: nothing to compare
    _, rows, _ = rank_round(options, subjects, values)
    assert rows[2][f"{KAPPA}_change"] == -math.inf
    assert rows[2][f"{KAPPA}_rank"] == trials
    assert [row[f"{KAPPA}_singular"] for row in rows[:4]] == [1, 1, 2, 1]
    assert [row[f"{KAPPA}_n"] for row in rows[:4]] == [2, 2, 1, 2]
    assert not any(math.isnan(row[f"{KAPPA}_rank"]) or math.isnan(row["rank_sum"]) for row in rows)


def test_where_more_is_better_the_infinite_is_minus_infinity_and_ranked_worst_too():
    """NASWOT of a network that gives two images one code; whoever takes that away is pruned first."""
    options, subjects = small(), first_round()
    options |= {"measures": {"naswot": options["measures"][REGIONS]}, "change": "absolute"}
    values = dict.fromkeys(plan(options["measures"], subjects.ids), 7.0)
    values[Measurement(3, "naswot", 1)] = -math.inf
    for subject in subjects.ids:
        values[Measurement(subject, "naswot", 2)] = -math.inf
    values[Measurement(5, "naswot", 2)] = 7.0
    _, rows, _ = rank_round(options, subjects, values)
    assert rows[2]["naswot_change"] == math.inf
    assert rows[4]["naswot_change"] == -math.inf
    assert [rows[place]["naswot_rank"] for place in (2, 4)] == [len(rows), 1]
    assert rows[2]["naswot_singular"] == 2
    # The whole network infinite in all repeats: what changes nothing is no evidence, and is kept.
    values = dict.fromkeys(plan(options["measures"], subjects.ids), -math.inf) | {Measurement(3, "naswot", 0): 7.0}
    _, rows, _ = rank_round(options, subjects, values)
    assert [row["naswot_change"] for row in rows] == [math.inf] * 2 + [-math.inf] + [math.inf] * (len(rows) - 3)


@pytest.mark.parametrize("kind", ["log", "relative", "absolute"])
def test_changes_between_finite_and_infinite_values(kind):
    whole = np.array([2.0, 2.0, np.inf, np.inf])
    rest = np.array([[1.0, np.inf, 1.0, np.inf]])
    expected = {"log": math.log(2), "relative": 0.5, "absolute": 1.0}[kind]
    result = change(whole, rest, kind, None)[0]
    assert result[:3].tolist() == [expected, -np.inf, np.inf]
    assert np.isnan(result[3])


def test_an_infinitely_good_value_is_the_best():
    """Of a measure of which more is better it is +inf, of one of which less is better -inf."""
    for sign, worst in ((1, np.inf), (-1, -np.inf)):
        good, bad = sign * np.inf, -sign * np.inf
        whole, rest = (
            np.array([0.0, 0.0, good, good, good, bad, bad, bad]),
            np.array([[good, bad, 0.0, bad, good, 0.0, good, bad]]),
        )
        found = change(whole, rest, "absolute", None, worst)[0]
        assert found[:7].tolist() == [-worst, worst, worst, worst, pytest.approx(np.nan, nan_ok=True), -worst, -worst]
        assert np.isnan(found[[4, 7]]).all()


def test_mean_change_without_evidence_prunes_nothing():
    changes = np.array([[np.nan, np.nan], [np.inf, 1.0], [np.inf, -np.inf], [1.0, np.nan]])
    assert mean_change(changes, np.ones((1, 2))).tolist() == [[-np.inf, np.inf, -np.inf, 1.0]]
    assert ranks(np.array([-np.inf, np.inf, -np.inf, 1.0]), True, "average").tolist() == [3.5, 1, 3.5, 2]


@pytest.mark.parametrize(("measure", "bad"), [(KAPPA, math.inf), ("naswot", -math.inf)])
def test_a_round_keeps_what_is_infinitely_bad_without(measure, bad):
    """And prunes what is infinitely good without: one repeat is enough."""
    options, subjects = small("paper"), first_round()
    options["measures"] = {measure: {"repeats": 3}}
    values = {m: 100.0 + m.subject + m.repeat for m in plan(options["measures"], subjects.ids)}
    values[Measurement(7, measure, 1)], values[Measurement(11, measure, 2)] = bad, -bad
    _, rows, left = rank_round(options, subjects, values)
    assert [rows[trial - 1][f"{measure}_change"] for trial in (11, 7)] == [bad, -bad]
    assert [rows[trial - 1][f"{measure}_rank"] for trial in (11, 7)] == [1, len(rows)]
    assert [rows[trial - 1]["pruned"] for trial in (11, 7)] == [1, 0]
    assert left == subjects.mask.without(subjects.tried[row["trial"] - 1] for row in rows if row["pruned"])


@pytest.mark.parametrize(("measure", "bad"), [(KAPPA, math.inf), ("naswot", -math.inf)])
def test_a_round_keeps_what_nothing_is_known_of(measure, bad):
    """The whole network is infinitely bad, and so is the rest without this trial."""
    options, subjects = small(change="absolute"), first_round()
    options["measures"] = {measure: {"repeats": 3}}
    values = {m: bad if m.subject in (0, 7) else 100.0 for m in plan(options["measures"], subjects.ids)}
    _, rows, _ = rank_round(options, subjects, values)
    assert [row["trial"] for row in rows if row[f"{measure}_rank"] == len(rows)] == [7]
    assert not rows[6]["pruned"]


def test_changes_on_a_measures_own_scale_may_be_small():
    """Absolute ones are told apart to twelve digits, logarithms to twelve decimals."""
    subjects, scale = first_round(), 1e-14
    for kind, apart in (("absolute", True), ("log", False)):
        options = small(change=kind)
        values = {
            m: scale * (1000 + m.subject) if kind == "absolute" else math.exp(scale * m.subject)
            for m in plan(options["measures"], subjects.ids)
        }
        _, rows, _ = rank_round(options, subjects, values)
        assert options["ranks"] == "average"
        assert len({row[f"{KAPPA}_rank"] for row in rows}) == (len(rows) if apart else 1)


def test_the_pruned_share_says_how_sure_a_decision_is():
    """With noise and no signal, decisions are coin tosses; with signal and little noise they are sure."""
    options, subjects = small(repeats=40), first_round()
    generator = random.Random(0)
    shares = {}
    for signal in (0.0, 3.0):
        values = {
            m: math.exp(generator.gauss(5, 1) - (signal if m.measure == KAPPA else -signal) * (m.subject % 4 == 1))
            for m in plan(options["measures"], subjects.ids)
        }
        _, rows, _ = rank_round(options, subjects, values)
        for edge in range(6):
            assert sum(row["pruned_share"] for row in rows if row["edge"] == edge) == pytest.approx(1)
        shares[signal] = np.mean([row["pruned_share"] for row in rows if row["pruned"]])
    assert shares[3.0] > 0.99
    assert shares[0.0] < 0.85


@pytest.mark.parametrize("within", [False, True], ids=["free", "within loose limits"])
@pytest.mark.parametrize("aggregate", ["rank_sum", "log_rank_sum"])
def test_the_share_is_that_of_decisions_on_repeats_drawn_again(aggregate, within):
    options, subjects = small(repeats=4, aggregate=aggregate), first_round()
    values = random_values(options["measures"], subjects, 13)  # the two sums prune different trials
    nothing = tuple(tuple((0,) * len(NAS.operators) for _ in NAS.edges) for _ in NAS.cell_types)
    _, rows, _ = rank_round(options, subjects, values, Limits(NAS, {"flops": (Sums(NAS, 0, nothing), 0)}) if within else None)

    generator, trials, samples = np.random.default_rng(1), len(rows), 200 if within else 1000
    drawn = {measure: bootstrap_counts(4, 1000, generator)[1 : samples + 1] for measure in (KAPPA, REGIONS)}
    chosen = dict.fromkeys(range(trials), 0)
    for sample in range(samples):
        places = {}
        for measure, counts in drawn.items():
            changes = [
                sum(n * math.log(values[0, measure, r] / values[trial, measure, r]) for r, n in enumerate(counts[sample])) / 4
                for trial in range(1, trials + 1)
            ]
            losses = [round_off(change if measure == REGIONS else -change) for change in changes]
            places[measure] = [sum((a < b) + (a == b) / 2 for a in losses) + 0.5 for b in losses]
        totals = [
            math.log(k) + math.log(r) if aggregate == "log_rank_sum" else k + r
            for k, r in zip(places[KAPPA], places[REGIONS], strict=True)
        ]
        for edge in range(6):
            rivals = [trial for trial in range(trials) if rows[trial]["edge"] == edge]
            chosen[min(rivals, key=lambda trial: (round_off(totals[trial]), places[KAPPA][trial], trial))] += 1
    assert [row["pruned_share"] for row in rows] == pytest.approx([count / samples for count in chosen.values()])
    assert [row["pruned"] for row in rows] == [row["pruned"] for row in rank_round(options, subjects, values)[1]]


def write_shards(folder, measures, subjects, values, shards):
    paths = []
    for shard in range(1, shards + 1):
        part = {m: values[m] for m in plan(measures, subjects.ids, (shard, shards))}
        paths.append(folder / f"{shards}-{shard}.csv")
        write_csv(paths[-1], score_columns(subjects), score_rows(measures, subjects, part))
    return paths


def test_shards_split_a_round_and_come_back_in_any_order(tmp_path):
    measures, subjects = small()["measures"], first_round()
    values = random_values(measures, subjects, 2)
    values[Measurement(1, KAPPA, 0)] = math.inf
    for shards in (1, 2, 5, 25):
        assert sorted(m for s in range(1, shards + 1) for m in plan(measures, subjects.ids, (s, shards))) == sorted(values)
        paths = write_shards(tmp_path, measures, subjects, values, shards)
        assert read_scores(reversed(paths), measures, subjects) == values
    for shard in ((0, 2), (3, 2)):
        with pytest.raises(TenasError, match=f"There is no shard {shard[0]} of 2"):
            plan(measures, subjects.ids, shard)


def cut(text: str) -> str:
    return text[: len(text) // 2]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "cut off"),
        (lambda text: cut(text).rpartition("\n")[0] + "\n", "a shard is missing or cut off"),
        (lambda text: text + text.splitlines()[1] + "\n", "a shard is given twice"),
        (lambda text: text.replace("linear_regions,0,", "linear_regions,9,", 1), "no measurement of round 1"),
        (lambda text: text.replace("skip_connect", "avg_pool_3x3", 1), "another subject than trial 1 of round 1"),
        (lambda text: text.replace("linear_regions,0,", "linear_regions,0,-", 1), "never negative"),
        (lambda text: text.replace("linear_regions,0,", "linear_regions,0,nan,", 1).replace("nan,", "nan#", 1), "not|numbers"),
        (lambda text: text.replace("value", "worth", 1), "expected round,trial"),
        (lambda text: text.replace(",linear_regions,0", "", 1), "fields, not 10"),
    ],
)
def test_a_damaged_scores_file_is_refused_with_a_sentence(tmp_path, damage, message):
    measures, subjects = small()["measures"], first_round()
    (path,) = write_shards(tmp_path, measures, subjects, random_values(measures, subjects, 3), 1)
    path.write_text(damage(path.read_text()))
    with pytest.raises(TenasError, match=message):
        read_scores([path], measures, subjects, "round 1")


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [("code", "b", "code"), ("settings", {"x": 2}, "settings"), ("inputs", {"images.npy": "b"}, "files")],
)
def test_shards_that_were_measured_otherwise_are_refused(tmp_path, key, value, what):
    """A user's measure that was edited between two shards."""
    measures, subjects = small()["measures"], first_round()
    values = random_values(measures, subjects, 3)
    paths = write_shards(tmp_path, measures, subjects, values, 2)
    same = {"code": "a", "settings": {"x": 1}, "inputs": {"images.npy": "a"}}
    for other in (same | {"inputs": {"moved/images.npy": "a"}}, same | {key: value}):
        for path, record in zip(paths, (same, other), strict=True):
            write_json(path.with_suffix(".json"), record | {"scores_sha256": sha256(path)})
        if other[key] != value:
            assert read_scores(paths, measures, subjects) == values
    with pytest.raises(TenasError, match=f"The shards of round 1 were made with different {what}: .*2-1.csv and .*2-2"):
        read_scores(paths, measures, subjects, "round 1")


def test_shards_of_different_kinds_of_devices_are_refused(tmp_path):
    """Another processor is none: its values differ in their last bits."""
    measures, subjects = small()["measures"], first_round()
    values = random_values(measures, subjects, 3)
    paths = write_shards(tmp_path, measures, subjects, values, 2)
    for second in ({"device": "cpu", "processor": "B"}, {"device": "cuda", "gpu": "Card 9", "capability": "9.0"}):
        for path, machine in zip(paths, ({"device": "cpu", "processor": "A"}, second), strict=True):
            write_json(path.with_suffix(".json"), {"machine": machine, "scores_sha256": sha256(path)})
        if second["device"] == "cpu":
            assert read_scores(paths, measures, subjects) == values
    with pytest.raises(TenasError, match=r"The shards of round 1 .*2-2\.csv of a GPU Card 9 \(compute capability 9"):
        read_scores(paths, measures, subjects, "round 1")


def test_a_mask_of_another_round_is_refused():
    with pytest.raises(TenasError, match="24 operators to try, but round 2 of this search has 18"):
        NAS.trials(NAS.full_mask(["none"]), NAS.rounds(["none"])[1])


# --- other rounds of operators


def test_a_round_may_settle_one_edge():
    """Only its operators are tried, all but one go, and every other edge is left as it is."""
    options = small()
    mask = NAS.full_mask(["none"])
    round = NAS.operators_round(1, operators_left(mask), 1, ("cell", 3))
    subjects = Trials(mask, round)
    assert (round.trials, round.prune) == (4, 3)
    assert {trial.edge for trial in subjects.trials[1:]} == {3}
    values = random_values(options["measures"], subjects, 5)
    _, rows, left = rank_round(options, subjects, values)
    (kept,) = [row for row in rows if not row["pruned"]]
    assert kept["rank_sum"] == max(row["rank_sum"] for row in rows)
    assert left.operators("cell", 3) == (kept["operator"],)
    assert all(left.operators("cell", edge) == mask.operators("cell", edge) for edge in (0, 1, 2, 4, 5))
    assert operators_left(left) == after(operators_left(mask), round)


def test_edge_by_edge_ends_in_a_genotype():
    options, mask = small(), NAS.full_mask(["none"])
    for edge in range(6):
        round = NAS.operators_round(edge + 1, operators_left(mask), 1, ("cell", edge))
        subjects = Trials(mask, round)
        _, _, mask = rank_round(options, subjects, random_values(options["measures"], subjects, edge))
    assert NAS.genotype(mask)


def test_an_edge_that_is_settled_has_nothing_to_try():
    mask = NAS.full_mask(["none"])
    round = Round(1, "operators", 3, 4, ("cell", 0))
    _, _, left = rank_round(small(), subjects := Trials(mask, round), random_values(small()["measures"], subjects, 0))
    with pytest.raises(TenasError, match="0 operators to try, but round 1 of this search has 4"):
        NAS.trials(left, round)


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_the_sum_of_logarithms_of_ranks(seed):
    """A trial that is first by one measure goes before one that is in the middle by both."""
    options, subjects = small(aggregate="log_rank_sum"), first_round()
    trials = subjects.trials[1:]
    columns, rows, _ = rank_round(options, subjects, random_values(options["measures"], subjects, seed))
    assert "log_rank_sum" in columns
    assert "rank_sum" not in columns
    for row in rows:
        expected = math.log(row[f"{KAPPA}_rank"]) + math.log(row[f"{REGIONS}_rank"])
        assert row["log_rank_sum"] == pytest.approx(expected, abs=1e-11)
    for edge in range(6):
        rivals = [row for row in rows if trials[row["trial"] - 1].edge == edge]
        first = min(rivals, key=lambda row: (row["log_rank_sum"], row[f"{KAPPA}_rank"], row["trial"]))
        assert [row["trial"] for row in rivals if row["pruned"]] == [first["trial"]]


def test_equal_sums_of_ranks_are_told_apart_by_the_first_measure_then_by_order():
    for aggregate in ("rank_sum", "log_rank_sum"):
        first, second = np.array([[2.0, 1.0, 3.0, 3.0]]), np.array([[1.0, 2.0, 3.0, 3.0]])
        assert pruned([first, second], [([0, 1], 1), ([2, 3], 1)], aggregate).tolist() == [[False, True, True, False]]
        assert pruned([second, first], [([0, 1], 1), ([2, 3], 1)], aggregate).tolist() == [[True, False, True, False]]
        # In each sample by its own ranks.
        both = [np.vstack([first, second]), np.vstack([second, first])]
        assert pruned(both, [([0, 1], 1)], aggregate)[:, :2].tolist() == [[False, True], [True, False]]


def test_numbers_are_equal_that_differ_after_the_twelfth_digit():
    """Which of them is larger depends on the processor."""
    once = np.ones((1, 1))
    for apart, equal in ((2e-13, True), (2e-12, False)):
        low, high = mean_change(np.array([[0.5], [0.5 + apart]]), once)[0]
        assert (low == high) == equal
    assert len(set(mean_change(np.array([[0.005], [0.005 + 2e-13]]), once)[0])) == 1
    logarithms = aggregated([np.array([[2.0, 3.0]]), np.array([[3.0, 2.0 + 4e-13]])], "log_rank_sum")
    assert logarithms[0, 0] == logarithms[0, 1]


def test_small_numbers_of_a_measure_are_not_rounded_to_nothing():
    """Twelve digits of the largest, where the numbers are a measure's own."""
    changes = np.array([[1.3e-12], [1.4e-12], [2.9e-12], [2.9e-12 * (1 + 1e-14)]])
    found = mean_change(changes, np.ones((1, 1)), raw=True)[0]
    np.testing.assert_allclose(found, changes[:, 0], rtol=1e-11)
    assert found[2] == found[3]
    assert mean_change(changes / 1e-12, np.ones((1, 1)), raw=True).tolist() == [[1.3, 1.4, 2.9, 2.9]]
    assert mean_change(np.array([[1e297], [3e300]]), np.ones((1, 1)), raw=True).tolist() == [[1e297, 3e300]]
    signed, scores = get_measure("zico"), changes * -1e-200
    assert len(set(mean_score(signed, scores, np.ones((1, 1)))[0])) == 3


def test_two_repeats_are_enough_to_say_how_sure_a_decision_is():
    options = small(repeats=2)
    _, rows, _ = rank_round(options, first_round(), random_values(options["measures"], first_round(), 0))
    assert all(0 <= row["pruned_share"] <= 1 for row in rows)
