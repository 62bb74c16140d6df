"""Objects by reference: the same one by every path, in every process; and a sentence for what cannot be imported."""

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.engine import DARTS, NAS, chain_space

from tenas.code import is_reference, source_file
from tenas.errors import TenasError
from tenas.measures import Measure, get_measure
from tenas.references import check_seen, load_object, reference_of, seen_files
from tenas.spaces import BUILT_IN, Mask, get_space, load_genotype

OWN = """
from tenas.measures import Measure
from tenas.spaces import CellSpace
from beside import skip

def conv(inputs, outputs, stride):
    from torch import nn
    return nn.Conv2d(inputs, outputs, 3, stride, 1)

SPACE = CellSpace("own", {"skip": skip, "conv": conv}, nodes=3)
MEASURE = Measure("late", lambda network, images: later())

def later():
    import much_later
    return much_later.VALUE
"""
BESIDE = """
def skip(inputs, outputs, stride):
    from torch import nn
    return nn.Identity()
"""


@pytest.fixture
def own(tmp_path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "beside.py").write_text(BESIDE)
    (tmp_path / "much_later.py").write_text("VALUE = 12.5\n")
    return tmp_path / "own.py"


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("a:b", True),
        ("a.b:C", True),
        ("x/y.py:Z", True),
        ("C:\\x.py:Z", True),
        ("naswot", False),
        ("", False),
        (None, False),
        (5, False),
    ],
)
def test_what_is_a_reference(name, is_one):
    assert is_reference(name) == is_one


def test_a_file_is_one_module_whatever_path_leads_to_it(own, monkeypatch):
    (own.parent / "link.py").symlink_to(own)
    (own.parent / "folder").mkdir()
    monkeypatch.chdir(own.parent)
    first = load_object("own.py:SPACE", "space")
    for path in ("./own.py", str(own), "folder/../own.py", "link.py"):
        assert load_object(f"{path}:SPACE", "space") is first
    monkeypatch.chdir(own.parent / "folder")
    assert load_object("../own.py:SPACE", "space") is first
    assert load_object("tenas.spaces.darts:SPACE", "space") is DARTS


def test_neighbours_are_imported_when_a_function_is_called_too(own):
    assert get_measure(f"{own}:MEASURE").resolved(None, None) == 12.5


def test_two_files_of_one_name_are_two_modules(own):
    other = own.parent / "elsewhere" / "own.py"
    other.parent.mkdir()
    other.write_text("VALUE = 2\n")
    own.write_text("VALUE = 1\n")
    assert [load_object(f"{path}:VALUE", "value") for path in (own, other, own)] == [1, 2, 1]


def in_another_process(parts: tuple) -> tuple:
    """What came through the pickle, and whether it is the object that this process imports itself."""
    space, mask, genotype, reference = parts
    return space, mask, genotype, space is get_space(reference) is mask.space is genotype.space


@pytest.mark.parametrize("name", ["nas-bench-201", "darts", "own"])
def test_spaces_keep_their_identity_in_other_processes(own, name):
    """As a job's subjects go to its workers and back: masks and genotypes of one space, which is there once in each process."""
    reference = f"{own}:SPACE" if name == "own" else name
    space = get_space(reference)
    mask = space.full_mask()
    genotype = next(space.genotypes(mask))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        again, masked, found, same_there = pool.submit(in_another_process, (space, mask, genotype, reference)).result()
    assert same_there
    assert again is space
    assert (masked, found) == (mask, genotype)
    assert masked.space is space
    assert load_genotype(found, space) is found


def test_a_pickled_space_is_its_reference(own):
    space = get_space(f"{own}:SPACE")
    assert len(pickle.dumps(space)) < 300
    assert pickle.loads(pickle.dumps(Mask(space, space.full_mask().active))).space is space
    assert {name: get_space(name).reference for name in BUILT_IN} == {name: name for name in BUILT_IN}
    assert NAS is get_space("nas-bench-201") is load_object(BUILT_IN["nas-bench-201"], "space")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "which is not a file"),
        ("SPACE = 1 +", r"cannot be imported \(SyntaxError: .*\)\."),
        ("import nothing_of_that_name", r"cannot be imported \(ModuleNotFoundError: No module named 'nothing_of_that_name'\)\."),
        ("raise ValueError('two\\nlines')", r"cannot be imported \(ValueError: two lines\)\."),
        ("from " + 40 * "." + " import a", r"cannot be imported \(ImportError"),
        ("import sys; sys.exit(3)", r"cannot be imported \(SystemExit: 3\)\."),
        ("from tenas.spaces import CellSpace\nSPACE = CellSpace('x', {})", "The space x needs at least two operators"),
        ("x = 1", r"'.*own\.py:SPACE' does not exist: .*own\.py has x\."),
        ("_hidden = 1", r"does not exist: .* has nothing\."),
        ("SPACE = 5", "is a int, not a space"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_a_sentence(tmp_path, text, message):
    path = tmp_path / "own.py"
    if text is not None:
        path.write_text(text.replace("\\n", "\n") if "two" not in text else text)
    with pytest.raises(TenasError, match=message) as error:
        get_space(f"{path}:SPACE")
    assert "\n" not in str(error.value)


def test_a_file_that_was_mended_is_imported_again(tmp_path):
    """What failed is not kept."""
    path = tmp_path / "own.py"
    path.write_text("import nothing_of_that_name")
    with pytest.raises(TenasError, match="cannot be imported"):
        load_object(f"{path}:VALUE", "value")
    path.write_text("VALUE = 4")
    assert load_object(f"{path}:VALUE", "value") == 4


def test_a_file_that_has_changed_since_is_refused(own):
    """This process still has the old code; its digest would be that of the new one, and other processes would import that."""
    load_object(f"{own}:SPACE", "space")
    own.touch()
    load_object(f"{own}:SPACE", "space")
    seen = seen_files()
    (own.parent / "beside.py").write_text(BESIDE + "# another\n")
    with pytest.raises(TenasError, match=r"beside\.py has changed since it was imported: run the command again, or restart"):
        load_object(f"{own}:MEASURE", "measure")
    (own.parent / "beside.py").write_text(BESIDE)
    load_object(f"{own}:MEASURE", "measure")
    check_seen(seen)
    with pytest.raises(TenasError, match=r"own\.py has changed"):
        check_seen({own.resolve(): "0" * 64})


def test_two_modules_of_one_name_beside_two_files_are_refused(tmp_path):
    """The second file would get the first one's."""
    for folder, value in (("a", 1), ("b", 2), ("c", 1)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a_name_of_both.py").write_text(f"VALUE = {value}\n")
        (tmp_path / folder / "json.py").write_text("VALUE = 3\n")
        (tmp_path / folder / "user.py").write_text("from a_name_of_both import VALUE\n")
    assert load_object(f"{tmp_path}/a/user.py:VALUE", "value") == 1
    with pytest.raises(TenasError, match=r"b/user\.py imports 'a_name_of_both' from its folder, but .*a/a_name_of_both\.py has"):
        load_object(f"{tmp_path}/b/user.py:VALUE", "value")
    assert load_object(f"{tmp_path}/c/user.py:VALUE", "value") == 1  # the same code
    (tmp_path / "a/second.py").write_text("from json import VALUE\n")
    with pytest.raises(TenasError, match="imports 'json' from its folder, but"):
        load_object(f"{tmp_path}/a/second.py:VALUE", "value")


def test_two_folders_of_pythonpath_may_have_the_same_name(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "src" / f"package_{name}").mkdir(parents=True)
        (tmp_path / name / "src" / f"package_{name}/__init__.py").write_text("VALUE = 1\n")
        (tmp_path / name / "own.py").write_text(f"from package_{name} import VALUE\n")
    searched = os.pathsep.join([str(tmp_path / "one/src"), str(tmp_path / "two/src"), str(ROOT)])
    code = "from tenas.references import load_object as l; print(l('one/own.py:VALUE', 'x') + l('two/own.py:VALUE', 'x'))"
    environment = os.environ | {"PYTHONPATH": searched}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("2\n", "")


def test_a_file_from_a_path_of_ones_own_is_named_as_no_part_of_the_digest(own):
    """Results would be taken for current after a change of it."""
    (own.parent / "elsewhere").mkdir()
    (own.parent / "elsewhere" / "far_away.py").write_text("VALUE = 1\n")
    added = f"import sys\nsys.path.insert(0, {str(own.parent / 'elsewhere')!r})\nimport far_away, numpy\n"
    own.write_text(added + OWN)
    with pytest.warns(
        UserWarning, match=r"own\.py has imported \S*/elsewhere/far_away\.py from a folder where tenas does not look"
    ):
        load_object(f"{own}:SPACE", "space")
    with warnings.catch_warnings(action="error"):
        load_object(f"{own}:MEASURE", "measure")


def test_users_code_does_not_change_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "moves.py").write_text("import os\nos.chdir('/')\nVALUE = 1\n")
    assert load_object("moves.py:VALUE", "value") == 1
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize("reference", ["own.py:", ":SPACE", "own.py:a.b", "own.py:not one", "own.py:1a", "a:b:c d"])
def test_what_is_no_reference_is_a_sentence(reference):
    with pytest.raises(TenasError, match=r"is not a reference; expected package\.module:object or path/to/file\.py:object"):
        load_object(reference, "space")


def test_a_module_that_is_not_there_is_a_sentence():
    with pytest.raises(TenasError, match="cannot be imported"):
        load_object("no.such.module:SPACE", "space")
    for name, message in (
        ("no.such.module:SPACE", "cannot be found"),
        ("no_such_module:SPACE", "is not a Python file"),
        ("no/file.py:SPACE", "which does not exist"),
        ("math:pi", "which is not a Python file"),
    ):
        with pytest.raises(TenasError, match=message):
            source_file(name)
    assert source_file("tenas.spaces.darts:SPACE") == ROOT / "tenas/spaces/darts.py"


def test_an_object_that_a_module_holds_has_a_reference(own):
    space = get_space(f"{own}:SPACE")
    found = reference_of(space)
    assert found is not None
    assert load_object(found, "space") is space
    assert reference_of(chain_space()) is None
    assert reference_of(Measure("x", print)) is None


def test_an_object_of_the_package_has_a_reference():
    """In a process of its own: here a test that holds the same object may come first."""
    code = (
        "from tenas.references import reference_of; from tenas.spaces import get_space; print(reference_of(get_space('darts')))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "tenas.spaces.darts:SPACE\n"


def test_the_command_line_takes_references_from_its_own_folder(own):
    """In another process, by a relative path; the error of a wrong one is one sentence."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tenas.cli", "settings", "search"]
    measures = {
        f"{own.name}:MEASURE": {"repeats": 1, "batch": 4, "channels": 1, "cells": 1, "weights": "pytorch", "redraw": True}
    }
    entry = {"kind": "cells", "sample": 4, "keep": 1, "measures": measures}
    given = {"space": "own.py:SPACE", "preset": "mine", "exclude": [], "rounds": [entry]}
    done = subprocess.run([*command, json.dumps(given), "--out", "s.json"], cwd=own.parent, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((own.parent / "s.json").read_text())
    assert found["space"] == "own.py:SPACE"
    assert list(found["rounds"][0]["measures"]) == ["own.py:MEASURE"]
    given["space"] = "other.py:SPACE"
    done = subprocess.run(
        [*command, json.dumps(given), "--out", "s.json"], cwd=own.parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("tenas: The space is expected in other.py, which is not a file")
