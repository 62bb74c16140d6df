"""Whatever stands in a configuration: a value that can be, or one sentence. A sweep over all keys, and YAML's own traps."""

import copy
import datetime
import math
import subprocess
import sys

import pytest
from helpers.runs import TINY, snakemake

from tenas.cli import main as command
from tenas.config import load_config, main, read_config
from tenas.data import prepare
from tenas.errors import TenasError
from tenas.settings.base import MOST_VALUES, checked, number_of, parse_yaml, read_yaml
from tenas.settings.reference import MODELS
from tenas.settings.search import assigned
from tenas.settings.sizes import check_sizes, network_bytes

VALUES = (
    -1, 0, 1, 2.5, 2.0, -0.0, 10**30, -(10**30), 10**400, -(10**400), 1e308, math.nan, math.inf, -math.inf, True, False, None, "",
    "x", "2", "-1", "1e3", "1e999", "no", "60%", "a\nb", "\0", "\ud800", "x" * 400, "..", "-x", "../x", "$(touch x)",
    "'; touch x;'", "x.py:y", ":", "table:", "é", b"x", [], [1], [[]], ["a", "a"], {}, {"a": 1}, {1: 2}, {None: None},
    {"kind": None}, {1, 2}, datetime.date(2024, 1, 1),
)  # fmt: skip
DIGITS = TINY["runs"]["digits"]
ONCE = {"repeats": 1, "weights": "pytorch", "redraw": True, "channels": 2}
MEASURES = {
    "ntk_condition_number": ONCE | {"batch": 4, "cells": 1},
    "linear_regions": ONCE | {"inputs": "crops", "count": 9, "blocks": 2},
}
CELLS = {"kind": "cells", "sample": 100, "keep": 1, "measures": ["ntk_condition_number", "linear_regions"]}
# Every section of a configuration, each kind of round.
WHOLE = TINY | {
    "benchmark": {"nas-bench-201": "builtin"},
    "table_search": {"budgets": [1], "seeds": 2},
    "runs": {
        "digits": DIGITS
        | {
            "search": {
                "exclude": ["none"],
                "measures": MEASURES,
                "rounds": [
                    {"kind": "operators", "prune": 1, "edge": ["cell", 2], "measures": ["linear_regions"]},
                    {"kind": "cells", "sample": 3, "keep": 2, "measures": MEASURES},
                    {"kind": "training", "keep": 1, "training": {"epochs": 2, "validation": 0.2}},
                ],
            },
            "retraining": DIGITS["retraining"] | {"colour_jitter": {"hue": 0.1}, "validation": 0.2},
        }
    },
    "studies": {"s": {"space": "nas-bench-201", "dataset": "digits", "cells": 10, "measures": MEASURES}},
}


def is_sentence(said: str) -> bool:
    return said.endswith(".") and not said.endswith("..") and said.isprintable() and len(said) < 900 and "Traceback" not in said


def refusal(call, *arguments):
    """What a call refuses its arguments with; None where it takes them."""
    try:
        call(*arguments)
    except TenasError as error:
        return str(error)
    return None


def places(value, at=()):
    """The place of every value in a configuration, as keys and numbers."""
    if at:
        yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, (*at, key))


def put(value, at, new):
    value = copy.deepcopy(value)
    part = value
    for key in at[:-1]:
        part = part[key]
    part[at[-1]] = new
    return value


@pytest.mark.parametrize("at", list(places(WHOLE)), ids=lambda at: ".".join(map(str, at)))
def test_every_value_of_a_configuration_is_accepted_or_one_sentence(at):
    for value in VALUES:
        said = refusal(load_config, put(WHOLE, at, value))
        assert said is None or is_sentence(said), value
        assert said is None or said.startswith("config: "), value


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_key_of_every_model_is_accepted_or_one_sentence(model):
    for key in model.model_fields:
        for value in VALUES:
            said = refusal(checked, model, {key: value}, "here")
            assert said is None or is_sentence(said), (key, value)


def test_the_configuration_of_the_sweep_is_a_valid_one():
    assert list(load_config(WHOLE)["runs"]) == ["digits"]


# --- YAML


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"# nothing\n", "is empty"),
        (b"- 1\n", "is not a mapping of keys to values"),
        (b"text\n", "is not a mapping of keys to values"),
        (b"a: 1\na: 2\n", "the key 'a' is given twice"),
        (b"a: {b: 1, b: 2}\n", "the key 'b' is given twice"),
        (b"a:\n\tb: 1\n", "is not valid YAML"),
        (b"a: [1\n", "is not valid YAML"),
        (b"a: \xff\n", "is not text in UTF-8"),
        ("a: 1\n".encode("utf-16"), "is not text in UTF-8"),
        (b"a: \x00\n", "is not valid YAML"),
        (b"a: 2024-13-45\n", "is not valid YAML: month must be in 1..12"),
        (b"a: " + b"9" * 5000 + b"\n", "is not valid YAML: Exceeds the limit"),
        (b"a: " + b"[" * 3000 + b"]" * 3000 + b"\n", "is not valid YAML: it is nested too deeply"),
        (b"a: !!python/object/apply:os.system [touch ran]\n", "is not valid YAML"),
        (b"a: *nowhere\n", "is not valid YAML"),
        (b"a: 1\n---\na: 2\n", "is not valid YAML"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_file_that_is_no_configuration(tmp_path, capsys, content, message):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    assert main([str(path)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert str(path) in said
    assert said.count("\n") == 1


def test_a_byte_order_mark_and_anchors_are_fine(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: &one {b: 1}\nc: *one\nd: {<<: *one, b: 2}\n")
    assert read_yaml(path, "configuration") == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 2}}
    read_config(path)


def test_a_few_lines_that_stand_for_billions_of_values_are_refused():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(TenasError, match=f"there are more than {MOST_VALUES:,} values"):
        load_config(parse_yaml("\n".join(lines)))
    with pytest.raises(TenasError, match="or a value contains itself"):
        load_config(parse_yaml("runs: &r {a: *r}"))


def test_numbers_with_an_exponent_are_numbers_everywhere():
    """YAML 1.1 takes 1e3 for a text: in a configuration, in --set, for a limit."""
    run = DIGITS | {"retraining": DIGITS["retraining"] | {"epochs": "1e1", "learning_rate": "1e-1"}, "limits": {}}
    run |= {"search": {"measures": {"linear_regions": {"count": "1e3"}}}}
    found = load_config(TINY | {"shards": "1e0", "runs": {"digits": run}})
    settings = found["runs"]["digits"]
    assert (found["shards"], settings["retrain_settings"]["epochs"], settings["retrain_settings"]["learning_rate"]) == (
        1,
        10,
        0.1,
    )
    assert settings["settings"]["rounds"][0]["measures"]["linear_regions"]["count"] == 1000
    assert assigned(["a=1e3", "b=2.5E-1"]) == {"a": 1000.0, "b": 0.25}
    for text in ("1e", "e3", "1 e3", "0x1e3x", "1e3%", "inf", "2"):
        assert number_of(text) == text
    for text, message in (("a={b: 1, b: 2}", "is given twice"), ("a=" + "9" * 5000, "Exceeds the limit")):
        with pytest.raises(TenasError, match=message):
            assigned([text])


# --- names and sizes


def test_names_that_are_one_folder_on_some_disks_are_refused():
    for value in (
        TINY | {"runs": {"a": DIGITS, "A": DIGITS}},
        TINY | {"datasets": TINY["datasets"] | {"Digits": {"source": "digits"}}},
        WHOLE | {"studies": {"DIGITS": WHOLE["studies"]["s"]}},
    ):
        with pytest.raises(TenasError, match="share a folder"):
            load_config(value)
    for name in ("Claims.JSON", "REPORT.html", "claims"):
        with pytest.raises(TenasError, match="must not be that of a file of the results"):
            load_config(TINY | {"runs": {name: DIGITS}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"search": {"measures": {"ntk_condition_number": {"batch": 10_000, "channels": 4096, "cells": 1000}}}}, "'measures.ntk"),
        ({"search": {"measures": {"linear_regions": {"count": 10_000_000, "blocks": 1, "channels": 4096}}}}, "'measures.linear"),
        ({"retraining": {"channels": 4096, "cells": 1000}}, "'retraining' would take about"),
        ({"retraining": {"batch": 1_000_000, "side": 4096, "channels": 16}}, "'retraining' would take about"),
        (
            {"search": {"measures": {"ntk_condition_number": {"repeats": 10**6}}, "rounds": [CELLS]}},
            "Round 1 would take 100,002,000",
        ),
    ],
    ids=range(5),
)
def test_sizes_that_no_memory_holds_are_refused_before_anything_is_allocated(change, message):
    run = DIGITS | {key: DIGITS[key] | value if isinstance(value, dict) else value for key, value in change.items()}
    with pytest.raises(TenasError, match=message) as error:
        load_config(TINY | {"runs": {"digits": run}})
    assert is_sentence(str(error.value))


def test_a_search_of_sizes_that_no_memory_holds_is_refused_before_anything_is_measured(tmp_path, capsys):
    changed = ["--set", *(f"measures.ntk_condition_number.{size}" for size in ("batch=10000", "channels=4096", "cells=1000"))]
    prepare({"source": "digits", "images": 100}, tmp_path / "data")
    assert command(["search", "--data", str(tmp_path / "data"), *changed, "--out", str(tmp_path / "run")]) == 2
    assert "'measures.ntk_condition_number' would take about" in capsys.readouterr().err
    assert not (tmp_path / "run/seed0").exists()


def test_the_sizes_of_the_projects_own_networks_are_far_below():
    assert network_bytes(256, 16, 15, 32) < 2**30
    measures = {"naswot": MEASURES["ntk_condition_number"] | {"inputs": "images", "repeats": 10**6}}
    with pytest.raises(TenasError, match="The study would take 200,000,000 measurements"):
        check_sizes({"cells": 200, "measures": measures}, 32)
    check_sizes({"cells": "all", "measures": measures}, 32)


# --- what Snakemake and DVC ask first


@pytest.mark.workflow
def test_snakemake_stops_at_a_key_that_stands_twice(tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text("shards: 2\nshards: 3\n")
    done = snakemake(tmp_path, "--dry-run")
    assert done.returncode != 0
    assert "config.yaml is not valid YAML: the key 'shards' is given twice in one mapping" in done.stdout
    assert "Traceback" not in done.stdout


def test_what_a_shell_would_run_is_refused(tmp_path):
    """In a process of its own, as DVC starts it."""
    path = tmp_path / "config.yaml"
    run = "{space: nas-bench-201, dataset: digits, preset: pruning, seeds: ['0;touch ran;']}"
    path.write_text(f"datasets: {{digits: {{source: digits}}}}\nruns: {{digits: {run}}}\n")
    done = subprocess.run([sys.executable, "-m", "tenas.config", path], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"tenas: {path}: 'runs.digits.seeds.0' is '0;touch ran;'; it must be a whole number.\n"
