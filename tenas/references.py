"""Users' objects by reference: ``package.module:object`` or ``path/to/file.py:object``. No torch.

A reference can replace any name of a space, a measure or a data source. Only the text is passed on: worker processes, cluster
jobs and the audit import the object themselves, and the content of the file is part of the code digest.
"""

import importlib
import importlib.util
import sys
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from tenas.errors import TenasError

# Prefix of the names of modules imported by the path of their file.
USER_MODULE = "tenas_user_"


def is_reference(name: object) -> bool:
    """Whether ``name`` is a reference and not a built-in name."""
    return isinstance(name, str) and ":" in name


def _split(reference: str) -> tuple[str, str]:
    module, _, attribute = reference.rpartition(":")
    if not module or not attribute.isidentifier():
        raise TenasError(f"{reference!r} is not a reference; expected package.module:object or path/to/file.py:object.")
    return module, attribute


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


def load_module(name: str, what: str) -> ModuleType:
    """Import a module by its name, or by the path of its file. ``what``: what it is for, in messages.

    Raises TenasError if it is missing or its import fails.
    """
    try:
        return _import_file(Path(name), what) if name.endswith(".py") else importlib.import_module(name)
    except TenasError:
        raise
    except (Exception, SystemExit) as error:
        # SystemExit too: a script that exits on import must not end this process.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise TenasError(f"The {what} {name!r} cannot be imported ({reason}).") from error


def load_object(reference: str, what: str) -> object:
    """Import the object of a reference. ``what``: what it is for, in messages, e.g. "space".

    Raises TenasError if the file, the module or the object is missing, or if the import fails.
    """
    module_name, attribute = _split(reference)
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


def source_file(reference: str) -> Path:
    """The file of a reference or of a module, for digests. Raises TenasError if there is none."""
    module_name = _split(reference)[0] if is_reference(reference) else reference
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
