"""Digests of code: over what a stage runs, by content; and what each of them does not hold."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.engine import DARTS, KAPPA, NAS, REGIONS

from tenas.code import NO_RESULT, PACKAGE, _statements, closure, code_digest
from tenas.search.made_by import made_by, measuring_code, ranking_code, space_modules, stage_code
from tenas.settings import search_settings
from tenas.spaces import BUILT_IN

STAGES = sorted(path.stem for path in (PACKAGE / "stages").glob("*.py") if path.stem not in ("__init__", "types"))


def names(*modules: str) -> set[str]:
    return {file.relative_to(PACKAGE).as_posix() for file in closure(modules)}


def measuring(*measures: str, space=NAS) -> set[str]:
    """The files that a score job's digest is over."""
    from tenas.measures import get_measure

    modules = [module for name in measures for module in get_measure(name).modules]
    return names("tenas.stages.score", *space_modules(space, networks=True), *modules)


@pytest.mark.parametrize("stage", STAGES)
def test_a_closure_is_whole_and_has_no_part_that_only_reports(stage):
    found = names(f"tenas.stages.{stage}")
    assert f"stages/{stage}.py" in found
    assert not {name for name in found if {name.partition("/")[0], name} & NO_RESULT}
    # What a file of it imports is in it.
    assert names(*(f"tenas.{name.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}" for name in found)) == found


def test_decisions_do_not_follow_from_drawings_networks_or_measures():
    for stage in ("prune", "shortlist", "finalists", "genotype", "mask", "sample"):
        found = names(f"tenas.stages.{stage}", *space_modules(NAS))
        assert not {name for name in found if name.startswith(("report/", "networks/", "retrain/"))}, stage
        assert {name for name in found if name.startswith("measures/")} <= {"measures/catalogue.py", "measures/threads.py"}, stage
        assert "spaces/darts.py" not in found
    for stage in ("score", "prune", "shortlist", "genotype", "retrain", "export"):
        assert "report/drawing.py" not in names(f"tenas.stages.{stage}")
    assert "report/drawing.py" in names("tenas.stages.draw")


def test_a_score_job_follows_from_its_own_measures_and_space():
    assert {"measures/ntk.py", "measures/kernel/plan.py", "networks/nas_bench_201.py", "networks/single.py"} <= measuring(KAPPA)
    assert {"measures/baselines.py", "measures/regions.py", "networks/darts.py", "networks/chain.py"}.isdisjoint(measuring(KAPPA))
    assert "measures/regions.py" in measuring(REGIONS)
    assert "measures/baselines.py" in measuring("snip")
    assert "networks/darts.py" in measuring(KAPPA, space=DARTS)
    assert "networks/nas_bench_201.py" not in measuring(KAPPA, space=DARTS)


def test_every_space_names_what_builds_its_networks():
    for name, reference in BUILT_IN.items():
        module = reference.partition(":")[0]
        assert module in space_modules(NAS if name == "nas-bench-201" else DARTS)
        assert not {found for found in names(module) if found.startswith("networks/")}


def test_digests_of_stages_differ_and_are_stable():
    settings = search_settings("nas-bench-201", "pruning")
    digests = [stage_code(stage, settings) for stage in STAGES]
    assert len(set(digests)) == len(STAGES)
    assert digests == [stage_code(stage, settings) for stage in STAGES]
    entry = settings["rounds"][0]
    assert measuring_code("score", settings, entry) != measuring_code("score", settings, {"measures": {KAPPA: {}}})
    # The order of measures and what else stands in their settings are no code.
    turned = {"measures": dict(reversed(entry["measures"].items()))}
    assert measuring_code("score", settings, entry) == measuring_code("score", settings, turned)
    # A round that ranks by built-in measures asks the catalogue alone.
    assert ranking_code("prune", settings, entry) == stage_code("prune", settings)
    assert len(code_digest()) == 64


# --- a copy of the package that is edited

DIGESTS = """
import json, sys
from tenas.code import code_digest
from tenas.search.made_by import measuring_code, ranking_code, stage_code
settings = {"space": "nas-bench-201"}
kappa, regions = {"measures": {"ntk_condition_number": {}}}, {"measures": {"linear_regions": {}}}
print(json.dumps({
    **{stage: stage_code(stage, settings) for stage in ("mask", "sample", "genotype", "draw", "retrain", "summary")},
    "score kappa": measuring_code("score", settings, kappa), "score regions": measuring_code("score", settings, regions),
    "prune": ranking_code("prune", settings, kappa), "shortlist": ranking_code("shortlist", settings, kappa),
    "all": code_digest(),
}))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(PACKAGE, folder / "tenas", ignore=shutil.ignore_patterns("__pycache__", "tables"))
    return folder


def digests(folder: Path) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", DIGESTS], cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


RANKED = {"prune", "shortlist"}
SCORED = {"score kappa", "score regions"}


@pytest.mark.parametrize(
    ("file", "old", "new", "changed"),
    [
        ("report/drawing.py", "\n", "\n# A colour.\n", {"draw"}),
        ("measures/baselines.py", "\n", "\n# Another word.\n", set()),
        ("measures/regions.py", "\n", "\n# Another word.\n", {"score regions"}),
        ("measures/kernel/plan.py", "\n", "\n# Another word.\n", {"score kappa"}),
        ("networks/single.py", "\n", "\n# Another word.\n", SCORED),
        ("networks/darts.py", "\n", "\n# Another word.\n", set()),
        ("search/prune.py", "\n", "\n# Another word.\n", {"prune", "sample"}),
        ("search/shortlist.py", "\n", "\n# Another word.\n", {"shortlist", "sample", "genotype"}),
        ("cli.py", "\n", "\n# Another word.\n", set()),
        ("provenance.py", "\n", "\n# Another word.\n", set()),
        ("settings/search.py", "\n", "\n# Another word.\n", set()),
    ],
)
@pytest.mark.slow
def test_an_edit_changes_the_digests_of_what_runs_it(copy, file, old, new, changed):
    path, before = copy / "tenas" / file, digests(copy)
    text = path.read_text()
    try:
        path.write_text(text.replace(old, new, 1))
        after = digests(copy)
    finally:
        path.write_text(text)
    assert {name for name in before if before[name] != after[name]} == changed | {"all"}
    assert digests(copy) == before


def test_turning_a_measures_sign_changes_the_digest_of_decisions(copy):
    path, before = copy / "tenas/measures/catalogue.py", digests(copy)
    text = path.read_text()
    assert 'ntk:ntk_condition_number", lower_is_better=True' in text
    try:
        path.write_text(text.replace('ntk:ntk_condition_number", lower_is_better=True', 'ntk:ntk_condition_number"', 1))
        after = digests(copy)
    finally:
        path.write_text(text)
    changed = {name for name in before if before[name] != after[name]}
    assert changed >= RANKED | SCORED
    assert changed.isdisjoint({"draw", "summary"})


def test_a_digest_is_of_contents_and_not_of_times_or_places(copy, tmp_path):
    before = digests(copy)
    for path in (copy / "tenas").rglob("*.py"):
        os.utime(path, (1, 1))
    shutil.copytree(copy / "tenas", tmp_path / "tenas")
    assert digests(copy) == digests(tmp_path) == before
    (tmp_path / "tenas/spaces/unused.py").write_text("x = 1\n")
    after = digests(tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"all"}


def test_a_decision_names_what_it_follows_from(tmp_path):
    """No time and no place, so the same decision is the same bytes wherever it was taken."""
    settings = search_settings("nas-bench-201", "pruning")
    records = []
    for folder in ("here", "there"):
        path = tmp_path / folder / "round1/mask.json"
        path.parent.mkdir(parents=True)
        path.write_text("{}")
        records.append(made_by("prune", settings, [path]))
    assert records[0] == records[1]
    assert list(records[0]["inputs"]) == ["round1/mask.json"]
    assert records[0]["code_sha256"] == stage_code("prune", settings)


def test_an_import_is_found_wherever_it_stands():
    """As ``ast.walk`` finds them, in every file of the package, and in every statement that contains others."""
    nested = """
import a
if a:
    import b
elif a.b:
    from b import c
else:
    import d
try:
    import e
except a:
    import f
else:
    import g
finally:
    import h
try:
    import i
except* a:
    import j
for x in a:
    import k
else:
    import l
while a:
    import m
with a:
    import n
match a:
    case 1:
        import o
    case _:
        import p
class A:
    import q
    async def f(self):
        async with a:
            import r
        async for x in a:
            import s
        g = lambda: [x if a else x for x in a]
        def g():
            import t
"""
    modules = [ast.parse(path.read_bytes()) for path in PACKAGE.rglob("*.py")]
    for module in (ast.parse(nested), *modules):
        found, walked = (
            [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
            for nodes in (_statements(module), ast.walk(module))
        )
        assert {id(node) for node in found} == {id(node) for node in walked}
        assert len(found) == len(walked)
    assert sum(isinstance(node, ast.Import | ast.ImportFrom) for node in _statements(ast.parse(nested))) == 20


def test_a_module_that_is_not_there_is_no_part_of_the_package():
    assert ROOT / "tenas" == PACKAGE
    from tenas.errors import TenasError

    with pytest.raises(TenasError, match=r"cannot be found|is not a Python file"):
        closure(["tenas.stages.nothing"])


CLOSURE = """
import json, sys
from tenas.code import PACKAGE, closure
print(json.dumps([str(path) for path in closure([sys.argv[1]]) if not path.is_relative_to(PACKAGE)]))
"""


def users_closure(module: str, folder: Path, *searched: Path) -> set[Path]:
    """Users' files in the closure of a module, in a process that is started in ``folder`` with a PYTHONPATH of ``searched``."""
    path = os.pathsep.join(map(str, (*searched, PACKAGE.parent)))
    command = [sys.executable, "-P", "-c", CLOSURE, module]
    done = subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(map(Path, json.loads(done.stdout)))


def test_what_users_files_import_is_followed_as_python_finds_it(tmp_path):
    """Beside the file that is named, by a package or by a link in between; in a folder of PYTHONPATH; not among libraries."""
    own, elsewhere, library, last = (tmp_path / name for name in ("own", "elsewhere", "library", "last"))
    for folder in (own / "lib", elsewhere, library / "of_library-1.0.dist-info", last):
        folder.mkdir(parents=True)
    imports = ("lib.a", "linked", "of_path", "of_library", "statistics", "numpy")
    files = {
        own / "own.py": "".join(f"import {name}\n" for name in imports),
        own / "lib/a.py": "from common import SCALE\n",
        own / "common.py": "SCALE = 2\n",
        own / "third.py": "VALUE = 3\n",
        tmp_path / "linked.py": "import third\n",
        elsewhere / "of_path.py": "import of_path_too\n",
        elsewhere / "of_path_too.py": "",
    }
    for file, text in files.items():
        file.write_text(text)
    # What `pip install --target` puts into a folder is installed, and so are modules that are found before a user's.
    for file in (library / "of_library.py", last / "of_library.py"):
        file.write_text("")
    (own / "linked.py").symlink_to(tmp_path / "linked.py")
    (own / "python2.py").write_text("print 2\n")
    assert users_closure("own.py:X", own, elsewhere, library, last) == files.keys()
    # A module is found as the file that a link leads to is imported.
    (tmp_path / "link").mkdir()
    (tmp_path / "link/own.py").symlink_to(own / "own.py")
    assert users_closure("link/own.py:X", tmp_path, elsewhere, library, last) == files.keys()
    assert users_closure("own/own.py:X", tmp_path, elsewhere, library) == files.keys()


def test_a_module_of_a_package_that_imports_one_beside_it_is_followed(tmp_path):
    (tmp_path / "mine").mkdir()
    files = {"mine/__init__.py": "", "mine/measure.py": "import shared\n", "shared.py": ""}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert users_closure("mine.measure:M", tmp_path, tmp_path) == {tmp_path / name for name in files}
