"""Configuration and presets: read, checked against their schemas, defaults filled in. No torch.

Every error names the key and what it may be.
"""

import copy
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

from tenas.errors import TenasError, one_of
from tenas.spaces import get_space

PACKAGE = Path(__file__).parent
KINDS = {"search": "presets", "retrain": "retrain"}


@cache
def _validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator(yaml.safe_load((PACKAGE / "schemas" / f"{schema}.yaml").read_text(encoding="utf-8")))


class Traits(NamedTuple):
    """What has to be known of a measure before torch is: which way it's good, whether it can be negative, needs labels."""

    lower_is_better: bool
    signed: bool
    labels: bool


@cache
def measure_traits() -> dict[str, Traits]:
    """All measures by name, from the catalogue in tenas/schemas/search.yaml."""
    catalogue = _validator("search").schema["properties"]["measures"]["properties"]
    return {name: Traits(*(entry.get(word, False) for word in Traits._fields)) for name, entry in catalogue.items()}


def _sentence(error: ValidationError, where: str) -> str:
    key = ".".join(map(str, error.absolute_path))
    name = f"'{key}'" if key else "the top level"
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        unknown = sorted(set(error.instance) - set(known))
        return f"{where}: unknown key {unknown[0]!r} in {name}; known: {', '.join(known)}."
    if error.validator == "required":
        missing = [k for k in error.validator_value if k not in error.instance]
        return f"{where}: the key {missing[0]!r} is missing in {name}."
    if error.validator == "enum":
        return f"{where}: {name} is {error.instance!r}; allowed: {', '.join(map(str, error.validator_value))}."
    if error.validator == "type":
        allowed = error.validator_value if isinstance(error.validator_value, str) else " or ".join(error.validator_value)
        return f"{where}: {name} is {error.instance!r}; it must be of the type {allowed}."
    return f"{where}: {name}: {error.message}."


def _fill(value: object, schema: Mapping, root: Mapping) -> None:
    """Fill in the schema's defaults, in place, below keys that are there."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    if not isinstance(value, dict):
        return
    for key, part in schema.get("properties", {}).items():
        if "default" in part:
            value.setdefault(key, copy.deepcopy(part["default"]))
        if key in value:
            _fill(value[key], part, root)
    if isinstance(schema.get("additionalProperties"), Mapping):
        for key in value.keys() - schema.get("properties", {}).keys():
            _fill(value[key], schema["additionalProperties"], root)


def validated(value: object, schema: str, where: str) -> dict:
    """A copy of ``value`` with the defaults of tenas/schemas/<schema>.yaml. ``where`` names it in the error."""
    validator = _validator(schema)
    error = best_match(validator.iter_errors(value))
    if error is not None:
        raise TenasError(_sentence(error, where))
    value = copy.deepcopy(value)
    _fill(value, validator.schema, validator.schema)
    return value


def read_yaml(path: str | os.PathLike, what: str) -> object:
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise TenasError(f"The {what} {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TenasError(f"The {what} {path} is not valid YAML: {' '.join(str(error).split())}.") from error


def _presets(kind: str) -> dict[str, Path]:
    """Presets by name: those of the working directory's config/, then those that the package's repository has."""
    folders = [Path("config") / KINDS[kind], PACKAGE.parent / "config" / KINDS[kind]]
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def merged(base: Mapping, changes: Mapping) -> dict:
    """``base`` with ``changes`` laid over it, nested mappings key by key."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def load_preset(kind: str, preset: str, changes: Mapping | None = None) -> dict:
    """The settings of a preset, by name or path of a YAML file, with ``changes`` laid over it. ``kind``: search or retrain.

    A measure that the changes set to null is left out.
    """
    if str(preset).endswith((".yaml", ".yml")):
        path = Path(preset)
    else:
        presets = _presets(kind)
        if preset not in presets:
            raise one_of(f"{kind} preset", preset, sorted(presets))
        path = presets[preset]
    value = read_yaml(path, "preset")
    if not isinstance(value, dict):
        raise TenasError(f"The preset {path} is not a mapping of keys to values.")
    where = f"preset {preset}" if not changes else f"preset {preset} with the run's changes"
    settings = merged(value, changes or {})
    if isinstance(settings.get("measures"), Mapping):
        settings["measures"] = {name: keys for name, keys in settings["measures"].items() if keys is not None}
    return validated(settings, kind, where)


def search_settings(space: str, preset: str, changes: Mapping | None = None) -> dict:
    """The resolved settings of a search, what search.json holds: ``space``, ``preset`` and every key of the preset."""
    settings = {"space": get_space(space).name, "preset": preset, **load_preset("search", preset, changes)}
    check_search(settings)
    return settings


def check_search(settings: Mapping) -> None:
    """Raise TenasError unless the settings fit their space."""
    space = get_space(settings["space"])
    space.full_mask(settings["exclude"])
    if not space.rounds(settings["exclude"], settings["prune"]):
        raise TenasError(f"'exclude' leaves nothing to search: {space.name} has the operators {', '.join(space.operators)}.")
    signed = [name for name in settings["measures"] if measure_traits()[name].signed]
    if settings["change"] == "log" and signed:
        raise TenasError(f"The measure {signed[0]} can be negative and has no logarithm: 'change' must be relative or absolute.")


def study_settings(value: Mapping, where: str) -> dict:
    """The resolved settings of a study, what study.json holds, checked: those of the configuration, with every key.

    ``where`` names it in the error. Measures are those of a search, with the same keys.
    """
    config = _validator("config").schema
    study = {**config["$defs"]["study"], "$defs": config["$defs"]}
    error = best_match(Draft202012Validator(study).iter_errors(value))
    if error is None:
        search = _validator("search").schema
        measures = {**search["properties"]["measures"], "$defs": search["$defs"]}
        error = best_match(Draft202012Validator(measures).iter_errors(value["measures"]))
        where = where if error is None else f"{where}, measures"
    if error is not None:
        raise TenasError(_sentence(error, where))
    value = copy.deepcopy(dict(value))
    _fill(value, study, study)
    _fill(value["measures"], measures, measures)
    return {**value, "space": get_space(value["space"]).name}
