"""Objects of a user's own by reference: ``package.module:object`` or ``path/to/file.py:object``. No torch.

Wherever a space, a measure or a data source is named, such a reference may stand. Only the text travels: worker processes,
cluster jobs and the audit import the object themselves, and the file's content is part of the code digest.
"""

import importlib
import importlib.util
import sys
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from tenas.errors import TenasError


def is_reference(name: object) -> bool:
    """Whether ``name`` is a reference and not the name of something that the package ships."""
    return isinstance(name, str) and ":" in name


def _split(reference: str) -> tuple[str, str]:
    module, _, attribute = reference.rpartition(":")
    if not module or not attribute.isidentifier():
        raise TenasError(f"{reference!r} is no reference; expected package.module:object or path/to/file.py:object.")
    return module, attribute


def _import_file(path: Path, what: str) -> ModuleType:
    if not path.is_file():
        raise TenasError(f"The {what} is to come from {path}, which is not a file (from the folder {Path.cwd()}).")
    # The same file is the same module, whatever path leads to it: objects keep their identity within a process.
    name = f"tenas_user_{sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    # Its neighbours can be imported as from a script of that folder.
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def load_object(reference: str, what: str) -> object:
    """The object that ``reference`` names; ``what`` says in an error what it was to be, e.g. "space".

    Raises TenasError when the file, the module or the object is missing, or its import fails.
    """
    module_name, attribute = _split(reference)
    try:
        if module_name.endswith(".py"):
            module = _import_file(Path(module_name), what)
        else:
            module = importlib.import_module(module_name)
    except TenasError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise TenasError(f"The {what} {reference!r} cannot be imported ({reason}).") from error
    if not hasattr(module, attribute):
        public = ", ".join(name for name in vars(module) if not name.startswith("_")) or "nothing"
        raise TenasError(f"The {what} {reference!r} does not exist: {module_name} has {public}.")
    return getattr(module, attribute)


def source_file(reference: str) -> Path:
    """The file that a reference names, for digests. Raises TenasError where there is none."""
    module_name, _ = _split(reference)
    if module_name.endswith(".py"):
        path = Path(module_name)
        if not path.is_file():
            raise TenasError(f"{reference!r} names the file {path}, which is not there.")
        return path
    try:
        spec = importlib.util.find_spec(module_name)
    except (ImportError, ValueError) as error:
        raise TenasError(f"{reference!r} names the module {module_name}, which cannot be found.") from error
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise TenasError(f"{reference!r} names the module {module_name}, which is no Python file.")
    return Path(spec.origin)
