"""Users' objects by reference: ``package.module:object`` or ``path/to/file.py:object``. No torch.

A reference can replace any name of a space, a measure or a data source. Only the text is passed on: worker processes, cluster
jobs and the audit import the object themselves, and the content of the file is part of the code digest.
"""

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from tenas.code import PACKAGE, SEARCHED, closure, is_installed, source_file, split_reference
from tenas.errors import TenasError

# Prefix of the names of modules imported by the path of their file.
USER_MODULE = "tenas_user_"
# Users' files that this process has imported, or may yet (within functions), with their state and hash then.
_seen: dict[Path, tuple[tuple[int, int], str]] = {}
# Modules next to users' files, by the name under which those import them.
_local: dict[str, Path] = {}


def _state(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_mtime_ns, found.st_size


def _digest(file: Path) -> str:
    return sha256(file.read_bytes()).hexdigest()


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == PACKAGE.name and not module.endswith(".py")


def _look_at(module: str) -> list[Path]:
    """Note the files that a user's module imports, directly or not, and return the new ones.

    Raises TenasError for one that has changed since it was noted.

    A process never imports a file again: its values would be those of the old code, under the digest of the new one.
    """
    if _is_ours(module):
        return []
    files: tuple[Path, ...] = ()
    with suppress(TenasError, OSError, SyntaxError, ValueError, RecursionError):  # the import itself will fail
        files = closure([module])
    new = []
    for file in files:
        if file.is_relative_to(PACKAGE):
            continue
        if file not in _seen:
            _seen[file] = _state(file), _digest(file)
            new.append(file)
        elif _seen[file][0] != _state(file) and _seen[file][1] != _digest(file):
            raise _changed(file)
    return new


def _forget(files: Iterable[Path]) -> None:
    """Take files for not imported: their import has failed, and may be tried again."""
    for file in files:
        _seen.pop(file, None)


def _changed(file: Path) -> TenasError:
    return TenasError(f"{file} has changed since it was imported: run the command again, or restart the notebook's kernel.")


def seen_files() -> dict[Path, str]:
    """Hashes of the users' files that this process has imported."""
    return {file: digest for file, (_, digest) in _seen.items()}


def check_seen(expected: Mapping[Path, str]) -> None:
    """Raise TenasError if this process has imported another version of a file than the one whose ``seen_files`` are given."""
    for file, digest in seen_files().items():
        if expected.get(file, digest) != digest:
            raise _changed(file)


def _check_names(path: Path) -> None:
    """Raise TenasError if a module that a user's file imports from its folder has the name of another one of this process."""
    with suppress(OSError, SyntaxError, ValueError, RecursionError):
        for file in closure([str(path)]):
            # A package's own start is none of its modules.
            if file == path or not file.is_relative_to(path.parent) or file == path.parent / "__init__.py":
                continue
            # Nor is one of a folder of PYTHONPATH below.
            if any(path.parent in (folder := Path(entry)).parents and file.is_relative_to(folder) for entry in SEARCHED):
                continue
            name = file.relative_to(path.parent).parts[0].removesuffix(".py")
            own = path.parent / name if (path.parent / name).is_dir() else path.parent / f"{name}.py"
            loaded = getattr(sys.modules.get(name), "__file__", None)
            other = _local.setdefault(name, own)
            if other == own and loaded is not None and not Path(loaded).resolve().is_relative_to(own):
                other = Path(loaded)
            # Copies are the same code.
            if other != own and not (other.is_file() and own.is_file() and _digest(other) == _digest(own)):
                raise TenasError(
                    f"{path} imports {name!r} from its folder, but {other} has that name in this process: rename one."
                )


def _warn_of_others(module: str, before: Iterable[str]) -> None:
    """Warn of files that a user's module has imported and that its digest lacks, as it finds them on a path of its own."""
    if _is_ours(module):
        return
    names = (str(getattr(sys.modules[name], "__file__", None)) for name in sys.modules.keys() - set(before))
    # What the digest has was noted before the import.
    files = {Path(os.path.realpath(name)) for name in names if name.endswith(".py")} - _seen.keys()
    if others := [str(file) for file in sorted(files) if not (file.is_relative_to(PACKAGE) or is_installed(file))]:
        warnings.warn(
            f"{module} has imported {', '.join(others)} from a folder where tenas does not look: results made with another "
            "version would be taken for those of this one. Put such files beside it, or their folder on PYTHONPATH.",
            stacklevel=3,
        )


def _import_file(path: Path, what: str) -> ModuleType:
    if not path.is_file():
        raise TenasError(f"The {what} is expected in {path}, which is not a file (from the folder {Path.cwd()}).")
    # One module per file, whatever its path: objects keep their identity within a process.
    name = f"{USER_MODULE}{sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    _check_names(path.resolve())
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    # Files in the same folder can be imported as from a script, also by imports within functions.
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)
    return module


@contextmanager
def folder_kept() -> Iterator[None]:
    """Restore the working directory, to which paths are relative: users' code may change it."""
    folder = os.getcwd()
    try:
        yield
    finally:
        os.chdir(folder)


def load_module(name: str, what: str) -> ModuleType:
    """Import a module by its name, or by the path of its file. ``what``: what it is for, in messages.

    Raises TenasError if it is missing or its import fails.
    """
    noted = _look_at(name)
    before = list(sys.modules)
    try:
        with folder_kept():
            module = _import_file(Path(name), what) if name.endswith(".py") else importlib.import_module(name)
        _warn_of_others(name, before)
        return module
    except TenasError:
        _forget(noted)
        raise
    except (Exception, SystemExit) as error:
        _forget(noted)
        # SystemExit too: a script that exits on import must not end this process.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        if "no known parent package" in reason:
            reason += "; name a module of a package with dots, package.module:OBJECT, and start beside the package"
        raise TenasError(f"The {what} {name!r} cannot be imported ({reason}).") from error


def load_object(reference: str, what: str) -> object:
    """Import the object of a reference. ``what``: what it is for, in messages, e.g. "space".

    Raises TenasError if the file, the module or the object is missing, or if the import fails.
    """
    module_name, attribute = split_reference(reference)
    module = load_module(module_name, what)
    if not hasattr(module, attribute):
        public = ", ".join(name for name in vars(module) if not name.startswith("_")) or "nothing"
        raise TenasError(f"The {what} {reference!r} does not exist: {module_name} has {public}.")
    return getattr(module, attribute)


def reference_of(thing: object) -> str | None:
    """Find a reference by which another process can import an object; None if no module has it.

    Objects of the running script or notebook (``__main__``) have none: importing them would run it again.
    """
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.startswith("__") or not str(file).endswith(".py"):
            continue
        for attribute, value in list(vars(module).items()):
            if value is thing and not attribute.startswith("_"):
                reference = f"{file if name.startswith(USER_MODULE) else name}:{attribute}"
                with suppress(TenasError):
                    source_file(reference)
                    return reference
    return None
