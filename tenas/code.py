"""Which code a result follows from: the import closure of the module that made it, and its digest. No torch.

Imports are read from the source, wherever they stand in it, so nothing has to be imported to know them. Digests are over
contents: a clone or a touched file has the same one. The workflow passes them to its rules, because Snakemake does not look
into the package itself.
"""

import ast
from collections.abc import Iterable
from functools import cache
from hashlib import sha256
from pathlib import Path

from tenas.references import is_reference, source_file

PACKAGE = Path(__file__).parent
# What reads, writes, checks and reports, and what only finds other modules, changes no result.
NO_RESULT = frozenset(
    {"__init__.py", "api.py", "cli.py", "code.py", "errors.py", "files.py", "layout.py", "locks.py", "progress.py",
     "provenance.py", "references.py", "settings"}
)  # fmt: skip


def _counts(file: Path) -> bool:
    return not file.is_relative_to(PACKAGE) or file.relative_to(PACKAGE).parts[0] not in NO_RESULT


def _module_file(name: str, folder: Path) -> Path | None:
    """The file of a module of this package, or of a module beside a user's own file; None for all others."""
    roots = [PACKAGE.parent] if name.partition(".")[0] == PACKAGE.name else [folder] if folder != PACKAGE.parent else []
    for root in roots:
        base = root.joinpath(*name.split("."))
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.is_file():
                return file
    return None


@cache
def _imported(file: Path) -> frozenset[Path]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    own = PACKAGE.parent if file.is_relative_to(PACKAGE) else file.parent
    return frozenset(found for name in names if (found := _module_file(name, own)) is not None)


def closure(modules: Iterable[str]) -> tuple[Path, ...]:
    """The files that ``modules`` (``tenas.x.y``, or references, see tenas.references) need, themselves among them, sorted.

    Modules without a say in results (NO_RESULT) are left out. So is what a name finds at run time: a space's networks and a
    measure's function, which are modules to be named here.
    """
    waiting, found = [], set()
    for module in modules:
        file = source_file(module).resolve() if is_reference(module) else _module_file(module, PACKAGE.parent)
        if file is None:
            raise ValueError(f"{module} is no module of this package")
        waiting.append(file)
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
    """SHA-256 over the ``closure`` of ``modules``, by name and content; over the whole package without any."""
    files = closure(modules) if modules else tuple(sorted(PACKAGE.rglob("*.py")))
    digest = sha256()
    for file in sorted(files, key=_named):
        digest.update(_named(file).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()
