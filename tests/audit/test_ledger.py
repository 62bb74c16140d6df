"""The ledger of an audit, rule by rule: who is right where hashes differ, what is rounding, what is a fault."""

from pathlib import Path

import pytest

from tenas.audit.ledger import Ledger, alike, listed, mapping
from tenas.errors import TenasError
from tenas.files import format_csv, json_text, sha256
from tenas.provenance import sealed


@pytest.fixture
def file(tmp_path) -> Path:
    (tmp_path / "file").write_text("content")
    return tmp_path / "file"


# --- files and their faults


def test_a_fault_is_told_once_and_without_its_full_stop(file):
    ledger = Ledger()
    for what in ("is odd.", "is odd", "is odd.", "is even"):
        ledger.fault(file, what)
    assert ledger.faults == {file: ["is odd", "is even"]}
    ledger.note("one")
    ledger.note("one")
    assert ledger.notes == ["one"]
    assert not ledger.sound(file)
    assert ledger.sound(file.with_name("other"))


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), AttributeError("x"), KeyError("x"), TypeError("x"), ValueError("x")])
def test_what_damage_raises_is_a_fault(file, error):
    ledger = Ledger()
    with ledger.damage(file):
        raise error
    assert ledger.faults[file][0].startswith("is damaged: it holds something other than expected (")
    with ledger.damage(file, "goes wrong"):
        raise TenasError("Because.")
    assert ledger.faults[file][1] == "goes wrong: Because"
    with pytest.raises(RuntimeError), ledger.damage(file):
        raise RuntimeError


def test_files_are_counted_if_they_are_there_and_hashed_once(file):
    ledger, missing, left_out = Ledger(), file.with_name("missing"), file.with_name("left out")
    assert ledger.hash(file) == sha256(file)
    file.write_text("changed meanwhile")
    assert ledger.hash(file) != sha256(file)
    assert ledger.hash(missing) is None
    assert ledger.hash(missing) is None
    assert ledger.faults == {missing: ["cannot be read (No such file or directory)"]}
    assert ledger.count == 1
    ledger.listed = {left_out: "digest"}
    assert ledger.by_list == set()
    assert ledger.hash(left_out) == "digest"
    assert ledger.by_list == {left_out}
    assert ledger.count == 1


def test_json_in_another_layout_is_a_fault_and_still_read(file):
    ledger = Ledger()
    file.write_text(json_text({"a": 1}))
    assert ledger.json(file, "record") == {"a": 1}
    assert ledger.sound(file)
    file.write_text('{"a": 1}')
    assert ledger.json(file, "record") == {"a": 1}
    assert ledger.faults.pop(file) == ["is not laid out as it was written"]
    for damage in ("[1]", "{", "[" * 5000):
        file.write_text(damage)
        assert ledger.json(file, "record") == {}
        assert ledger.faults.pop(file)[0].startswith("is damaged: The record")
    assert ledger.json(file.with_name("missing"), "record") == {}


# --- tables

ROWS = [{"name": "a", "value": 0.1, "count": 3}, {"name": "b", "value": float("nan"), "count": 4}]


def verdict(file: Path, text: str) -> str:
    """What becomes of a table that should have ROWS."""
    ledger = Ledger()
    file.write_text(text)
    ledger.recorded(file, "another", file.with_name("record"))
    ledger.table(file, ("name", "value", "count"), ROWS, "is another")
    ledger.close()
    said = {what for faults in ledger.faults.values() for what in faults}
    if any("is another" in what for what in said):
        return "fault"
    # One that was made again byte by byte is right, whatever a record says of it.
    certain = set(ledger.faults) == {file.with_name("record")}
    return "the same" if certain else "rounding" if ledger.notes else "?"


def test_a_table_is_the_same_or_rounded_or_another(file):
    text = format_csv(("name", "value", "count"), ROWS)
    assert verdict(file, text) == "the same"
    assert verdict(file, text.replace("0.1", "0.10000000000000002")) == "rounding"
    assert verdict(file, text.replace("0.1", "0.1000000001")) == "rounding"
    assert verdict(file, text.replace("nan", "-nan")) == "fault"
    for other in (
        text.replace("0.1", "0.10000001"),
        text.replace("0.1", "1"),
        text.replace("3", "3.0"),
        text.replace("4", "5"),
        text.replace("a", "c"),
        text.replace("nan", "0.5"),
        text.replace("nan", "e"),
        text[:-1],
        text + "b,nan,4\n",
        text.replace(",3", ""),
    ):
        assert verdict(file, other) == "fault", other


@pytest.mark.parametrize(
    ("made", "stands", "fault"),
    [("none", "nine", True), ("1e-05", "1.0000000000000001e-05", False), ("1e-05", "1.1e-05", True), ("0.5", "x.5", True)],
)
def test_numbers_may_be_rounded_and_texts_may_not_differ(file, made, stands, fault):
    ledger = Ledger()
    file.write_text(f"cell\n{stands}\n")
    ledger.table(file, ("cell",), [{"cell": made}], "is another")
    assert (ledger.faults == {file: ["is another"]}) == fault
    assert bool(ledger.notes) != fault


# --- who is right


@pytest.mark.parametrize(
    ("like", "unlike", "certain", "blamed"),
    [
        (2, 1, False, "record"),
        (1, 2, False, "file"),
        (1, 1, False, "both"),
        (0, 1, False, "file"),
        (0, 2, True, "record"),
        (1, 0, False, "none"),
    ],
)
def test_the_majority_of_records_is_right_and_a_draw_blames_both(file, like, unlike, certain, blamed):
    ledger = Ledger()
    records = [file.with_name(f"record{number}") for number in range(like + unlike)]
    for number, record in enumerate(records):
        ledger.recorded(file, sha256(file) if number < like else "another", record)
    if certain:
        ledger.certain(file)
    assert ledger.sound(file) == (not unlike)
    ledger.close()
    of_file = file in ledger.faults
    of_records = {record for record in records if record in ledger.faults}
    assert of_file == (blamed in ("file", "both"))
    assert of_records == (set(records[like:]) if blamed in ("record", "both") else set())
    ledger.close()
    assert all(len(faults) == 1 for faults in ledger.faults.values())


def test_a_missing_file_is_no_other_file(file):
    ledger = Ledger()
    ledger.recorded(file.with_name("missing"), "digest", file)
    ledger.close()
    assert list(ledger.faults) == [file.with_name("missing")]


# --- records


def test_records_have_their_own_hash_and_equal_values_of_one_type(file):
    ledger = Ledger()
    ledger.sealed(file, sealed({"a": 1}))
    ledger.equal(file, "n", 1, 1)
    assert ledger.sound(file)
    ledger.sealed(file, sealed({"a": 1}) | {"a": 2})
    ledger.sealed(file, {"a": 1})
    ledger.equal(file, "n", 1, True)
    ledger.equal(file, "n", "x" * 300, 1)
    other, typed, long = ledger.faults[file]
    assert other == "is not the record that was written: its own hash differs"
    assert typed == "has 1 for 'n', where true belongs"
    assert long == f"has \"{'x' * 196}... for 'n', where 1 belongs"


def test_another_version_of_the_code_is_a_note_and_none_a_fault(file):
    ledger, present, former = Ledger(), "a" * 64, "b" * 64
    for digest in (present, former, former):
        ledger.code(file, "scores", digest, present)
    assert ledger.sound(file)
    ledger.close()
    assert ledger.notes == ["2 files of scores made by another version of the code (bbbbbbbbbbbb)."]
    for digest in (None, 3, "b" * 63, "g" * 64):
        ledger = Ledger()
        ledger.code(file, "scores", digest, present)
        assert ledger.faults == {file: ["does not record the code that made it"]}
    ledger = Ledger()
    ledger.code(file, "scores", former, present)
    ledger.close()
    assert ledger.notes == ["1 file of scores made by another version of the code (bbbbbbbbbbbb)."]


def test_several_kinds_of_processor_are_a_note():
    ledger = Ledger()
    ledger.processor({"processor": "P", "instructions": "AVX2"})
    ledger.processor({"processor": "P", "instructions": "AVX2"})
    ledger.processor({})
    ledger.close()
    assert ledger.notes == []
    ledger.processor({"processor": "P", "instructions": "AVX2", "gpu": "G"})
    ledger.close()
    assert ledger.notes == ["The scores are of 2 kinds of processor, whose last bits may differ: G (1); P, AVX2 (2)."]


# --- values


def test_values_are_alike_up_to_rounding():
    assert mapping([1]) == mapping(None) == {}
    assert mapping({"a": 1}) == {"a": 1}
    assert alike({"a": [0.1, {"b": 2}], "more": 1}, {"a": [0.1 + 1e-12, {"b": 2}]})
    assert alike(float("nan"), float("nan"))
    assert alike(float("inf"), float("inf"))
    for found, expected in (
        (0.1, 0.1001), (1, 1.0), ([1], [1, 1]), ({"a": 1}, {"a": 2}), (True, 1), ("a", "b"), (float("nan"), 1.0)
    ):  # fmt: skip
        assert not alike(found, expected)


def test_three_files_are_listed():
    paths = [Path(name) for name in "abcd"]
    assert listed(paths[:3]) == "a, b, c"
    assert listed(paths) == "a, b, c and 1 more"
