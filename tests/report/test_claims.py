"""Published figures beside results: intervals against SciPy's tests, verdicts on either side of their bounds, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import ROOT
from scipy import stats

from tenas.benchmark import look_up
from tenas.benchmark.index import read_index
from tenas.cli import main
from tenas.config import load_config, read_config
from tenas.errors import TenasError
from tenas.files import write_csv, write_json
from tenas.measures.catalogue import get_measure
from tenas.report.baselines import baselines
from tenas.report.claims import (
    configurations_of,
    difference_interval,
    interval,
    judge,
    page,
    read_claims,
    runs_of,
    settings_meant,
    threshold,
    verdict,
)
from tenas.scoring.subjects import Cell
from tenas.search.shortlist import shortlist_json
from tenas.settings import search_settings, study_settings
from tenas.spaces import get_space
from tenas.study.correlate import Scores, correlations

ARCHS = [genotype.arch for _, genotype in zip(range(12), get_space("nas-bench-201").genotypes(), strict=False)]
PUBLISHED = {"says": "It is so", "source": "Somewhere", "value": 90.0, "spread": 0.5, "seeds": 4}


COSTS = {"repeats": 1, "batch": 2, "channels": 4, "cells": 1, "weights": "pytorch", "redraw": True}


def save_run(results: Path, name: str, accuracies: list[float]) -> None:
    rows = [{"seed": i, "arch": ARCHS[i], "cifar10_test": value} for i, value in enumerate(accuracies)]
    write_csv(results / name / "summary.csv", ["seed", "arch", "cifar10_test"], rows)


def save_claims(path: Path, **claims: dict) -> Path:
    path.write_text(yaml.safe_dump({"claims": claims}))
    return path


def test_the_interval_of_a_mean_is_students():
    values = np.random.default_rng(0).normal(93, 0.5, 8)
    known = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval(values.tolist()) == pytest.approx(tuple(known))
    assert interval([93.0]) is None


@pytest.mark.parametrize("sizes", [(8, 4), (2, 9)])
def test_the_interval_of_a_difference_is_welchs(sizes):
    generator = np.random.default_rng(1)
    first, second = generator.normal(93, 0.5, sizes[0]), generator.normal(92, 2.0, sizes[1])
    known = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    summaries = [(values.mean(), values.std(ddof=1), len(values)) for values in (first, second)]
    assert difference_interval(*summaries) == pytest.approx(tuple(known))


def test_two_runs_without_any_spread_differ_by_what_they_differ():
    assert difference_interval((93.0, 0.0, 3), (92.0, 0.0, 3)) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ((88.0, 89.7), "does not hold"),
        ((88.0, 89.75), "undecided"),
        ((89.7, 90.1), "undecided"),
        ((89.75, 90.1), "holds"),
        ((90.5, 90.6), "holds"),
        (None, "undecided"),
    ],
)
def test_a_verdict_follows_from_the_interval(found, expected):
    """90 with a spread of 0.5 over 4 seeds has a standard error of 0.25."""
    assert verdict(found, threshold(PUBLISHED)) == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [((0.0, 0.0), "undecided"), ((0.0, 0.3), "undecided"), ((0.1, 0.3), "holds"), ((-0.3, 0.0), "undecided"),
     ((-0.3, -0.1), "does not hold")],
)  # fmt: skip
def test_equal_cells_are_not_better_than_each_other(found, expected):
    assert verdict(found, 0.0, more=True) == expected


def test_every_kind_of_claim_is_judged(tmp_path):
    save_run(tmp_path, "high", [90.1, 90.2, 90.0, 90.3, 90.1, 90.2])
    save_run(tmp_path, "low", [88.1, 88.2, 88.0, 88.3])
    save_run(tmp_path, "wide", [80.0, 99.0, 91.0])
    save_run(tmp_path, "single", [90.0])
    columns = ["measure", "accuracy", "subset", "cells", "kendall", "kendall_low", "kendall_high"]
    found = [
        ("snip", "a", "top", 9, 0.1, 0.0, 0.2), ("snip", "a", "all", 9, 0.55, 0.5, 0.6),
        ("snip", "b", "all", 9, 0.1, 0.0, 0.2), ("snip", "c", "all", 9, 0.5, 0.4, 0.6),
    ]  # fmt: skip
    rows = [dict(zip(columns, row, strict=True)) for row in found]
    write_csv(tmp_path / "study" / "correlations.csv", columns, rows)
    tau = {"says": "It ranks", "source": "Somewhere", "value": 0.5, "runs": ["study"]}
    claims = save_claims(
        tmp_path / "claims.yaml",
        mean=PUBLISHED | {"accuracy": "cifar10_test", "runs": ["high", "low", "wide", "single", "absent"]},
        order={
            "says": "One is better", "source": "Somewhere", "accuracy": "cifar10_test",
            "better": [["high", "low"], ["low", "high"], ["high", "wide"], ["high", "absent"]],
        },
        tau_a=tau | {"correlation": {"measure": "snip", "accuracy": "a"}},
        tau_b=tau | {"correlation": {"measure": "snip", "accuracy": "b"}},
        tau_c=tau | {"correlation": {"measure": "snip", "accuracy": "c"}},
    )  # fmt: skip
    assert runs_of(read_claims(claims)) == ["high", "low", "wide", "single", "absent", "study"]
    judged = judge(claims, tmp_path, ["high", "low", "wide", "single", "study"])
    verdicts = {claim["claim"]: [result["verdict"] for result in claim["results"]] for claim in judged["claims"]}
    assert verdicts == {
        "mean": ["holds", "does not hold", "undecided", "undecided", "not tested"],
        "order": ["holds", "does not hold", "undecided", "not tested"],
        "tau_a": ["holds"],
        "tau_b": ["does not hold"],
        "tau_c": ["undecided"],
    }
    high = judged["claims"][0]["results"][0]
    assert (high["n"], high["mean"]) == (6, pytest.approx(90.15))
    assert high["difference"] == difference_interval((high["mean"], high["sd"], 6), (90.0, 0.5, 4))
    assert [seed["value"] for seed in high["seeds"]] == [90.1, 90.2, 90.0, 90.3, 90.1, 90.2]
    assert len(judged["provenance"]["inputs"]) == 6
    text = page(judged)
    assert text.count("| **not tested** |") == 2
    assert f"| `low` | 3 | cifar10_test | 88.30 | `{ARCHS[3]}` |".replace(ARCHS[3], ARCHS[3].replace("|", "\\|")) in text


def test_a_name_alone_makes_no_run_the_one_that_a_claim_means(tmp_path):
    """A run of the name with another setting, however it came about, tests nothing; the page says which setting it is."""
    run = {"space": "nas-bench-201", "dataset": "digits", "preset": "released", "seeds": [0]}
    config = {"datasets": {"digits": {"source": "digits"}}, "runs": dict.fromkeys(("same", "other", "limited"), run)}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    changes = {"same": {}, "other": {"changes": {"measures": {"linear_regions": {"repeats": 5}}}},
               "limited": {"limits": {"parameters": "60%"}}}  # fmt: skip
    for name, of_run in changes.items():
        save_run(tmp_path, name, [90.1, 90.2, 90.0, 90.3, 90.1, 90.2])
        for seed in range(6):
            write_json(tmp_path / name / f"seed{seed}" / "benchmark.json", look_up(ARCHS[seed], None))
        write_json(tmp_path / name / "search.json", search_settings("nas-bench-201", "released", **of_run))
    claim = {"says": "It is so", "source": "Somewhere", "value": 90.0, "accuracy": "cifar10_test", "runs": [*changes, "free"]}
    claims = tmp_path / "claims.yaml"
    claims.write_text(yaml.safe_dump({"configurations": [str(tmp_path / "config.yaml")], "claims": {"one": claim}}))
    judged = judge(claims, tmp_path, [*changes])
    results = judged["claims"][0]["results"]
    assert [result["verdict"] for result in results] == ["holds", "other settings", "other settings", "not tested"]
    assert results[1]["differs"] == ["other: rounds.1.measures.linear_regions.repeats is 5, not 3"]
    assert "**other settings**; limited: limits.parameters is '60%', not None" in page(judged)


def test_the_settings_that_this_projects_claims_mean(monkeypatch):
    """Of all runs and studies that they name."""
    monkeypatch.chdir(ROOT)
    path = ROOT / "config/claims.yaml"
    assert set(runs_of(read_claims(path))) <= settings_meant(configurations_of(path)).keys()


@pytest.mark.parametrize("name", ["config/config.yaml", "config/darts.yaml", "config/nas-bench-201.yaml"])
def test_what_a_configuration_means_is_what_its_runs_have(monkeypatch, name):
    """With a retraining too, to which short trainings and sizes of networks refer."""
    monkeypatch.chdir(ROOT)
    runs = load_config(read_config(name))["runs"]
    meant = settings_meant([ROOT / name])
    for run, value in runs.items():
        settings = {key: value["settings"][key] for key in ("space", "exclude", "rounds", "limits")}
        assert {key: meant[run][key] for key in settings} == settings


def retrained(folder: Path, settings: dict, retraining: dict, source: str = "digits") -> None:
    rows = [{"seed": seed, "arch": ARCHS[0], "test_accuracy": value} for seed, value in enumerate((90.1, 90.2, 90.0, 90.3))]
    write_csv(folder / "summary.csv", ["seed", "arch", "test_accuracy"], rows)
    for seed in range(4):
        write_json(folder / f"seed{seed}" / "benchmark.json", look_up(ARCHS[0], None))
    write_json(folder / "search.json", settings)
    write_json(folder / "retrain.json", {"preset": "any", "dataset": {"source": source, "path": "x", "side": None}, **retraining})


@pytest.mark.parametrize(
    ("change", "source", "differs"),
    [({}, "digits", None), ({"workers": 0}, "digits", None), ({"epochs": 2}, "digits", "run: retraining.epochs is 2, not 16"),
     ({}, "npz", "run: retraining.dataset.source is 'npz', not 'digits'")],
)  # fmt: skip
def test_a_retrained_accuracy_is_of_the_retraining_that_a_claim_means(tmp_path, change, source, differs):
    run = {"space": "nas-bench-201", "dataset": "digits", "preset": "default", "seeds": [0], "retrain": "digits"}
    config = {"datasets": {"digits": {"source": "digits"}}, "runs": {"run": run}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (found,) = load_config(config)["runs"].values()
    retrained(tmp_path / "run", found["settings"], found["retrain_settings"] | change, source)
    claim = {"says": "It is so", "source": "Somewhere", "value": 89.0, "accuracy": "test_accuracy", "runs": ["run"]}
    claims = tmp_path / "claims.yaml"
    claims.write_text(yaml.safe_dump({"configurations": [str(tmp_path / "config.yaml")], "claims": {"one": claim}}))
    (result,) = judge(claims, tmp_path, ["run"])["claims"][0]["results"]
    assert result["verdict"] == ("holds" if differs is None else "other settings")
    assert result.get("differs") == (None if differs is None else [differs])


def test_results_of_earlier_settings_test_no_claim(tmp_path):
    """After a change of the preset, the settings are written first."""
    save_run(tmp_path, "run", [90.1, 90.2, 90.0])
    settings = search_settings("nas-bench-201", "released")
    write_json(tmp_path / "run" / "search.json", settings)
    for seed in range(3):
        made_by = {"settings": settings | {"exclude": ["avg_pool_3x3"]} if seed == 2 else settings}
        write_json(tmp_path / "run" / f"seed{seed}" / "genotype.json", {"arch": ARCHS[seed], "made_by": made_by})
    study = study_settings({"space": "nas-bench-201", "dataset": "digits", "cells": 12, "measures": {"flops": COSTS}}, "study")
    write_json(tmp_path / "study" / "study.json", study)
    write_json(tmp_path / "study" / "correlations.json", {"settings": study | {"cells": 10}})
    claims = save_claims(
        tmp_path / "claims.yaml",
        mean=PUBLISHED | {"accuracy": "cifar10_test", "runs": ["run"]},
        tau={"says": "It ranks", "source": "Here", "value": 0.5, "runs": ["study"],
             "correlation": {"measure": "flops", "accuracy": "a"}},
    )  # fmt: skip
    of_run, of_study = (claim["results"][0] for claim in judge(claims, tmp_path, ["run", "study"])["claims"])
    assert of_run["differs"] == ["run: seed 2 was searched with others than search.json has now"]
    assert of_study["differs"] == ["study: its correlations are of others than study.json has now"]
    assert {of_run["verdict"], of_study["verdict"]} == {"other settings"}


def test_what_a_mean_must_reach():
    figure = {key: PUBLISHED[key] for key in ("says", "source", "value")}
    assert threshold(PUBLISHED) == 90 - 0.5 / 2
    assert threshold(figure) == 90
    assert threshold(figure | {"tolerance": 0.5}) == 89.5
    assert threshold({"better": [["a", "b"]]}) == 0


def test_without_a_spread_the_published_figure_is_taken_as_it_is(tmp_path):
    save_run(tmp_path, "run", [91.0, 92.0, 93.0])
    claim = {"says": "It is so", "source": "Somewhere", "value": 90.0, "accuracy": "cifar10_test", "runs": ["run"]}
    (judged,) = judge(save_claims(tmp_path / "claims.yaml", one=claim), tmp_path, ["run"])["claims"]
    (result,) = judged["results"]
    assert (judged["threshold"], result["difference"], result["verdict"]) == (90.0, None, "undecided")
    assert result["interval"] == list(interval([91.0, 92.0, 93.0]))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"accuracy": "cifar10_tset"}, "lacks the accuracy 'cifar10_tset'"),
        ({"runs": ["elsewhere"]}, "summary .*elsewhere.* cannot be read"),
        ({"spraed": 1}, "unknown key 'spraed'"),
        ({"seeds": 1}, r"'claims.one.seeds' is 1; it must be at least 2"),
        ({"better": [["run", "run"]]}, "claims.one"),
        ({"correlation": {"measure": "snip", "accuracy": "a"}}, "claims.one"),
        ({"above": "baselines"}, "'above' takes the place of 'value'"),
        ({"above": "everything"}, "must be 'baselines'|baselines"),
        ({"trained": False}, "run has no search.json"),
        ({"by": "me"}, "paper"),
        ({"value": "ninety"}, r"'claims.one.value' is 'ninety'; it must be a finite number"),
    ],
)
def test_faulty_claims_and_missing_results_get_a_sentence_and_leave_nothing(tmp_path, capsys, change, sentence):
    save_run(tmp_path, "run", [91.0, 92.0])
    claims = save_claims(tmp_path / "claims.yaml", one=PUBLISHED | {"accuracy": "cifar10_test", "runs": ["run"]} | change)
    out = ["--out", str(tmp_path / "claims.json"), "--page", str(tmp_path / "claims.md")]
    tested = change.get("runs", ["run"])
    assert main(["claims", str(claims), "--results", str(tmp_path), "--tested", *tested, *out]) == 2
    with pytest.raises(TenasError, match=sentence):
        judge(claims, tmp_path, tested)
    assert capsys.readouterr().err.startswith("tenas: ")
    assert not list(tmp_path.glob("claims.json")) + list(tmp_path.glob("claims.md"))


COLUMNS = ("measure", "accuracy", "subset", "cells", "kendall", "kendall_low", "kendall_high")


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("run/summary.csv", "seed,arch,cifar10_test\n0,a,inf\n1,b,92.0\n", "of a seed, or has no number for it"),
        ("run/summary.csv", "seed,arch,cifar10_test\n0,a,nan\n1,b,92.0\n", "of a seed, or has no number for it"),
        ("run/summary.csv", "seed,arch,cifar10_test\n~,a,91.0\n1,b,92.0\n", "is damaged: the number of a seed is none"),
        ("run/summary.csv", "seed,arch,cifar10_test\n1,a,91.0\n1,b,92.0\n", "has a seed twice"),
        ("run/summary.csv", "seed,arch,cifar10_test\n", "has no seeds"),
        ("run/summary.csv", "seed,arch,cifar10_test\n0,a,1e200\n1,b,92.0\n", "has 1e\\+200 for cifar10_test of seed 0"),
        ("study/correlations.csv", f"{','.join(COLUMNS)}\nsnip,a,all,4x,0.5,0.4,0.6\n", "are damaged: invalid literal"),
        ("study/correlations.csv", f"{','.join(COLUMNS)}\nsnip,a,all,40,5.5,0.4,0.6\n", r"are damaged: 5\.5 \(0\.4 to 0\.6\)"),
    ],
)  # fmt: skip
def test_damaged_results_get_a_sentence_and_no_verdict(tmp_path, name, text, sentence):
    save_run(tmp_path, "run", [91.0, 92.0])
    write_csv(
        tmp_path / "study/correlations.csv", COLUMNS, [dict(zip(COLUMNS, ("snip", "a", "all", 40, 0.5, 0.4, 0.6), strict=True))]
    )
    ranks = {"says": "It ranks", "source": "Somewhere", "value": 0.5, "runs": ["study"],
             "correlation": {"measure": "snip", "accuracy": "a"}}  # fmt: skip
    mean = PUBLISHED | {"accuracy": "cifar10_test", "runs": ["run"]}
    claims = save_claims(tmp_path / "claims.yaml", mean=mean, ranks=ranks)
    assert [claim["results"][0]["verdict"] for claim in judge(claims, tmp_path, ["run", "study"])["claims"]] == ["undecided"] * 2
    (tmp_path / name).write_text(text)
    with pytest.raises(TenasError, match=sentence):
        judge(claims, tmp_path, ["run", "study"])


def test_without_a_correlation_nothing_is_decided(tmp_path):
    """A measure with one value for all cells ranks none of them: it has no tau, and that is no proof of a low one."""
    values = {"snip": Scores(get_measure("snip"), np.ones((20, 1)), 0.1)}
    (row,) = (row for row in correlations(values, {"a": np.arange(20.0)}, 0, resamples=9) if row["subset"] == "all")
    write_csv(tmp_path / "study/correlations.csv", [*row], [row])
    ranks = {"says": "It ranks", "source": "Somewhere", "value": 0.5, "runs": ["study"],
             "correlation": {"measure": "snip", "accuracy": "a"}}  # fmt: skip
    judged = judge(save_claims(tmp_path / "claims.yaml", ranks=ranks), tmp_path, ["study"])
    assert judged["claims"][0]["results"] == [{"run": "study", "mean": None, "n": 20, "interval": None, "verdict": "undecided"}]
    assert "| 0.500 | `study` |  | 20 |  |  | **undecided** |" in page(judged)


@pytest.mark.parametrize("name", ["rum", "results/run"])
def test_a_run_that_no_claim_is_about_is_refused_instead_of_left_untested(tmp_path, name):
    save_run(tmp_path, "run", [91.0, 92.0])
    claims = save_claims(tmp_path / "claims.yaml", one=PUBLISHED | {"accuracy": "cifar10_test", "runs": ["run"]})
    with pytest.raises(TenasError, match=rf"No claim in .*claims\.yaml is about '{name}'; claims are about .* run\."):
        judge(claims, tmp_path, [name])


def test_the_projects_claims_are_sound_and_name_runs_that_are_configured():
    claims = read_claims(ROOT / "config" / "claims.yaml")
    files = [path for path in (ROOT / "config").glob("*.yaml") if path.name != "claims.yaml"]
    loaded = [yaml.safe_load(path.read_text()) for path in files]
    known = {name for config in loaded for key in ("runs", "studies") for name in config.get(key) or {}}
    assert set(runs_of(claims)) <= known
    sets = ("cifar10", "cifar100", "imagenet16-120")
    assert [claims[name]["value"] for name in sets] == [93.9, 71.24, 42.38]
    assert [claims[f"{name}-default"]["value"] for name in sets] == [94.15, 72.6, 46.2]
    assert [claims[f"{name}-default-untrained"]["value"] for name in sets] == [93.9, 71.6, 45.3]
    assert {name for name, claim in claims.items() if claim["by"] == "tenas"} == {
        f"{name}-default{part}" for name in sets for part in ("", "-untrained", "-above", "-untrained-above")
    }


def test_claims_json_can_be_read_by_anything(tmp_path):
    """No NaN and no Infinity, which JSON does not have."""
    save_run(tmp_path, "run", [91.0, 91.0])
    claims = save_claims(tmp_path / "claims.yaml", one=PUBLISHED | {"accuracy": "cifar10_test", "runs": ["run"]})
    json.dumps(judge(claims, tmp_path, ["run"]), allow_nan=False)


# --- beside what costs as much


def save_search(folder: Path, preset: str, found: list[str], ranked: list[str] | None = None, images: str = "a" * 64) -> None:
    """A run whose cells were looked up in the built-in table. ``ranked``: what stood first before short trainings from there."""
    trainings = None if ranked is None else "table:cifar10_valid_e12"
    settings = search_settings("nas-bench-201", preset, trainings=trainings)
    write_json(folder / "search.json", settings)
    write_json(folder / "seed0/round1/scores/1.json", {"inputs": {"data/any/images.npy": images}})
    rows = []
    for seed, arch in enumerate(found):
        known = look_up(arch, "builtin")
        write_json(folder / f"seed{seed}/benchmark.json", known)
        rows.append({"seed": seed, "arch": arch, "cifar10_test": known["accuracies"]["cifar10_test"]["accuracy"]})
        if ranked is not None:
            cells = shortlist_json(get_space("nas-bench-201"), [Cell(7, ranked[seed]), Cell(3, arch)])
            write_json(folder / f"seed{seed}/round3/shortlist.json", cells)
    write_csv(folder / "summary.csv", ["seed", "arch", "cifar10_test"], rows)


@pytest.mark.slow
def test_what_costs_as_much_stands_beside_the_runs_and_is_judged(tmp_path):
    table = read_index("builtin").set_index("arch")
    test = table["cifar10_test"]
    good = test[~test.index.str.contains("none")].sort_values(ascending=False).index.tolist()
    save_search(tmp_path / "ours", "default", good[:4], good[100:104])
    save_search(tmp_path / "theirs", "released", good[2000:2003])
    save_search(tmp_path / "others", "released", good[:3], images="b" * 64)
    ours = {"says": "It is so", "source": "Here", "by": "tenas", "accuracy": "cifar10_test", "runs": ["ours"]}
    path = save_claims(
        tmp_path / "claims.yaml",
        paper=PUBLISHED | {"accuracy": "cifar10_test", "runs": ["theirs"]},
        trained=ours | {"value": 94.0},
        untrained=ours | {"value": 94.0, "trained": False},
        above=ours | {"above": "baselines"},
        above_untrained=ours | {"above": "baselines", "trained": False},
    )
    judged = judge(path, tmp_path, ["ours", "theirs"])
    results = {claim["claim"]: claim["results"] for claim in judged["claims"]}
    assert results["trained"][0]["mean"] == pytest.approx(test[good[:4]].mean())
    assert results["untrained"][0]["mean"] == pytest.approx(test[good[100:104]].mean())
    assert [seed["arch"] for seed in results["untrained"][0]["seeds"]] == good[100:104]
    # Once more from the table: of searches by Welch's test, of one figure by Student's.
    settings = search_settings("nas-bench-201", "default", trainings="none")
    known = {one.name: one for one in baselines(read_index("builtin"), settings)}
    trained = {one["than"]: one for one in results["above"]}
    chosen = table["cifar10_valid_e12"][good[2000:2003]].idxmax()
    assert list(trained) == [
        "most parameters", "a random cell without none", "best of 3 seeds of run theirs, by the same short trainings",
        "best of 16 random cells, by the same short trainings", "regularised evolution, 16 of the same short trainings",
    ]  # fmt: skip
    for name, figure in {
        "most parameters": known["most parameters"].accuracies["cifar10_test"][0],
        "a random cell without none": test[good].mean(),
        "best of 3 seeds of run theirs, by the same short trainings": test[chosen],
    }.items():
        student = stats.ttest_1samp(test[good[:4]], figure).confidence_interval(0.95)
        ends = [student.low - figure, student.high - figure]
        assert trained[name]["interval"] == pytest.approx(ends), name
        assert trained[name]["verdict"] == ("holds" if ends[0] > 0 else "undecided" if ends[1] > 0 else "does not hold")
    untrained = {one["than"]: one for one in results["above_untrained"]}
    assert list(untrained) == ["most parameters", "a random cell without none", "run theirs"]
    welch = stats.ttest_ind(test[good[100:104]], test[good[2000:2003]], equal_var=False).confidence_interval(0.95)
    assert untrained["run theirs"]["interval"] == pytest.approx(tuple(welch))
    # The table has each way once, and the runs first.
    rows = {row["name"]: row for row in judged["beside"]["cifar10_test"]}
    assert len(rows) == len(judged["beside"]["cifar10_test"])
    assert list(rows)[:3] == ["run ours", "run ours without its trainings", "run theirs"]
    assert set(rows) == {*list(rows)[:3], *trained}
    assert rows["run ours without its trainings"]["mean"] == pytest.approx(test[good[100:104]].mean())
    assert rows["best of 16 random cells, by the same short trainings"]["n"] == 500
    text = page(judged)
    papers, mine = text.split("## Ours")
    assert "| paper |" in papers
    assert "| trained |" not in papers
    assert "| paper |" not in mine
    assert mine.count("| above_untrained |") == 3
    assert f"| most parameters | 1 | {rows['most parameters']['mean']:.2f} |" in text
    assert "| `ours` without its trainings |" in text
    json.dumps(judged, allow_nan=False)


def test_runs_without_a_table_have_nothing_beside_them(tmp_path):
    save_search(tmp_path / "run", "pruning", ARCHS[:2])
    for seed in range(2):
        write_json(tmp_path / f"run/seed{seed}/benchmark.json", look_up(ARCHS[seed], None))
    claim = {"says": "It is so", "source": "Here", "accuracy": "cifar10_test", "runs": ["run"]}
    judged = judge(save_claims(tmp_path / "claims.yaml", one=claim | {"value": 90.0}), tmp_path, ["run"])
    assert judged["beside"] == {}
    assert "equal cost" not in page(judged)
    changes = {"it has no baselines": {"above": "baselines"}, "short trainings": {"trained": False, "value": 1.0}}
    for sentence, change in changes.items():
        with pytest.raises(TenasError, match=sentence):
            judge(save_claims(tmp_path / "claims.yaml", one=claim | change), tmp_path, ["run"])
