"""The audit of a small search, sentence by sentence: what it says of each change, and what its trail is made of."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from helpers.runs import copied

from tenas.audit import audit
from tenas.cli import main
from tenas.files import read_json, sha256, write_csv, write_json
from tenas.provenance import sealed
from tenas.settings import search_settings
from tenas.stages.score import score
from tenas.stages.search import search_seed

RUN, SEED = Path("found"), Path("found/seed0")
ONE, TWO = SEED / "round1/scores/1.csv", SEED / "round2/scores/1.csv"
RECORD_OF_TWO = TWO.with_suffix(".json")
RECORD, RANKING, MASK = ONE.with_suffix(".json"), SEED / "round1/ranking.csv", SEED / "round1/mask.json"
SAMPLE, CELLS, SHORTLIST = (SEED / "round2" / name for name in ("sample.csv", "cells.csv", "shortlist.json"))
GENOTYPE, LIMITS = SEED / "genotype.json", RUN / "limits.json"
IMAGES, CARD = Path("data/images.npy"), Path("data/card.json")
SMALL = {"repeats": 2, "batch": 4, "channels": 1, "cells": 1, "weights": "kaiming_fan_in", "redraw": True}
MEASURES = {"ntk_condition_number": SMALL, "synflow": {**SMALL, "repeats": 1}}
PRESET = {
    "exclude": ["none"],
    "rounds": [
        {"kind": "operators", "times": 1, "measures": MEASURES},
        {"kind": "cells", "sample": 6, "keep": 2, "measures": {"naswot": SMALL}},
    ],
}


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> Path:
    """A folder with prepared images and a finished search. To be read, not to be changed."""
    folder = tmp_path_factory.mktemp("searched")
    with chdir(folder):
        Path("tiny.yaml").write_text(yaml.safe_dump(PRESET))
        assert main(["prepare", json.dumps({"source": "digits", "images": 60, "side": 8}), "--out", "data"]) == 0
        settings = search_settings("nas-bench-201", "tiny.yaml", limits={"parameters": "80%"})
        search_seed(settings, Path("data"), 0, RUN, device="cpu")
    return folder


@pytest.fixture
def copy(searched, tmp_path, monkeypatch) -> Path:
    """A copy of the finished search, as the working directory."""
    monkeypatch.chdir(copied(searched, tmp_path))
    return tmp_path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def edit_record(path: Path, **changes: object) -> None:
    """Change entries of a sealed record, and seal it again, as a program would."""
    value = {key: part for key, part in read_json(path, "record").items() if key != "record_sha256"}
    write_json(path, sealed(value | changes))


def edit_rows(path: Path, edit: Callable[[list[dict[str, str]]], list[dict[str, str]]]) -> None:
    """Change the rows of a scores file, and write their hash into its record."""
    rows = rows_of(path)
    write_csv(path, list(rows[0]), edit(rows))
    edit_record(path.with_suffix(".json"), scores_sha256=sha256(path))


def edit_json(path: Path, **changes: object) -> None:
    write_json(path, read_json(path, "file") | changes)


def reversed_shortlist() -> None:
    edit_json(SHORTLIST, cells=read_json(SHORTLIST, "shortlist")["cells"][::-1])


def other_mask() -> None:
    edit_json(MASK, active=read_json(SEED / "round0/mask.json", "mask")["active"])


def other_most() -> None:
    parameters = read_json(LIMITS, "limits")["sums"]["parameters"]
    edit_record(LIMITS, sums={"parameters": parameters | {"most": 10}})


def fewer_inputs() -> None:
    edit_record(RECORD, inputs=dict(list(read_json(RECORD, "record")["inputs"].items())[:-1]))


def other_costs() -> None:
    costs = read_json(RECORD, "record")["costs"]
    edit_record(RECORD, costs=costs | {"synflow": {"measurements": 3, "seconds": 1.0}})


def replace(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new, 1))


ABSENT = "cannot be read (No such file or directory)"
NOT_RANKED = "cannot be ranked: "
OTHER_RANKING, OTHER_MASK = "is not the ranking that its scores lead to", "is not the mask that its ranking leads to"
OTHER_SHORTLIST = "is not the shortlist that its ranking leads to"
OTHER_GENOTYPE = "is not the genotype that the last round leaves"
OTHER_SAMPLE = "does not have the cells that its seed, its limits and what was left before lead to"
INPUTS = '"round0/mask.json", "round1/ranking.csv"'
WITHOUT_LIMITS = f"has [{INPUTS}, \"limits.json\"] for 'inputs', where [{INPUTS}] belongs"
CUT = "a shard is missing or cut off"
COLUMNS = "round,trial,cell,edge,target,source,operator,measure,{},value"
OTHER_COLUMNS = f"The scores file {ONE} has the columns {COLUMNS.format('repeats')}; expected {COLUMNS.format('repeat')}"


def other_costs_than(expected: tuple[int, int], found: tuple[int, int] = (50, 25)) -> str:
    both = (json.dumps(dict(zip(MEASURES, counts, strict=True))) for counts in (found, expected))
    return "has {} for 'costs', where {} belongs".format(*both)


# What is changed -> what is said of each file.
CHANGES: dict[str, tuple[Callable[[], object], dict[Path, list[str]]]] = {
    "a row less": (
        lambda: edit_rows(ONE, lambda rows: rows[:-1]),
        {ONE: ["has 74 rows, where its shard has 75",
               f"{NOT_RANKED}The scores of round 1 lack 1 of 75 measurements, the first of them synflow of trial 24, "
               f"repeat 0: {CUT}"]},
    ),
    "two rows in each other's place": (
        lambda: edit_rows(ONE, lambda rows: [rows[1], rows[0], *rows[2:]]),
        {ONE: ["has trial 0, ntk_condition_number, repeat 1 in line 2, where trial 0, ntk_condition_number, repeat 0 belongs"]},
    ),
    "another value": (lambda: edit_rows(ONE, lambda rows: [rows[0] | {"value": "1e9"}, *rows[1:]]), {RANKING: [OTHER_RANKING]}),
    "an impossible value": (
        lambda: edit_rows(ONE, lambda rows: [rows[0] | {"value": "-1"}, *rows[1:]]),
        {ONE.parent: [f"{NOT_RANKED}The scores file {ONE}, line 2, has the value -1.0; "
                      "ntk_condition_number is never negative and never NaN"]},
    ),
    "another column": (
        lambda: replace(ONE, "repeat", "repeats"),
        {ONE: [f"is damaged: {OTHER_COLUMNS}", f"{NOT_RANKED}{OTHER_COLUMNS}",
               f"is not the file whose SHA-256 is recorded in {RECORD}"]},
    ),
    "another seed": (lambda: edit_record(RECORD, seed=1), {RECORD: ["has 1 for 'seed', where 0 belongs"]}),
    "another round": (lambda: edit_record(RECORD, round=2), {RECORD: ["has 2 for 'round', where 1 belongs"]}),
    "a number that is a text": (lambda: edit_record(RECORD, round="1"), {RECORD: ["has \"1\" for 'round', where 1 belongs"]}),
    "a measurement less": (
        lambda: edit_record(RECORD, measurements=74), {RECORD: ["has 74 for 'measurements', where 75 belongs"]}
    ),
    "a shard of two": (
        lambda: edit_record(RECORD, shard="1/2"),
        {ONE: ["has 75 rows, where its shard has 39",
               "has trial 1, ntk_condition_number, repeat 0 in line 5, where trial 2, ntk_condition_number, repeat 0 belongs",
               f"{NOT_RANKED}The scores file {ONE.with_name('2.csv')} {ABSENT[:14]}: No such file or directory"],
         RECORD: ["has 75 for 'measurements', where 39 belongs",
                  other_costs_than((26, 13))],
         ONE.with_name("2.csv"): [ABSENT], ONE.with_name("2.json"): [ABSENT]},
    ),
    "no shard": (
        lambda: edit_record(RECORD, shard="x"),
        {ONE.parent: ["has no record that says into how many shards the measurements were split"],
         RECORD: ["has \"x\" for 'shard', where \"1/1\" belongs"]},
    ),
    "other settings": (
        lambda: edit_record(RECORD, settings={}), {RECORD: [f"was made with other settings than {RUN / 'search.json'} has"]}
    ),
    "no code": (lambda: edit_record(RECORD, code="0" * 63), {RECORD: ["does not record the code that made it"]}),
    "other costs": (
        other_costs,
        {RECORD: [other_costs_than((50, 25), (50, 3))]},
    ),
    "no costs": (
        lambda: edit_record(RECORD, costs=None),
        {RECORD: ['has {} for \'costs\', where {"ntk_condition_number": 50, "synflow": 25} belongs']},
    ),
    "other inputs": (
        lambda: edit_record(RECORD, inputs=dict.fromkeys(read_json(RECORD, "record")["inputs"], "0" * 64)),
        {CARD: [f"is not the file whose SHA-256 is recorded in {RECORD}"],
         RECORD: [f"has another SHA-256 of {path} than that file has" for path in (IMAGES, CARD, SEED / "round0/mask.json")]},
    ),
    "fewer inputs": (fewer_inputs, {RECORD: ["names other inputs than card.json, images.npy, mask.json"]}),
    "a broken seal": (
        lambda: edit_json(RECORD, wall_seconds=1.5),
        {ONE.parent: [f"{NOT_RANKED}The record of scores {RECORD} is not what was written: its own hash differs. Make it again"],
         RECORD: ["is not the record that was written: its own hash differs"]},
    ),
    "no record": (
        lambda: RECORD.unlink(),
        {ONE.parent: ["has no record that says into how many shards the measurements were split"], RECORD: [ABSENT]},
    ),
    "no scores": (
        lambda: ONE.unlink(),
        {ONE: [ABSENT, f"{NOT_RANKED}The scores file {ONE} cannot be read: No such file or directory"]},
    ),
    "another ranking": (
        lambda: replace(RANKING, ",1,", ",0,"),
        {RANKING: [OTHER_RANKING, f"is not the file whose SHA-256 is recorded in {MASK}"]},
    ),
    "no ranking": (lambda: RANKING.unlink(), {RANKING: [ABSENT]}),
    "another mask": (other_mask, {MASK: [OTHER_MASK]}),
    "a mask of another space": (lambda: edit_json(MASK, space="darts"), {MASK: [OTHER_MASK]}),
    "another layout": (
        lambda: MASK.write_text(json.dumps(read_json(MASK, "mask"))), {MASK: ["is not laid out as it was written"]}
    ),
    "a mask of nobody": (
        lambda: edit_json(MASK, made_by={}),
        {MASK: ["does not record the code that made it",
                'has [] for \'inputs\', where ["round0/mask.json", "round1/ranking.csv", "limits.json"] belongs',
                f"was made with other settings than {RUN / 'search.json'} has"]},
    ),
    "another cell in a sample": (
        lambda: replace(SAMPLE, "nor_conv_3x3", "nor_conv_1x1"),
        {SAMPLE: [OTHER_SAMPLE, f"is not the file whose SHA-256 is recorded in {RECORD_OF_TWO}"],
         TWO: [f"{NOT_RANKED}The scores file {TWO}, line 2, is about another subject than cell 1 of round 2"]},
    ),
    "no sample": (lambda: SAMPLE.unlink(), {SAMPLE: [ABSENT]}),
    "another number in a sample": (
        lambda: replace(SAMPLE, "\n1,", "\nx,"),
        {SAMPLE: [OTHER_SAMPLE, f"is damaged: The cells file {SAMPLE}, line 2, has 'x' instead of a number",
                  f"is not the file whose SHA-256 is recorded in {RECORD_OF_TWO}, {SHORTLIST}"]},
    ),
    "another ranking of cells": (
        lambda: replace(CELLS, ",1,", ",2,"),
        {CELLS: [OTHER_RANKING, f"is not the file whose SHA-256 is recorded in {SHORTLIST}"]},
    ),
    "no ranking of cells": (lambda: CELLS.unlink(), {CELLS: [ABSENT]}),
    "a shortlist from behind": (
        reversed_shortlist,
        {SHORTLIST: [OTHER_SHORTLIST, f"is not the file whose SHA-256 is recorded in {GENOTYPE}"]},
    ),
    "another value of a cell": (
        lambda: edit_rows(TWO, lambda rows: [rows[0] | {"value": "99"}, *rows[1:]]),
        {GENOTYPE: [OTHER_GENOTYPE], SEED / "genotype.svg": ["is not the drawing of its genotype"], CELLS: [OTHER_RANKING],
         SHORTLIST: [OTHER_SHORTLIST]},
    ),
    "a row less of a cell": (
        lambda: edit_rows(TWO, lambda rows: rows[1:]),
        {TWO: ["has 11 rows, where its shard has 12",
               "has cell 1, naswot, repeat 1 in line 2, where cell 1, naswot, repeat 0 belongs",
               f"{NOT_RANKED}The scores of round 2 lack 1 of 12 measurements, the first of them naswot of cell 1, "
               f"repeat 0: {CUT}"]},
    ),
    "another genotype": (
        lambda: edit_json(GENOTYPE, arch="|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"),
        {GENOTYPE: [OTHER_GENOTYPE]},
    ),
    "limits without costs": (
        lambda: edit_record(LIMITS, sums={}),
        {LIMITS: ["is damaged: it holds something other than expected ('parameters')"], MASK: [WITHOUT_LIMITS],
         RANKING: [OTHER_RANKING], SAMPLE: [OTHER_SAMPLE]},
    ),
    "a limit that nothing meets": (
        other_most,
        {LIMITS: ["has other numbers under sums than follow from its settings, costs and table",
                  f"is not the file whose SHA-256 is recorded in {MASK}"],
         MASK: [OTHER_MASK], RANKING: [OTHER_RANKING],
         SAMPLE: ["cannot be drawn again: No cell of nas-bench-201 within the limits was found"]},
    ),
    "no limits": (
        lambda: LIMITS.unlink(),
        {LIMITS: [ABSENT], MASK: [WITHOUT_LIMITS], RANKING: [OTHER_RANKING], SAMPLE: [OTHER_SAMPLE]},
    ),
    "other classes": (
        lambda: edit_record(CARD, classes=9),
        {CARD: [f"is not the file whose SHA-256 is recorded in {RECORD}, {RECORD_OF_TWO}"],
         LIMITS: ["has other numbers under network than follow from its settings, costs and table"]},
    ),
    "no images": (
        lambda: shutil.rmtree("data"), {CARD: [ABSENT], IMAGES: [ABSENT]}
    ),
    "settings of another search": (
        lambda: edit_json(RUN / "search.json", exclude=[]),
        {RUN / "search.json": [f"has other settings than those recorded in {LIMITS}, {SEED}/round0/mask.json, {RECORD} "
                               "and 3 more"],
         SEED / "round0/mask.json": ["is not the supernet that the settings start from"],
         ONE: ["has 75 rows, where its shard has 93",
               f"{NOT_RANKED}The scores file {ONE}, line 5, is about another subject than trial 1 of round 1"],
         RECORD: ["has 75 for 'measurements', where 93 belongs",
                  other_costs_than((62, 31))]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_is_named_where_it_is_and_nowhere_else(copy, name):
    change, expected = CHANGES[name]
    change()
    assert audit(RUN).faults == expected


def test_what_is_no_fault_is_a_note(copy):
    assert audit(RUN).notes == []
    left = ONE.with_name("2.csv")
    left.write_text("x")
    edit_record(RECORD, code="0" * 64)
    found = audit(RUN)
    assert found.faults == {}
    assert found.notes == [
        f"{left} is no part of the scores: an earlier or interrupted run has left it.",
        "1 file of measurements made by another version of the code (000000000000).",
    ]


def lines_of(path: Path, number: str, subject: str) -> str:
    """The lines of a subject in a file of scores, such as ``1.csv:2-4``."""
    found = [line for line, row in enumerate(rows_of(path), start=2) if row[number] == subject]
    assert found == list(range(found[0], found[-1] + 1))
    return f"{path.name}:{found[0]}-{found[-1]}"


def test_the_trail_says_what_the_tables_say(copy):
    """Each line from the tables themselves: means, errors and ranks of the ranking, shares, lines of the scores."""
    trail = audit(RUN).trail
    card, found = read_json(CARD, "card"), read_json(GENOTYPE, "genotype")["arch"]
    most = read_json(LIMITS, "limits")["sums"]["parameters"]["most"]
    expected = [
        f"run {RUN}: nas-bench-201, preset tiny.yaml", f"images data: 60 of digits, SHA-256 {card['sha256']}",
        f"limits {LIMITS}: at most {most:,.0f} parameters", "", "seed 0",
        f"  round 1, 24 trials; measurements in {ONE.parent}: 1.csv (75)",
    ]  # fmt: skip
    for row in rows_of(RANKING):
        if row["pruned"] == "1":
            kappa, synflow = (float(row[f"{name}_change"]) for name in MEASURES)
            expected.append(
                f"    {row['target']}<-{row['source']} loses {row['operator']:<13} share {float(row['pruned_share']):.2f}: "
                f"ntk_condition_number {kappa:+.4g} +- {float(row['ntk_condition_number_se']):.2g} "
                f"(rank {float(row['ntk_condition_number_rank']):g}), "
                f"synflow {synflow:+.4g} (rank {float(row['synflow_rank']):g}); "
                f"rows {lines_of(ONE, 'trial', row['trial'])}, whole {lines_of(ONE, 'trial', '0')}"
            )
    expected.append(f"  round 2, 6 cells, of which it keeps 2; measurements in {TWO.parent}: 1.csv (12)")
    for row in sorted(rows_of(CELLS), key=lambda row: int(row["place"]))[:2]:
        expected.append(
            f"    keeps {row['arch']}: place {row['place']}, share {float(row['kept_share']):.2f}: "
            f"naswot {float(row['naswot_score']):+.4g} +- {float(row['naswot_se']):.2g} (rank {float(row['naswot_rank']):g}); "
            f"rows {lines_of(TWO, 'cell', row['cell'])}"
        )
    assert trail == [*expected, f"  genotype {found}"]
    assert len([line for line in trail if " loses " in line]) == 6


def test_a_sample_from_a_list_is_followed_while_the_list_is_there(copy):
    """Cells in a file of one's own: the audit draws the sample again from it, or says that it cannot."""
    cells = rows_of(SAMPLE)
    write_csv(Path("mine.csv"), ["arch"], [{"arch": row["arch"]} for row in cells])
    rounds = [{"kind": "cells", "sample": "mine.csv", "keep": 2, "measures": {"naswot": SMALL}}]
    Path("listed.yaml").write_text(yaml.safe_dump({"exclude": ["none"], "rounds": rounds}))
    search_seed(search_settings("nas-bench-201", "listed.yaml"), Path("data"), 0, Path("listed"), device="cpu")
    assert audit("listed").faults == {}
    assert audit("listed").notes == []
    Path("mine.csv").unlink()
    found = audit("listed")
    assert found.faults == {}
    assert found.notes == [
        "mine.csv, the list that listed/seed0/round1/sample.csv was made from, is not here: it was not checked."
    ]


def test_shards_are_taken_together_and_looked_at_one_by_one(copy):
    for path in (ONE, RECORD):
        path.unlink()
    shards = [ONE.with_name(f"{number}.csv") for number in (1, 2)]
    for number, path in enumerate(shards, start=1):
        mask = SEED / "round0/mask.json"
        score(
            settings=RUN / "search.json", images=IMAGES, subjects=mask, round=1, seed=0, shard=(number, 2), device="cpu", out=path
        )
    found = audit(RUN)
    assert found.faults == {}
    assert f"  round 1, 24 trials; measurements in {ONE.parent}: 1.csv (39), 2.csv (36)" in found.trail
    for trial in (row["trial"] for row in rows_of(RANKING) if row["pruned"] == "1"):
        (path,) = (path for path in shards if any(row["trial"] == trial for row in rows_of(path)))
        expected = f"rows {lines_of(path, 'trial', trial)}, whole {lines_of(ONE, 'trial', '0')}"
        assert any(line.endswith(expected) for line in found.trail)
    # Without the first record the second says how many there are, and is looked at all the same.
    edit_record(shards[1].with_suffix(".json"), round=2)
    RECORD.unlink()
    found = audit(RUN).faults
    assert found[RECORD] == [ABSENT]
    assert found[shards[1].with_suffix(".json")] == ["has 2 for 'round', where 1 belongs"]
    # Without any record the files are counted.
    shards[1].with_suffix(".json").unlink()
    found = audit(RUN).faults
    assert found[ONE.parent] == ["has no record that says into how many shards the measurements were split"]
    assert {RECORD, shards[1].with_suffix(".json")} <= found.keys()
    # What is missing altogether is one shard.
    for path in shards:
        path.unlink()
    assert audit(RUN).faults[ONE][0] == ABSENT


ONCE = {"repeats": 1, "batch": 4, "channels": 1, "cells": 3, "weights": "kaiming_fan_in", "redraw": True}


@pytest.fixture(scope="module")
def of_two_cells(searched, tmp_path_factory) -> Path:
    """A search of a space with two kinds of cells, by single measurements, with a measure that reads labels."""
    folder = copied(searched, tmp_path_factory.mktemp("two"))
    with chdir(folder):
        rounds = [
            {"kind": "operators", "times": 2, "change": "absolute", "measures": {"snip": ONCE}},
            {"kind": "edges", "change": "absolute", "measures": {"snip": ONCE}},
            {"kind": "cells", "sample": 1, "keep": 1, "measures": {"snip": ONCE, "flops": ONCE}},
        ]
        Path("two.yaml").write_text(yaml.safe_dump({"exclude": [], "rounds": rounds}))
        settings = search_settings(f"{ROOT / 'examples/own_cells.py'}:DARTS_LIKE", "two.yaml")
        search_seed(settings, Path("data"), 0, Path("two"), device="cpu")
    return folder


def test_a_trail_of_two_cells_and_single_measurements(of_two_cells, tmp_path, monkeypatch):
    monkeypatch.chdir(copied(of_two_cells, tmp_path))
    found = audit("two")
    assert (found.faults, found.notes) == ({}, [])
    lost = r"    (normal|reduction) \d<-\d loses \w+ *: snip [+-]\S+ \(rank \S+\); rows 1\.csv:(\d+)-\2, whole 1\.csv:2-2"
    kept = r"    keeps .*: place 1: flops \+\S+ \(rank 1\), snip \+\S+ \(rank 1\); rows 1\.csv:2-3"
    lines = [line for line in found.trail if line.startswith("    ")]
    assert all(re.fullmatch(lost, line) for line in lines[:-1])
    assert {line.split()[0] for line in lines[:-1]} == {"normal", "reduction"}
    assert re.fullmatch(kept, lines[-1])
    # Labels are an input of the measurements.
    Path("data/labels.npy").unlink()
    assert audit("two").faults[Path("data/labels.npy")] == [ABSENT]


def test_a_round_after_faulty_scores_is_judged_by_the_mask_that_was_written(of_two_cells, tmp_path, monkeypatch):
    monkeypatch.chdir(copied(of_two_cells, tmp_path))
    first, second = (Path(f"two/seed0/round{number}") for number in (1, 2))
    (first / "scores/1.csv").unlink()
    found = audit("two").faults
    assert set(found) == {first / "scores/1.csv"}
    # One that leaves nothing to prune does not go with the round after it.
    edit_json(first / "mask.json", active=read_json(Path("two/seed0/round2/mask.json"), "mask")["active"])
    found = audit("two").faults
    assert found[first / "mask.json"][0].startswith("does not go with the round after it: ")
    assert second / "scores/1.csv" not in found
