"""What all models of settings share: strict keys, plain numbers, and one sentence for whatever is wrong."""

import math
import os
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from tenas.code import PROJECT
from tenas.errors import TenasError, one_of

# YAML 1.1 takes 1e3 and 2.5e6 for texts, and whoever writes them means numbers.
_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


def number_of(value: object) -> object:
    """A text such as 1e3 as the number that it means; anything else as it is."""
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _whole(value: object) -> object:
    """Whole floats become integers (YAML's 8.0); booleans and texts are no numbers."""
    value = number_of(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise PydanticCustomError("whole", "must be a whole number")
    return value


def _real(value: object) -> object:
    value = number_of(value)
    if isinstance(value, int) and not isinstance(value, bool):
        # Which may be larger than any float.
        value = float(value) if abs(value) < 10**300 else math.inf
    if not isinstance(value, float) or not math.isfinite(value):
        raise PydanticCustomError("real", "must be a finite number")
    return value


Whole = Annotated[int, BeforeValidator(_whole)]
Real = Annotated[float, BeforeValidator(_real)]
# A number, or a share such as "60%".
Amount = Annotated[Real | str, BeforeValidator(number_of)]
# A text or a number is none: YAML knows true and false.
Flag = Annotated[bool, Field(strict=True)]


def _distinct(values: list[Any]) -> list[Any]:
    doubled = [value for place, value in enumerate(values) if value in values[:place]]
    if doubled:
        raise PydanticCustomError("distinct", "{value} stands there twice", {"value": repr(doubled[0])})
    return values


# Of a list: no value twice.
Distinct = AfterValidator(_distinct)


class Model(BaseModel):
    """Settings with known keys alone."""

    model_config = ConfigDict(extra="forbid", strict=False, use_attribute_docstrings=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            known = [field.alias or name for name, field in cls.model_fields.items()]
            unknown = [key for key in value if key not in known]
            if unknown:
                raise PydanticCustomError("unknown_key", "{key}", {"key": repr(unknown[0]), "known": ", ".join(known)})
        return value


AnyModel = TypeVar("AnyModel", bound=Model)

_KINDS = {
    "dict_type": "a mapping", "model_type": "a mapping", "list_type": "an array (list)", "string_type": "a text",
    "bool_type": "true or false", "tuple_type": "an array (list)",
}  # fmt: skip
_BOUNDS = {
    "greater_than_equal": ("ge", "at least"), "greater_than": ("gt", "above"), "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "below"),
}  # fmt: skip


def sentence(error: ValidationError, where: str, at: str = "") -> str:
    """The first fault of a validation, as a sentence that names key, value and what is allowed.

    ``at``: the key of the whole value.
    """
    first = error.errors(include_url=False)[0]
    kind, context = first["type"], first.get("ctx", {})
    place = [str(part) for part in first["loc"] if not str(part).startswith(("function-", "list[", "dict[", "constrained"))]
    places = [at, *place] if at else place
    key = ".".join(places)
    name = f"'{key}'" if key else "the top level"
    if kind == "unknown_key":
        return f"{where}: unknown key {context['key']} in {name}; known: {context['known']}."
    if kind == "missing":
        parent = ".".join(places[:-1])
        return f"{where}: the key {places[-1]!r} is missing in {repr(parent) if parent else 'the top level'}."
    value = _short(first["input"])
    if kind == "name":
        return f"{where}: '{'.'.join(places[:-2])}' has the name {value}; it {first['msg']}."
    if kind == "allowed":
        return f"{where}: {name} is {value}; allowed: {first['msg']}."
    if kind == "literal_error":
        return f"{where}: {name} is {value}; allowed: {str(context['expected']).replace(chr(39), '').replace(' or ', ', ')}."
    if kind in _KINDS:
        return f"{where}: {name} is {value}; it must be {_KINDS[kind]}."
    if kind in _BOUNDS:
        key, word = _BOUNDS[kind]
        return f"{where}: {name} is {value}; it must be {word} {context[key]}."
    if kind in ("too_short", "too_long"):
        bound = context.get("min_length", context.get("max_length"))
        word = "least" if kind == "too_short" else "most"
        return f"{where}: {name} has {context['actual_length']} entries; it must have at {word} {bound}."
    if kind == "string_too_short":
        return f"{where}: {name} is {value}; it must not be empty."
    if kind in ("whole", "real"):
        return f"{where}: {name} is {value}; it {first['msg']}."
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {name}: {message}" + ("" if message.endswith(".") else ".")


def _short(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # of a number of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) < 80 else text[:77] + "..."


def checked(model: type[AnyModel], value: object, where: str, at: str = "") -> AnyModel:
    """The model of a plain value. Raises TenasError with one sentence; ``where`` begins it, ``at`` is the value's own key."""
    try:
        _check_plain(value, where, (at,) if at else ())
        return model.model_validate(value)
    except ValidationError as error:
        raise TenasError(sentence(error, where, at)) from error


# Far more than any configuration has; a few lines of YAML that refer to each other can stand for billions.
MOST_VALUES, DEEPEST = 1_000_000, 50
# Line ends, tabulators and other signs that no name and no path has, and halves of letters.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def _check_plain(value: object, where: str, at: tuple[str, ...] = ()) -> None:
    """Raise TenasError unless a value is small, and its texts of one line: each may be a name, a path, a part of a command."""
    waiting, seen = [(value, at)], 0
    while waiting:
        part, place = waiting.pop()
        seen += 1
        if seen > MOST_VALUES or len(place) > DEEPEST:
            raise TenasError(f"{where}: there are more than {MOST_VALUES:,} values, or one within itself.")
        if isinstance(part, str) and _CONTROL.search(part):
            name = f"'{'.'.join(place)}'" if place else "the top level"
            raise TenasError(f"{where}: {name} is {_short(part)}; a text must be of one line, without control signs.")
        if isinstance(part, Mapping):
            for key, inner in part.items():
                name = _short(key)[1:-1] if isinstance(key, str) else _short(key)
                waiting.append((inner, (*place, name)))
        elif isinstance(part, list | tuple):
            waiting.extend((inner, (*place, str(number))) for number, inner in enumerate(part))


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that stands twice in one mapping is an error, not the last one's."""


def _mapping(loader: _UniqueKeys, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
    seen = set()
    for key, _ in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        name = loader.construct_object(key, deep=True)
        if not isinstance(name, Hashable):
            raise yaml.constructor.ConstructorError(None, None, "a list or a mapping cannot be a key", key.start_mark)
        if name in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} stands twice in one mapping", key.start_mark)
        seen.add(name)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


def _construct(loader: _UniqueKeys, node: yaml.MappingNode) -> Any:
    value: dict[Hashable, Any] = {}
    yield value
    value.update(_mapping(loader, node))


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct)


def parse_yaml(text: str) -> object:
    """The value of a text in YAML. Raises ValueError, in one line, for what is none, and for a key twice in one mapping."""
    try:
        return yaml.load(text, Loader=_UniqueKeys)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    # A date of a thirteenth month, a number of thousands of digits.
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def read_yaml(path: str | os.PathLike[str], what: str) -> object:
    """The value of a YAML file. Raises TenasError when it cannot be read, is no YAML, or gives a key twice."""
    try:
        return parse_yaml(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise TenasError(f"The {what} {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise TenasError(f"The {what} {path} is not text in UTF-8: {error}.") from error
    except ValueError as error:
        raise TenasError(f"The {what} {path} is not valid YAML: {str(error).rstrip('.')}.") from error


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` merged in, nested mappings key by key."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


FOLDERS = {"search": "presets", "retrain": "retrain"}


def project_file(name: str) -> Path:
    """A file by its path from the working directory, or else from the project's folder, which the package has with it."""
    path = Path(name)
    return path if path.exists() or not (PROJECT / path).exists() else PROJECT / path


def preset_files(kind: str) -> dict[str, Path]:
    """Presets by name: those of the working directory's config/, then those that come with the package."""
    found: dict[str, Path] = {}
    for folder in (Path("config") / FOLDERS[kind], PROJECT / "config" / FOLDERS[kind]):
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def read_preset(kind: str, preset: str) -> dict[str, Any]:
    """The mapping of a preset, by name or path of a YAML file. ``kind``: search or retrain."""
    if str(preset).endswith((".yaml", ".yml")):
        path = Path(preset)
    else:
        presets = preset_files(kind)
        if preset not in presets:
            raise one_of(f"{kind} preset", preset, sorted(presets))
        path = presets[preset]
    value = read_yaml(path, "preset")
    if not isinstance(value, dict):
        raise TenasError(f"The preset {path} is not a mapping of keys to values.")
    return value
