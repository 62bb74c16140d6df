"""The base of all models of settings: strict keys, plain numbers, one sentence per error."""

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
from tenas.errors import TenasError, in_short, one_of

# YAML 1.1 reads 1e3 and 2.5e6 as texts; users mean numbers.
_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


def number_of(value: object) -> object:
    """Convert a text such as 1e3 to a number; return anything else unchanged."""
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _whole(value: object) -> object:
    """Convert whole floats (YAML's 8.0) to integers; refuse booleans and texts."""
    value = number_of(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise PydanticCustomError("whole", "must be a whole number")
    return value


def _real(value: object) -> object:
    value = number_of(value)
    if isinstance(value, int) and not isinstance(value, bool):
        # An integer may be larger than any float.
        value = float(value) if abs(value) < 10**300 else math.inf
    if not isinstance(value, float) or not math.isfinite(value):
        raise PydanticCustomError("real", "must be a finite number")
    return value


Whole = Annotated[int, BeforeValidator(_whole)]
Real = Annotated[float, BeforeValidator(_real)]
# A number, or a share such as "60%".
Amount = Annotated[Real | str, BeforeValidator(number_of)]
# Strict: YAML has true and false; a text or a number is refused.
Flag = Annotated[bool, Field(strict=True)]


def _distinct(values: list[Any]) -> list[Any]:
    doubled = [value for place, value in enumerate(values) if value in values[:place]]
    if doubled:
        raise PydanticCustomError("distinct", "{value} is listed twice", {"value": repr(doubled[0])})
    return values


# A list without repeated values.
Distinct = AfterValidator(_distinct)


class Model(BaseModel):
    """Settings that refuse unknown keys."""

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
    """Describe the first error of a validation in one sentence: key, value and what is allowed.

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
    value = in_short(first["input"])
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


def checked(model: type[AnyModel], value: object, where: str, at: str = "") -> AnyModel:
    """Validate a plain value. Raises TenasError with one sentence that begins with ``where``; ``at``: key of the value."""
    try:
        _check_plain(value, where, (at,) if at else ())
        return model.model_validate(value)
    except ValidationError as error:
        raise TenasError(sentence(error, where, at)) from error


# Far above any real configuration; with aliases, a few lines of YAML can expand to billions of values.
MOST_VALUES, DEEPEST = 1_000_000, 50
# Line ends, tabs and other control characters, and lone surrogates.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def _check_plain(value: object, where: str, at: tuple[str, ...] = ()) -> None:
    """Raise TenasError for too many values or multi-line texts: a text may become a name, a path or part of a command."""
    waiting, seen = [(value, at)], 0
    while waiting:
        part, place = waiting.pop()
        seen += 1
        if seen > MOST_VALUES or len(place) > DEEPEST:
            raise TenasError(f"{where}: there are more than {MOST_VALUES:,} values, or a value contains itself.")
        if isinstance(part, str) and _CONTROL.search(part):
            name = f"'{'.'.join(place)}'" if place else "the top level"
            raise TenasError(f"{where}: {name} is {in_short(part)}; a text must be a single line without control characters.")
        if isinstance(part, Mapping):
            for key, inner in part.items():
                name = in_short(key)[1:-1] if isinstance(key, str) else in_short(key)
                waiting.append((inner, (*place, name)))
        elif isinstance(part, list | tuple):
            waiting.extend((inner, (*place, str(number))) for number, inner in enumerate(part))


# Of whole numbers; floats end at 2^1024.
MOST_BITS = 1024


class _UniqueKeys(yaml.SafeLoader):
    """Load YAML, but refuse a duplicate key in a mapping, of which YAML silently takes the last."""


def _mapping(loader: _UniqueKeys, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
    seen = set()
    for key, _ in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        name = loader.construct_object(key, deep=True)
        if not isinstance(name, Hashable):
            raise yaml.constructor.ConstructorError(None, None, "a list or a mapping cannot be a key", key.start_mark)
        if name in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} is given twice in one mapping", key.start_mark)
        seen.add(name)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


def _construct(loader: _UniqueKeys, node: yaml.MappingNode) -> Any:
    value: dict[Hashable, Any] = {}
    yield value
    value.update(_mapping(loader, node))


def _number(loader: _UniqueKeys, node: yaml.ScalarNode) -> Any:
    """A number, unless YAML 1.1 takes it for another than what a reader does: 010 for 8, 1:30 for 90."""
    text = loader.construct_scalar(node)
    if ":" in text or (len(digits := text.lstrip("+-")) > 1 and digits.replace("_", "").isdigit() and digits[0] == "0"):
        raise yaml.constructor.ConstructorError(
            None, None, f"{text!r} is another number in YAML 1.1 than it seems", node.start_mark
        )
    value = yaml.SafeLoader.yaml_constructors[node.tag](loader, node)
    # Python makes no text of such a number, and messages would fail; hexadecimal digits are read without a limit.
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise yaml.constructor.ConstructorError(None, None, "a number has thousands of digits", node.start_mark)
    return value


for _tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
    _UniqueKeys.add_constructor(_tag, _number)
_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct)


def parse_yaml(text: str) -> object:
    """Parse a text as YAML. Raises ValueError, in one line, for invalid YAML and for duplicate keys."""
    try:
        return yaml.load(text, Loader=_UniqueKeys)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    # A date in a thirteenth month, an integer of thousands of digits, "!!bool x", "!!int ''".
    except (yaml.YAMLError, ValueError, OverflowError, LookupError, AttributeError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def read_yaml(path: str | os.PathLike[str], what: str) -> object:
    """Read a YAML file. Raises TenasError if it cannot be read, is not valid YAML, or has duplicate keys."""
    try:
        return parse_yaml(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise TenasError(f"The {what} {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise TenasError(f"The {what} {path} is not text in UTF-8: {error}.") from error
    except ValueError as error:
        raise TenasError(f"The {what} {path} is not valid YAML: {str(error).rstrip('.')}.") from error


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge ``changes`` into ``base``, nested mappings key by key."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


FOLDERS = {"search": "presets", "retrain": "retrain"}


def project_file(name: str) -> Path:
    """Find a file relative to the working directory, or else to the project's folder, which the package includes."""
    path = Path(name)
    return path if path.exists() or not (PROJECT / path).exists() else PROJECT / path


def preset_files(kind: str) -> dict[str, Path]:
    """Presets by name; those in the working directory's config/ take precedence over the built-in ones."""
    found: dict[str, Path] = {}
    for folder in (Path("config") / FOLDERS[kind], PROJECT / "config" / FOLDERS[kind]):
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def preset_file(kind: str, preset: str) -> Path:
    """The file of a preset, by its name or path. Raises TenasError for a name that no preset has."""
    if str(preset).endswith((".yaml", ".yml")):
        return Path(preset)
    presets = preset_files(kind)
    if preset not in presets:
        raise one_of(f"{kind} preset", preset, sorted(presets))
    return presets[preset]


def read_preset(kind: str, preset: str) -> dict[str, Any]:
    """Read a preset, by name or path of a YAML file. ``kind``: search or retrain."""
    if not isinstance(preset, str | os.PathLike):
        raise TenasError(f"The {kind} preset is a {type(preset).__name__}; it must be a name, or the path of a YAML file.")
    path = preset_file(kind, preset)
    value = read_yaml(path, "preset")
    if not isinstance(value, dict):
        raise TenasError(f"The preset {path} is not a mapping of keys to values.")
    return value
