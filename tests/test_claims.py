"""Published figures beside results: intervals against SciPy's tests, verdicts on either side of their bounds, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from tenas.cli import main
from tenas.errors import TenasError
from tenas.files import write_csv
from tenas.report.claims import difference_interval, interval, judge, page, read_claims, runs_of, threshold, verdict
from tenas.spaces import get_space

ROOT = Path(__file__).resolve().parent.parent
ARCHS = [genotype.arch for _, genotype in zip(range(12), get_space("nas-bench-201").genotypes(), strict=False)]
PUBLISHED = {"says": "It is so", "source": "Somewhere", "value": 90.0, "spread": 0.5, "seeds": 4}


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
        ({"value": "ninety"}, r"'claims.one.value' is 'ninety'; it must be a finite number"),
    ],
)
def test_faulty_claims_and_missing_results_get_a_sentence_and_leave_nothing(tmp_path, capsys, change, sentence):
    save_run(tmp_path, "run", [91.0, 92.0])
    claims = save_claims(tmp_path / "claims.yaml", one=PUBLISHED | {"accuracy": "cifar10_test", "runs": ["run"]} | change)
    out = ["--out", str(tmp_path / "claims.json"), "--page", str(tmp_path / "claims.md")]
    assert main(["claims", str(claims), "--results", str(tmp_path), "--tested", "run", "elsewhere", *out]) == 2
    with pytest.raises(TenasError, match=sentence):
        judge(claims, tmp_path, ["run", "elsewhere"])
    assert capsys.readouterr().err.startswith("tenas: ")
    assert not list(tmp_path.glob("claims.json")) + list(tmp_path.glob("claims.md"))


def test_the_projects_claims_are_sound_and_name_runs_that_are_configured():
    claims = read_claims(ROOT / "config" / "claims.yaml")
    files = [path for path in (ROOT / "config").glob("*.yaml") if path.name != "claims.yaml"]
    loaded = [yaml.safe_load(path.read_text()) for path in files]
    known = {name for config in loaded for key in ("runs", "studies") for name in config.get(key) or {}}
    assert set(runs_of(claims)) <= known
    assert (claims["cifar10"]["value"], claims["cifar100"]["value"], claims["imagenet16-120"]["value"]) == (93.9, 71.24, 42.38)


def test_claims_json_can_be_read_by_anything(tmp_path):
    """No NaN and no Infinity, which JSON does not have."""
    save_run(tmp_path, "run", [91.0, 91.0])
    claims = save_claims(tmp_path / "claims.yaml", one=PUBLISHED | {"accuracy": "cifar10_test", "runs": ["run"]})
    json.dumps(judge(claims, tmp_path, ["run"]), allow_nan=False)
