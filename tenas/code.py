"""The code that a result depends on: import closure of the module that made it, and its digest. No torch.

Imports are read from the source, including those in functions, without importing anything. Digests are of contents: a clone or a
touched file has the same one. The workflow passes them to its rules, because Snakemake does not track a package.
"""

import ast
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache
from hashlib import sha256
from importlib.machinery import all_suffixes
from pathlib import Path

from tenas.errors import TenasError

PACKAGE = Path(__file__).parent
# Folders of Python and of installed packages.
LIBRARIES = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
# Folder with Snakefile, workflow, configurations and profiles: within a built package, else its parent folder (setup.py).
PROJECT = PACKAGE / "project" if (PACKAGE / "project").is_dir() else PACKAGE.parent
# Modules that only read, write, check, report or find other modules: they change no result.
NO_RESULT = frozenset(
    {"__init__.py", "api.py", "boundary.py", "cli.py", "code.py", "errors.py", "files.py", "layout.py", "locks.py",
     "machine.py", "progress.py", "provenance.py", "references.py", "settings", "stages/types.py"}
)  # fmt: skip
# Not Python's path, in which Snakemake, the way of a start and users' files themselves change folders.
SEARCHED = tuple(os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if os.path.isdir(entry))


def is_reference(name: object) -> bool:
    """Whether ``name`` is a reference and not a built-in name."""
    return isinstance(name, str) and ":" in name


def split_reference(reference: str) -> tuple[str, str]:
    """Module and attribute of a reference. Raises TenasError for another form."""
    module, _, attribute = reference.rpartition(":")
    if not module or not attribute.isidentifier():
        raise TenasError(f"{reference!r} is not a reference; expected package.module:object or path/to/file.py:object.")
    return module, attribute


def source_file(reference: str) -> Path:
    """The file of a reference or of a module, for digests. Raises TenasError if there is none."""
    module_name = split_reference(reference)[0] if is_reference(reference) else reference
    if module_name.endswith(".py"):
        path = Path(module_name)
        if not path.is_file():
            raise TenasError(f"{reference!r} names the file {path}, which does not exist.")
        return path
    try:
        spec = importlib.util.find_spec(module_name)
    except (ImportError, ValueError) as error:
        raise TenasError(f"{reference!r} names the module {module_name}, which cannot be found.") from error
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise TenasError(f"{reference!r} names the module {module_name}, which is not a Python file.")
    return Path(spec.origin)


def _counts(file: Path) -> bool:
    if not file.is_relative_to(PACKAGE):
        return True
    name = file.relative_to(PACKAGE)
    return NO_RESULT.isdisjoint({name.parts[0], name.as_posix()})


def _is_of_python(folder: Path) -> bool:
    return folder in LIBRARIES or folder.name in ("site-packages", "dist-packages", "lib-dynload")


@cache
def _has_libraries(folder: str) -> bool:
    """Whether a folder has installed packages, also by ``pip install --target``, or is Python's own."""
    return _is_of_python(Path(os.path.realpath(folder))) or _is_of_python(Path(folder)) or any(Path(folder).glob("*.dist-info"))


def is_installed(file: Path) -> bool:
    """Whether a file is of Python or of an installed package, whose version records name, and not a user's."""
    folders = Path(os.path.realpath(file)).parents
    # Users' own files may stand beside what pip has installed into a folder, unless that is one of PYTHONPATH.
    return any(_is_of_python(folder) or (str(folder) in SEARCHED and _has_libraries(str(folder))) for folder in folders)


@cache
def _is_hidden(top: str) -> bool:
    """Whether a library hides users' modules of a name: Python finds it before it looks in their folders on PYTHONPATH."""
    if top in sys.builtin_module_names:
        return True
    for folder in SEARCHED:
        base = os.path.join(folder, top)
        if os.path.isdir(base) or any(os.path.isfile(base + suffix) for suffix in all_suffixes()):
            return _has_libraries(folder)
    return False


def _roots(modules: Iterable[str]) -> tuple[Path, ...]:
    """Where imports of users' files are looked for: the folders of named files and of the packages of modules; PYTHONPATH."""
    given = []
    for module in modules:
        name = split_reference(module)[0] if is_reference(module) else module
        # A file is imported with its folder first (tenas.references).
        parents = source_file(module).resolve().parents
        given.append(parents[0] if name.endswith(".py") else parents[min(name.count("."), len(parents) - 1)])
    searched = (Path(folder) for folder in SEARCHED if not _has_libraries(folder))
    return tuple(dict.fromkeys([*(folder for folder in given if not _has_libraries(str(folder))), *searched]))


def _file_of(base: Path) -> Path | None:
    """The file of a module or of a package, by its path without the suffix."""
    # Not Path.is_file, which raises for folders that may not be read.
    found = (file for file in (base.with_name(f"{base.name}.py"), base / "__init__.py") if os.path.isfile(file))
    return next(found, None)


def _module_file(name: str, importer: Path | None = None, roots: tuple[Path, ...] = ()) -> Path | None:
    """The file of a module of this package, or of a user's module imported by a user's file; None for all others.

    Users' modules are those next to the importing file, those of the package that contains it, and those below ``roots``.
    """
    top, folders = name.partition(".")[0], [PACKAGE.parent]
    if top != PACKAGE.name:
        folders = []
        if importer is not None and not importer.is_relative_to(PACKAGE):
            folders = [importer.parent, *(folder.parent for folder in importer.parents if folder.name == top)]
            folders += [folder for folder in roots if str(folder) not in SEARCHED or not _is_hidden(top)]
    found = (_file_of(folder.joinpath(*name.split("."))) for folder in folders)
    return next((file for file in found if file is not None), None)


def _statements(module: ast.Module) -> Iterator[ast.AST]:
    """All statements of a module; ``ast.walk`` passes through ten times as many expressions, in which nothing is imported."""
    waiting: list[ast.AST] = [module]
    while waiting:
        node = waiting.pop()
        yield node
        for name in ("body", "handlers", "orelse", "finalbody", "cases"):
            held = getattr(node, name, ())
            waiting += held if isinstance(held, list) else ()


@cache
def _imported(file: Path, roots: tuple[Path, ...]) -> frozenset[Path]:
    names: set[str] = set()
    found: set[Path | None] = set()
    try:
        module = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError):  # what imports it may do without
        module = ast.Module([], [])
    for node in _statements(module):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        # More dots than folders are for the import itself to refuse.
        elif isinstance(node, ast.ImportFrom) and node.level <= len(file.parents):
            base = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            found |= {_file_of(part) for part in (base, *(base / alias.name for alias in node.names))}
    found |= {_module_file(name, file, roots) for name in names}
    if not file.is_relative_to(PACKAGE) and (start := file.with_name("__init__.py")).is_file():
        found.add(start)
    return frozenset(path for path in found if path is not None)


def closure(modules: Iterable[str]) -> tuple[Path, ...]:
    """Files imported by ``modules`` (``tenas.x.y``, or references, see tenas.references), directly or not, and their own, sorted.

    Modules that change no result (NO_RESULT) are left out. So are modules found by name at run time, such as a space's networks
    and a measure's function: name them in ``modules``. Installed packages do not count: their versions are recorded.
    """
    modules = list(modules)
    waiting = [(_module_file(module) or source_file(module)).resolve() for module in modules]
    roots = _roots(module for module, file in zip(modules, waiting, strict=True) if not file.is_relative_to(PACKAGE))
    looked_at, found = set(), set()
    while waiting:
        # A link is imported where it stands, and what it imports is looked for there.
        file = waiting.pop()
        if file not in looked_at and _counts(file.resolve()):
            looked_at.add(file)
            found.add(file.resolve())
            waiting += _imported(file, () if file.is_relative_to(PACKAGE) else roots)
    return tuple(sorted(found))


def _named(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix() if file.is_relative_to(PACKAGE) else file.name


@cache
def code_digest(*modules: str) -> str:
    """SHA-256 of the ``closure`` of ``modules``, names and contents; of the whole package without ``modules``."""
    files = closure(modules) if modules else tuple(sorted(PACKAGE.rglob("*.py")))
    digest = sha256()
    for file in sorted(files, key=_named):
        digest.update(_named(file).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()
