"""The code that a result depends on: import closure of the module that made it, and its digest. No torch.

Imports are read from the source, including those in functions, without importing anything. Digests are of contents: a clone or a
touched file has the same one. The workflow passes them to its rules, because Snakemake does not track a package.
"""

import ast
import importlib.util
from collections.abc import Iterable, Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path

from tenas.errors import TenasError

PACKAGE = Path(__file__).parent
# Folder with Snakefile, workflow, configurations and profiles: within a built package, else its parent folder (setup.py).
PROJECT = PACKAGE / "project" if (PACKAGE / "project").is_dir() else PACKAGE.parent
# Modules that only read, write, check, report or find other modules: they change no result.
NO_RESULT = frozenset(
    {"__init__.py", "api.py", "boundary.py", "cli.py", "code.py", "errors.py", "files.py", "layout.py", "locks.py",
     "machine.py", "progress.py", "provenance.py", "references.py", "settings", "stages/types.py"}
)  # fmt: skip


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


def _module_file(name: str, importer: Path | None = None) -> Path | None:
    """The file of a module of this package, or of a user's module imported by a user's file; None for all others.

    Users' modules are those next to the importing file, and those of the package that contains it.
    """
    top, roots = name.partition(".")[0], [PACKAGE.parent]
    if top != PACKAGE.name:
        roots = []
        if importer is not None and not importer.is_relative_to(PACKAGE):
            roots = [importer.parent, *(folder.parent for folder in importer.parents if folder.name == top)]
    for root in roots:
        base = root.joinpath(*name.split("."))
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.is_file():
                return file
    return None


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
def _imported(file: Path) -> frozenset[Path]:
    names: set[str] = set()
    found: set[Path | None] = set()
    for node in _statements(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.ImportFrom):
            base = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            parts = [base, *(base / alias.name for alias in node.names)]
            found |= {path for part in parts for path in (part.with_suffix(".py"), part / "__init__.py") if path.is_file()}
    found |= {_module_file(name, file) for name in names}
    if not file.is_relative_to(PACKAGE) and (start := file.with_name("__init__.py")).is_file():
        found.add(start)
    return frozenset(path.resolve() for path in found if path is not None)


def closure(modules: Iterable[str]) -> tuple[Path, ...]:
    """Files imported by ``modules`` (``tenas.x.y``, or references, see tenas.references), directly or not, and their own, sorted.

    Modules that change no result (NO_RESULT) are left out. So are modules found by name at run time, such as a space's networks
    and a measure's function: name them in ``modules``. Installed packages do not count: their versions are recorded.
    """
    waiting, found = [], set()
    for module in modules:
        waiting.append((_module_file(module) or source_file(module)).resolve())
    while waiting:
        file = waiting.pop()
        if file not in found and _counts(file):
            found.add(file)
            waiting += _imported(file)
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
