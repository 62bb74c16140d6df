"""Settings: what presets resolve to, and one sentence for whatever is wrong: the key, its value, what is allowed."""

import copy
import math

import pytest
import yaml
from helpers import ROOT
from helpers.engine import DARTS, KAPPA, NAS, ON_A_BATCH, REGIONS
from helpers.runs import TINY

from tenas.config import load_config
from tenas.errors import TenasError
from tenas.files import write_json
from tenas.settings import read_settings, read_study, read_yaml, retrain_settings, schedule, search_settings, study_settings
from tenas.settings.base import merged
from tenas.settings.search import assigned, check_settings, find_round, with_changes

CELLS = {"kind": "cells", "sample": 20, "keep": 4}


def config(**changes: object) -> dict:
    return copy.deepcopy(TINY) | changes


def run(**changes: object) -> dict:
    value = config()
    value["runs"]["digits"] |= changes
    return value


def named(name: object) -> dict:
    return config(runs={name: TINY["runs"]["digits"]})


def kappa(**changes: object) -> dict:
    return run(search={"measures": {KAPPA: changes}})


def regions(**changes: object) -> dict:
    return run(search={"measures": {REGIONS: changes}})


# --- numbers, booleans, names


def test_whole_floats_become_integers():
    """YAML's 8.0 and JSON's 2.0: one rule for every key that is a whole number."""
    value = run(
        seeds=[0.0, 1],
        search={
            "prune": 1.0, "decimals": 3.0,
            "measures": {KAPPA: {"batch": 8.0, "repeats": 2.0, "channels": 1.0}, REGIONS: {"count": 300.0, "blocks": 3.0}},
        },
        retraining={"epochs": 2.0, "batch": 64.0, "channels": 4.0},
    ) | {"shards": 2.0, "threads": {"score": 3.0}}  # fmt: skip
    value["datasets"]["digits"] |= {"images": 100.0, "side": 16.0}
    found = load_config(value)
    settings = found["runs"]["digits"]["settings"]["rounds"][0]
    integers = [
        found["shards"], found["threads"]["score"], *found["runs"]["digits"]["seeds"], settings["prune"], settings["decimals"],
        settings["measures"][KAPPA]["batch"], settings["measures"][KAPPA]["repeats"], settings["measures"][REGIONS]["count"],
        found["datasets"]["digits"]["images"], found["datasets"]["digits"]["side"],
        found["runs"]["digits"]["retrain_settings"]["epochs"], found["runs"]["digits"]["retrain_settings"]["batch"],
    ]  # fmt: skip
    assert all(type(number) is int for number in integers)
    assert integers == [2, 3, 0, 1, 1, 3, 8, 2, 300, 100, 16, 2, 64]


WHOLE = [
    (lambda v: config(shards=v), "config: 'shards' is"),
    (lambda v: config(threads={"score": v}), "'threads.score' is"),
    (lambda v: run(seeds=[v]), "'runs.digits.seeds.0' is"),
    (lambda v: config(datasets={"digits": {"source": "digits", "side": v}}), "'datasets.digits.side' is"),
    (lambda v: kappa(batch=v), f"run 'digits': preset pruning with the run's changes: round 1: 'measures.{KAPPA}.batch' is"),
    (lambda v: regions(count=v), f"'measures.{REGIONS}.count' is"),
    (lambda v: run(search={"prune": v}), "'prune' is"),
    (lambda v: run(search={"rounds": [CELLS | {"keep": v}]}), "round 1: 'keep' is"),
    (lambda v: run(retraining={"epochs": v}), "'epochs' is"),
    (lambda v: config(table_search={"seeds": v}), "'table_search.seeds' is"),
]


@pytest.mark.parametrize(("made", "words"), WHOLE, ids=[words.split("'")[-2] for _, words in WHOLE])
@pytest.mark.parametrize("value", [2.5, True, False, "2", math.nan, math.inf, -math.inf, [2], {"a": 2}], ids=repr)
def test_what_is_no_whole_number_is_refused(made, words, value):
    with pytest.raises(TenasError) as error:
        load_config(made(value))
    said = str(error.value)
    assert words in said
    assert said.endswith("it must be a whole number.")
    assert repr(value) in said


REAL = [
    (lambda v: run(retraining={"learning_rate": v}), "'learning_rate' is"),
    (lambda v: run(retraining={"weight_decay": v}), "'weight_decay' is"),
    (lambda v: run(limits={"flops": v}), "'limits.flops' is"),
    (lambda v: run(limits={"latency": {"table": "t", "column": "c", "most": v}}), "'limits.latency.most' is"),
]


@pytest.mark.parametrize(("made", "words"), REAL, ids=[words for _, words in REAL])
@pytest.mark.parametrize("value", [True, math.nan, math.inf, [1], {}], ids=repr)
def test_what_is_no_finite_number_is_refused(made, words, value):
    with pytest.raises(TenasError) as error:
        load_config(made(value))
    assert words in str(error.value)
    assert str(error.value).endswith("it must be a finite number.")


@pytest.mark.parametrize(
    "made", [lambda v: kappa(redraw=v), lambda v: run(retraining={"flip": v}), lambda v: run(retraining={"compile": v})]
)
@pytest.mark.parametrize("value", ["yes", "true", 1, 0, 1.0, [True]], ids=repr)
def test_only_true_and_false_are_booleans(made, value):
    with pytest.raises(TenasError, match="it must be true or false"):
        load_config(made(value))


@pytest.mark.parametrize(
    "name",
    [2024, 1.5, False, None, "a\n", "\na", "x" * 101, "a b", "a/b", "..", ".", "", "-a", "_a", "ä", "a;b", "$(a)"],
    ids=repr,
)
def test_names_that_cannot_be_a_folder_of_the_results_are_refused(name):
    for value in (named(name), config(datasets={name: {"source": "digits"}})):
        with pytest.raises(TenasError, match=r"has the name .*; it must be (a text|at most 100 letters)"):
            load_config(value)


@pytest.mark.parametrize("name", ["claims.json", "claims", "claims.md", "table_search.csv", "report.html"])
def test_names_of_files_of_the_results_are_taken(name):
    with pytest.raises(TenasError, match=f"'runs' has the name '{name}'; it must not be that of a file of the results"):
        load_config(named(name))


@pytest.mark.parametrize("name", ["2024", "no", "a.b-c_d", "A", "x" * 100, "claimsX"])
def test_other_names_are_fine(name):
    assert list(load_config(named(name))["runs"]) == [name]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (config(colour=1), "config: unknown key 'colour' in the top level; known: shards, device, threads"),
        (config(**{"2": 1}), "unknown key '2' in the top level"),
        (run(epochs=3), "unknown key 'epochs' in 'runs.digits'; known: space, dataset, preset"),
        (kappa(colour=3), f"unknown key 'colour' in 'measures.{KAPPA}'; known: repeats, weights"),
        (run(retraining={"colour_jitter": {"hues": 1}}), "unknown key 'hues' in 'colour_jitter'; known: brightness"),
        (run(search={"rounds": [CELLS | {"sampel": 3}]}), "round 1: unknown key 'sampel' in the top level; known: kind, sample"),
        (run(limits={"weight": 3}), "unknown key 'weight' in 'limits'; known: parameters, flops, latency"),
        (config(device="gpu"), "'device' is 'gpu'; allowed: auto, cpu, cuda."),
        (kappa(weights="he"), f"'measures.{KAPPA}.weights' is 'he'; allowed: kaiming_fan_in, kaiming_fan_out, pytorch, normal."),
        (run(search={"change": "cube"}), "'change' is 'cube'; allowed: log, relative, absolute."),
        (run(search={"change": None}), "'change' is None; allowed: log, relative, absolute."),
        (run(search={"aggregate": "mean"}), "'aggregate' is 'mean'; allowed: rank_sum, log_rank_sum."),
        (run(search={"order": "by_edge"}), "'order' is 'by_edge'; allowed: together, edge_by_edge."),
        (run(trainings="some"), "'trainings' is 'some'; allowed: real, table, table:COLUMN, none."),
        (run(trainings="table:"), "'trainings' is 'table:'; allowed: real, table, table:COLUMN, none."),
        (run(search={"prune": 0}), "'prune' is 0; it must be at least 1."),
        (run(search={"decimals": 400}), "'decimals' is 400; it must be at most 15."),
        (run(seeds=[2**32]), "'runs.digits.seeds.0' is 4294967296; it must be at most 4294967295."),
        (run(seeds=[-1]), "'runs.digits.seeds.0' is -1; it must be at least 0."),
        (run(seeds=["0;touch x;"]), "'runs.digits.seeds.0' is '0;touch x;'; it must be a whole number."),
        (run(seeds=[3, 4, 3.0]), "'runs.digits.seeds': 3 is listed twice."),
        (run(seeds=[]), "'runs.digits.seeds' has 0 entries; it must have at least 1."),
        (run(seeds=0), "'runs.digits.seeds' is 0; it must be an array (list)."),
        (run(search={"exclude": ["none", "none"]}), "'exclude': 'none' is listed twice."),
        (run(search={"exclude": "none"}), "'exclude' is 'none'; it must be an array (list)."),
        (run(search={"exclude": ["conv"]}), "Unknown operator of nas-bench-201 'conv'; known: none"),
        (regions(blocks=4000), f"'measures.{REGIONS}': 'blocks' is 4000; it must be at most 'count', which is 3000."),
        (kappa(batch=10**18), "it must be at most 10000."),
        (kappa(channels=10**9), "it must be at most 4096."),
        (kappa(cells=10**9), "it must be at most 1000."),
        (run(retraining={"channels": 10**9}), "'channels' is 1000000000; it must be at most 4096."),
        (run(retraining={"learning_rate": 0}), "'learning_rate' is 0; it must be above 0."),
        (run(retraining={"momentum": 1}), "'momentum' is 1; it must be below 1."),
        (run(retraining={"nesterov": True, "momentum": 0}), "'nesterov' needs a 'momentum' above 0."),
        (run(retraining={"resized_crop": 0.5, "crop_padding": 2}), "only one of 'resized_crop' and 'crop_padding'"),
        (config(datasets={"digits": {"source": "npz"}}), "data set 'digits': A data set of the source 'npz' needs the key"),
        (config(datasets={"digits": {"source": "digits", "images": 1}}), "'datasets.digits.images' is 1; it must be at least 2."),
        (config(datasets={"digits": {"source": "npz", "path": "im{1}.npz"}}), "'datasets.digits.path' is 'im{1}.npz'; the"),
        (config(benchmark={"nas-bench-201": "t{a}.csv"}), "'benchmark.nas-bench-201' is 't{a}.csv'; the workflow takes no file"),
        (config(datasets={"digits": {}}), "the key 'source' is missing in 'datasets.digits'."),
        (config(datasets={}), "'datasets' has 0 entries; it must have at least 1."),
        (config(datasets=5), "'datasets' is 5; it must be a mapping."),
        (config(runs={"digits": None}), "'runs.digits' is None; it must be a mapping."),
        (config(benchmark={"nas-bench": "x.csv"}), "'benchmark': Unknown space 'nas-bench'; known: nas-bench-201"),
        (config(benchmark={"nas-bench-201": ""}), "'benchmark.nas-bench-201' is ''; it must not be empty."),
        (config(benchmark={"nas-bench-201": 5}), "'benchmark.nas-bench-201' is 5; it must be a text."),
        (config(benchmark={"darts": "builtin"}), "'benchmark': "),
        (run(preset=5), "'runs.digits.preset' is 5; it must be a text."),
        (run(search={"rounds": 5}), "'rounds' is 5; it must be an array (list)."),
        (run(search={"rounds": [5]}), "round 1 is 5; it must be a mapping with the key 'kind'."),
        (run(search={"rounds": [{"sample": 3}]}), "round 1: 'kind' is None; allowed: operators, edges, cells, training."),
        (run(search={"rounds": {"1": 5}}), "round 1 is 5; it must be a mapping of keys to values."),
        (run(search={"rounds": {"4": {}}}), "'rounds' has no round '4'; the preset has rounds 1 to 2."),
        (run(search={"rounds": [{"kind": "operators", "edge": ["cell", 9]}]}), "no such cell type and edge"),
        (run(search={"rounds": [{"kind": "operators", "edge": "a"}]}), "round 1: 'edge' is 'a'; it must be an array (list)."),
        (run(search={"rounds": [{"kind": "operators", "measures": {KAPPA: 5}}]}), f"'measures.{KAPPA}' is 5; it must be a"),
        (run(search={"rounds": [{"kind": "operators", "measures": 5}]}), "'measures' is 5; it must be a mapping, or an array"),
        (run(search={"measures": {KAPPA: None, REGIONS: None}}), "'measures' names no measure."),
        (run(search={"measures": {"linear_region": None}}), "'measures': Unknown measure 'linear_region'"),
        (run(search={"rounds": [{"kind": "operators", "measures": [KAPPA, KAPPA]}]}), "'measures' names a measure twice"),
        (run(search={"measures": {"kappa": {}}}), "unknown key in 'measures': Unknown measure 'kappa'; known: ntk"),
        (run(search={"measures": {KAPPA: 5}}), f"'measures.{KAPPA}' is 5; it must be a mapping."),
        (run(search={"rounds": [CELLS | {"sample": "no/such.csv"}]}), "no/such.csv cannot be read"),
        (run(search={"rounds": [CELLS | {"sample": 0}]}), "'sample' is 0; it must be at least 1."),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_one_sentence(value, message):
    with pytest.raises(TenasError) as error:
        load_config(value)
    said = str(error.value)
    assert message in said
    assert said.startswith("config: ")
    assert "\n" not in said
    assert said.endswith(".")
    assert not said.endswith("..")


def test_whatever_stands_at_the_top_is_a_sentence():
    for value in (5, None, [1], "text"):
        with pytest.raises(TenasError, match=r"the top level is .* it must be a mapping"):
            check_settings(value, "search")
        with pytest.raises(TenasError, match=r"the top level is .* it must be a mapping"):
            study_settings(value, "study")


def test_yaml_with_a_key_twice_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("runs:\n  a: {space: x}\n  b: {space: y}\n  a: {space: z}\n")
    with pytest.raises(TenasError, match="the key 'a' is given twice in one mapping"):
        read_yaml(path, "configuration")
    path.write_text("a: 1\nb: {c: 1, c: 2}\n")
    with pytest.raises(TenasError, match=r"the key 'c' is given twice .* line 2"):
        read_yaml(path, "configuration")
    path.write_text("? [1, 2]\n: 3\n")
    with pytest.raises(TenasError, match="is not valid YAML"):
        read_yaml(path, "configuration")


def test_yaml_merges_still_work(tmp_path):
    """A key of one's own over a merged one is no key twice."""
    path = tmp_path / "config.yaml"
    path.write_text("base: &base {a: 1, b: {c: 2}}\nother: &other {d: 4}\nmine:\n  <<: [*base, *other]\n  a: 3\n")
    assert read_yaml(path, "configuration")["mine"] == {"a": 3, "b": {"c": 2}, "d": 4}


# --- presets and what they resolve to


@pytest.mark.parametrize("preset", ["pruning", "paper", "released"])
@pytest.mark.parametrize("space", [NAS, DARTS], ids=lambda space: space.name)
def test_a_flat_preset_resolves_to_the_rounds_of_te_nas(preset, space):
    """Every round has the preset's own keys, and there are as many as TE-NAS's schedule has."""
    given = yaml.safe_load((ROOT / f"config/presets/{preset}.yaml").read_text())
    resolved = search_settings(space, preset)
    rounds = space.rounds(given["exclude"], given["prune"])
    assert schedule(resolved) == rounds
    assert [entry["kind"] for entry in resolved["rounds"]] == [round.stage for round in rounds]
    assert (resolved["exclude"], resolved["limits"]) == (given["exclude"], {})
    for entry in resolved["rounds"]:
        assert {key: entry[key] for key in ("change", "ranks")} == {key: given[key] for key in ("change", "ranks")}
        assert entry["decimals"] == given.get("decimals")
        assert entry["aggregate"] == "rank_sum"
        assert list(entry["measures"]) == [KAPPA, REGIONS]
        for name, options in given["measures"].items():
            # A DARTS supernet needs two cells for a reduction cell to stand in it.
            expected = options | {"cells": max(options.get("cells", 1), space.least_cells)}
            assert entry["measures"][name] == {"inputs": "images"} | expected
    assert check_settings(resolved, "search") == resolved


@pytest.mark.parametrize(
    ("space", "protocol", "size"),
    [
        (NAS, None, (16, 5)),
        (DARTS, None, (16, 8)),
        (NAS, {"channels": 8, "cells": 1}, (8, 1)),
        (DARTS, {"channels": 12, "cells": 3}, (12, 3)),
    ],
)
def test_what_is_measured_is_as_large_as_what_is_trained_up_to_what_can_be_measured(space, protocol, size):
    """With the default preset: the size of the run's retraining, else of the space's own networks, written down in numbers."""
    retraining = protocol and retrain_settings("digits", protocol)
    resolved = search_settings(space, "default", retraining=retraining)
    for entry in resolved["rounds"]:
        for name, measure in entry.get("measures", {}).items():
            if name not in (KAPPA, REGIONS):
                assert (measure["channels"], measure["cells"]) == size
            elif name == KAPPA:
                assert (measure["channels"], measure["cells"]) == (3, size[1])
    assert check_settings(resolved, "search") == resolved


@pytest.mark.parametrize(("space", "trials"), [(NAS, [24, 18, 12]), (DARTS, [196, 168, 140, 112, 84, 56, 24])])
def test_the_trials_of_te_nas_are_as_ever(space, trials):
    assert [round.trials for round in schedule(search_settings(space, "pruning"))] == trials


def test_changes_of_a_flat_preset():
    resolved = search_settings("nas-bench-201", "pruning", {"prune": 3, "measures": {KAPPA: {"repeats": 2}, REGIONS: None}})
    assert [(round.trials, round.prune) for round in schedule(resolved)] == [(24, 3)]
    assert [list(entry["measures"]) for entry in resolved["rounds"]] == [[KAPPA]]
    assert resolved["rounds"][0]["measures"][KAPPA]["repeats"] == 2
    assert resolved["rounds"][0]["measures"][KAPPA]["batch"] == 16


def test_what_trials_share_is_said_only_where_they_do_not():
    """Settings that were recorded before there were these keys are those of today."""
    for preset in ("pruning", "released", "paper"):
        plain = search_settings("darts", preset)
        assert not {"images", "own_weights"} & {key for entry in plain["rounds"] for key in entry}
        assert search_settings("darts", preset, {"images": "shared", "own_weights": []}) == plain
    own = search_settings("darts", "released", {"images": "own", "own_weights": ["linear_regions"]})
    assert {(entry["images"], *entry["own_weights"]) for entry in own["rounds"]} == {("own", "linear_regions")}
    assert check_settings(own, "again") == own
    shared = [{k: v for k, v in entry.items() if k not in ("images", "own_weights")} for entry in own["rounds"]]
    assert shared == search_settings("darts", "released")["rounds"]
    for changes, message in (
        ({"own_weights": ["linear_regions"]}, "names 'linear_regions', which needs 'images: own'"),
        ({"images": "own", "own_weights": ["naswot"]}, "names 'naswot', which is not among its measures"),
        ({"images": "each"}, "'images' is 'each'; allowed: shared, own"),
    ):
        with pytest.raises(TenasError, match=message):
            search_settings("darts", "released", changes)


def test_edge_by_edge_settles_each_edge_in_a_round():
    resolved = search_settings("nas-bench-201", "pruning", {"order": "edge_by_edge"})
    rounds = schedule(resolved)
    assert [(round.stage, round.edge, round.trials, round.prune) for round in rounds] == [
        ("operators", ("cell", edge), 4, 3) for edge in range(6)
    ]
    assert check_settings(resolved, "search") == resolved
    resolved = search_settings("darts", "released", {"order": "edge_by_edge"})
    rounds = schedule(resolved)
    assert [round.edge for round in rounds] == [(cell, edge) for cell in DARTS.cell_types for edge in range(14)] + [None]
    assert rounds[-1].stage == "edges"
    assert check_settings(resolved, "search") == resolved


def test_a_few_rounds_of_operators_before_cells():
    rounds = [{"kind": "operators", "times": 2}, CELLS | {"measures": [KAPPA]}, {"kind": "training", "keep": 2}]
    resolved = search_settings("nas-bench-201", "pruning", {"rounds": rounds})
    assert [(r.stage, r.trials, r.keep) for r in schedule(resolved)] == [
        ("operators", 24, 0), ("operators", 18, 0), ("cells", 20, 4), ("training", 4, 2),
    ]  # fmt: skip
    assert list(resolved["rounds"][2]["measures"]) == [KAPPA]
    assert resolved["rounds"][2]["aggregate"] == "log_rank_sum"
    assert resolved["rounds"][0]["aggregate"] == "rank_sum"
    assert find_round(resolved, 3) == schedule(resolved)[2]
    with pytest.raises(TenasError, match="There is no round 5; this search has rounds 1 to 4"):
        find_round(resolved, 5)


def test_all_cells_of_what_is_left():
    rounds = [{"kind": "operators", "times": 2}, CELLS | {"sample": "all"}]
    resolved = search_settings("nas-bench-201", "pruning", {"rounds": rounds})
    assert schedule(resolved)[-1].trials == 2**6
    for times in (5, 6):
        rounds = [{"kind": "operators", "times": times}, CELLS | {"sample": "all"}]
        assert (
            schedule(search_settings("darts", "pruning", {"rounds": rounds}))[-1].trials
            == (1 * 3 * 6 * 10 * (7 - times) ** 8) ** 2
        )
    everything = search_settings("nas-bench-201", "pruning", {"exclude": [], "rounds": [CELLS | {"sample": "all"}]})
    assert schedule(everything)[-1].trials == 15_625


def test_a_list_of_cells_is_counted_when_the_settings_are_resolved(tmp_path):
    """The schedule is known from the settings alone: no job but that of the sample has to have the file."""
    path = tmp_path / "own.csv"
    path.write_text("arch\n" + "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|\n" * 7)
    resolved = search_settings("nas-bench-201", "pruning", {"rounds": [CELLS | {"sample": str(path)}]})
    path.unlink()
    assert schedule(resolved)[0].trials == 7
    assert check_settings(resolved, "search") == resolved
    del resolved["rounds"][0]["listed"]
    with pytest.raises(TenasError, match="Round 1 has a list of cells, but not the key 'listed'"):
        check_settings(resolved, "search")
    path.write_text("arch\n" * 3)
    with pytest.raises(TenasError, match="Round 1 draws 2 cells and cannot keep 4"):
        search_settings("nas-bench-201", "pruning", {"rounds": [CELLS | {"sample": str(path)}]})


def test_a_preset_aggregates_all_rounds_alike_unless_they_say_otherwise():
    rounds = [{"kind": "operators", "times": 1}, CELLS, {"kind": "cells", "keep": 2, "aggregate": "rank_sum"}]
    resolved = search_settings("nas-bench-201", "pruning", {"rounds": rounds, "aggregate": "log_rank_sum"})
    assert [entry["aggregate"] for entry in resolved["rounds"]] == ["log_rank_sum", "log_rank_sum", "rank_sum"]


def test_changes_of_rounds_by_their_number():
    rounds = [CELLS | {"measures": {KAPPA: {"repeats": 1}}}, {"kind": "cells", "keep": 3, "measures": {KAPPA: {"repeats": 4}}}]
    preset = {"exclude": ["none"], "rounds": rounds}
    changes = assigned(["rounds.2.keep=2", f"rounds.1.measures.{KAPPA}.repeats=2", "rounds.1.sample=30"])
    found = with_changes(preset, changes, "preset")
    assert found["rounds"] == [
        {"kind": "cells", "sample": 30, "keep": 4, "measures": {KAPPA: {"repeats": 2}}},
        {"kind": "cells", "keep": 2, "measures": {KAPPA: {"repeats": 4}}},
    ]
    assert preset["rounds"] == rounds
    # Without rounds of its own a preset has TE-NAS's.
    assert with_changes({}, {"rounds": {1: {"prune": 2}}}, "p")["rounds"] == [
        {"kind": "operators", "prune": 2},
        {"kind": "edges"},
    ]
    assert with_changes(preset, {"rounds": [{"kind": "training"}]}, "p")["rounds"] == [{"kind": "training"}]
    for number in ("9" * 5000, 10**5000, "3", "0", "-1", "1.0", "²", None, (1,)):
        with pytest.raises(TenasError, match=r"p: 'rounds' has no round .*; the preset has rounds 1 to 2"):
            with_changes(preset, {"rounds": {number: {"keep": 2}}}, "p")
    for wrong in ([5], 5, "abc", [[1]], {"a": 1}):
        with pytest.raises(TenasError, match=r"p: 'rounds' of the preset is .*; it must be a list of mappings"):
            with_changes({"rounds": wrong}, {"rounds": {1: {"keep": 2}}}, "p")


def test_assignments_are_yaml():
    found = assigned(["a=1", "b.c=0.5e6", "b.d=[x, 2]", "e=", "f=true", "g=60%", "h=1e-3", "i=a=b", "j=null"])
    assert found == {
        "a": 1, "b": {"c": 500_000.0, "d": ["x", 2]}, "e": None, "f": True, "g": "60%", "h": 0.001, "i": "a=b", "j": None,
    }  # fmt: skip
    for texts, message in (
        (["a"], "is no change of a setting; expected KEY=VALUE"),
        (["=1"], "expected KEY=VALUE"),
        (["a..b=1"], "expected KEY=VALUE"),
        (["a=[1"], r"The value of 'a=\[1' is not valid YAML"),
        (["a=1", "a.b=2"], "changes a key below one that another change sets to a value"),
        (["a.b=1", "a.b=2"], r"'a\.b' is set twice: to 1 and to 2"),
        ([f"a=0x{'f' * 5000}"], "a number has thousands of digits"),
        (["a=010"], "'010' is another number in YAML 1.1 than it seems"),
        (["a=-0600_000"], "'-0600_000' is another number in YAML 1.1 than it seems"),
        (["a=1:30"], "'1:30' is another number in YAML 1.1 than it seems"),
        (["a=1:30.5"], "'1:30.5' is another number in YAML 1.1 than it seems"),
        (["a=!!bool x"], "is not valid YAML"),
        (["a=!!int ''"], "is not valid YAML"),
        (["a=!!timestamp x"], "is not valid YAML"),
    ):
        with pytest.raises(TenasError, match=message):
            assigned(texts)


def test_numbers_that_are_no_numbers_stay_texts():
    """float() knows words that YAML does not: infinity is no value that any key could have."""
    for text in ("nan", "inf", "infinity", "e5", "1e"):
        assert assigned([f"a={text}"]) == {"a": text}


def test_merged_does_not_change_what_it_merges():
    base, changes = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 5}, "e": {"f": 1}}
    before = copy.deepcopy((base, changes))
    assert merged(base, changes) == {"a": {"b": 5, "c": 2}, "d": 3, "e": {"f": 1}}
    assert (base, changes) == before


# --- rounds that follow from each other

TRAINING = {"kind": "training"}
MORE = {"kind": "cells", "keep": 2}


@pytest.mark.parametrize(
    ("rounds", "message"),
    [
        ([CELLS, {"kind": "operators"}], "their order must be operators, edges, cells, training"),
        ([CELLS, TRAINING, MORE], "their order must be operators, edges, cells, training"),
        ([TRAINING], "A round of trainings needs a round of cells before it"),
        ([{"kind": "operators"}, TRAINING], "A round of trainings needs a round of cells before it"),
        ([MORE], "Round 1 of cells needs the key 'sample'"),
        ([CELLS, MORE | {"sample": 3}], "Round 2 of cells cannot have the key 'sample'"),
        ([CELLS | {"keep": 21}], "Round 1 draws 20 cells and cannot keep 21"),
        ([{"kind": "operators", "times": 1}], "The rounds leave a choice"),
        ([{"kind": "operators", "edge": ["cell", 2]}], "The rounds leave a choice"),
        ([{"kind": "edges"}], "'rounds' has no round|leaves nothing to search"),
    ],
)  # fmt: skip
def test_rounds_that_do_not_follow_from_each_other_are_refused(rounds, message):
    with pytest.raises(TenasError, match=message):
        search_settings("nas-bench-201", "pruning", {"rounds": rounds})


def test_edges_are_pruned_once_each_has_one_operator():
    with pytest.raises(TenasError, match="Round 2 of edges needs rounds before it that leave one operator on each edge"):
        search_settings("darts", "pruning", {"rounds": [{"kind": "operators", "times": 1}, {"kind": "edges"}, CELLS]})
    rounds = [{"kind": "operators"}, {"kind": "edges"}, CELLS | {"sample": "all"}]
    assert schedule(search_settings("darts", "pruning", {"rounds": rounds}))[-1].trials == 1


def test_a_darts_search_without_the_round_of_edges_leaves_a_choice():
    with pytest.raises(TenasError, match="The rounds leave a choice"):
        search_settings("darts", "pruning", {"rounds": [{"kind": "operators"}]})
    assert search_settings("darts", "pruning", {"rounds": [{"kind": "operators"}, CELLS]})


def test_everything_excluded_leaves_nothing_to_search():
    with pytest.raises(TenasError, match="'exclude' leaves nothing to search"):
        search_settings("nas-bench-201", "pruning", {"exclude": list(NAS.operators[1:])})
    with pytest.raises(TenasError, match="no operator on edge"):
        search_settings("nas-bench-201", "pruning", {"exclude": list(NAS.operators)})


def test_a_measure_that_can_be_negative_has_no_logarithm_of_a_change():
    measures = {"measures": {"naswot": ON_A_BATCH, KAPPA: None, REGIONS: None}}
    with pytest.raises(TenasError, match="naswot can be negative and has no logarithm"):
        search_settings("nas-bench-201", "pruning", measures)
    search_settings("nas-bench-201", "pruning", measures | {"change": "absolute"})
    # Cells are ranked, not compared with a supernet.
    search_settings("nas-bench-201", "pruning", measures | {"rounds": [CELLS]})


# --- trainings


def trained(trainings: str | None = None, **more: object) -> dict:
    rounds = [CELLS, TRAINING | {"keep": 2}]
    return search_settings("nas-bench-201", "pruning", {"rounds": rounds}, trainings=trainings, **more)


def test_what_a_round_of_trainings_does():
    real = trained()["rounds"][1]
    assert real["column"] is None
    assert (real["training"]["epochs"], real["training"]["channels"], real["training"]["cells"]) == (12, 16, 5)
    assert real["training"]["validation"] > 0
    table = trained("table:cifar10_valid_e12")["rounds"][1]
    assert (table["column"], table["training"]) == ("cifar10_valid_e12", {})
    assert [entry["kind"] for entry in trained("none")["rounds"]] == ["cells"]
    known = trained("table", datasets=("mine", "cifar10"))["rounds"][1]["column"]
    assert known == NAS.short_trainings["cifar10"]
    with pytest.raises(TenasError, match="has short trainings on this data set is not known: say table:COLUMN"):
        trained("table", datasets=("mine", "digits"))


def test_short_trainings_are_the_runs_retraining_with_fewer_epochs():
    protocol = retrain_settings("digits", {"channels": 6})
    rounds = [CELLS, TRAINING | {"training": {"epochs": 3, "validation": 0.25}}]
    resolved = search_settings("nas-bench-201", "pruning", {"rounds": rounds}, retraining=protocol)
    assert resolved["rounds"][1]["training"] == protocol | {"epochs": 3, "validation": 0.25}
    assert resolved["network"]["channels"] == 6
    rounds = [CELLS, TRAINING | {"training": {"validation": 0}}]
    with pytest.raises(TenasError, match="held-out images choose the cells"):
        search_settings("nas-bench-201", "pruning", {"rounds": rounds})
    rounds = [CELLS, TRAINING | {"training": {"epoch": 3}}]
    with pytest.raises(TenasError, match=r"round 2: unknown key 'epoch' in 'training'"):
        search_settings("nas-bench-201", "pruning", {"rounds": rounds})


# --- files


def test_settings_that_were_edited_are_checked_again(tmp_path):
    resolved = trained()
    path = tmp_path / "search.json"
    write_json(path, resolved)
    assert read_settings(path) == resolved
    for edit, message in (
        (lambda v: v["rounds"][0].update(keep=0), "search.json: round 1: 'keep' is 0; it must be at least 1"),
        (lambda v: v["rounds"][0].update(keep=50), "cannot keep 50"),
        (lambda v: v["rounds"][0].pop("keep"), "the key 'keep' is missing in the top level"),
        (lambda v: v["rounds"].reverse(), "their order must be"),
        (lambda v: v.update(space="nowhere"), "Unknown space 'nowhere'"),
        (lambda v: v["rounds"].append(7), "'rounds.2' is 7|round 3 is 7"),
    ):
        value = copy.deepcopy(resolved)
        edit(value)
        write_json(path, value)
        with pytest.raises(TenasError, match=message):
            read_settings(path)
    write_json(tmp_path / "study.json", {"space": "nas-bench-201", "dataset": "x", "cells": 9, "measures": {KAPPA: ON_A_BATCH}})
    with pytest.raises(TenasError, match=r"study\.json: 'cells' is 9; it must be at least 10"):
        read_study(tmp_path / "study.json")


def test_cells_of_a_study():
    def cells(value: object) -> object:
        return study_settings({"space": "nas-bench-201", "dataset": "x", "cells": value, "measures": {KAPPA: ON_A_BATCH}}, "s")[
            "cells"
        ]

    assert (cells(10), cells(12.0), cells("all")) == (10, 12, "all")
    for value in (9, 10.5, "some", None, True, [10]):
        with pytest.raises(TenasError, match="s: 'cells' is"):
            cells(value)


def test_two_measures_of_one_name_are_refused(tmp_path):
    (tmp_path / "own.py").write_text(f"from tenas.measures import Measure\nOWN = Measure('{KAPPA}', print)\n")
    changes = {"measures": {f"{tmp_path}/own.py:OWN": ON_A_BATCH}}
    with pytest.raises(TenasError, match=f"two measures named '{KAPPA}'"):
        search_settings("nas-bench-201", "pruning", changes)


def test_a_preset_is_a_name_or_a_file(tmp_path, monkeypatch):
    with pytest.raises(TenasError, match="Unknown search preset 'fast'; known: default"):
        search_settings("nas-bench-201", "fast")
    path = tmp_path / "mine.yaml"
    path.write_text("[1]\n")
    with pytest.raises(TenasError, match=r"mine\.yaml is not a mapping of keys to values"):
        search_settings("nas-bench-201", str(path))
    with pytest.raises(TenasError, match=r"nothing\.yaml cannot be read"):
        search_settings("nas-bench-201", str(tmp_path / "nothing.yaml"))
    # One in the working directory's config goes before the package's own.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config/presets").mkdir(parents=True)
    own = yaml.safe_load((ROOT / "config/presets/released.yaml").read_text()) | {"prune": 2}
    (tmp_path / "config/presets/pruning.yaml").write_text(yaml.safe_dump(own))
    assert search_settings("nas-bench-201", "pruning")["rounds"][0]["prune"] == 2
    for escape in ("../presets/default", "/etc/passwd", "a/b", ""):
        with pytest.raises(TenasError, match="Unknown search preset"):
            search_settings("nas-bench-201", escape)
