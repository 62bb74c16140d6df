"""Generate the reference of all settings from their models: Markdown tables, JSON schemas for editors. No torch.

``scripts/reference`` writes both; a test compares the files with the models.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic.json_schema import models_json_schema

from tenas.settings.base import Model
from tenas.settings.claims import Claim, Claims, Correlation
from tenas.settings.config import Config, Dataset, Run, TableSearch, Threads
from tenas.settings.retrain import ColourJitter, Retraining
from tenas.settings.rounds import (
    MOST_AS_TRAINED,
    CellsRound,
    EdgesRound,
    LatencyLimit,
    Limits,
    OnABatch,
    OnRegions,
    OperatorsEntry,
    Preset,
    TrainingRound,
)
from tenas.settings.study import Study

ROUNDS = (OperatorsEntry, EdgesRound, CellsRound, TrainingRound)
# The keys of these models are listed in the table of the model that contains them.
INSIDE = (Threads, TableSearch, Correlation, ColourJitter, LatencyLimit)
MODELS: tuple[type[Model], ...] = (
    Config, Dataset, Run, Study, Preset, *ROUNDS, OnABatch, OnRegions, Limits, Retraining, Claim, Claims, *INSIDE,
)  # fmt: skip
TABLES = {model.__name__: model for model in MODELS if model not in INSIDE and model is not Claims}
# File below config/schemas -> its model, and a title.
FILES: dict[str, tuple[type[Model], str]] = {
    "config.json": (Config, "Configuration of the TE-NAS workflow"),
    "search.json": (Preset, "Preset of a TE-NAS search"),
    "retrain.json": (Retraining, "Preset of a TE-NAS retraining"),
    "claims.json": (Claims, "Claims for the TE-NAS workflow"),
}
BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
# Name of a model all of whose keys are optional: changes to a preset, a round that inherits the rest from its preset.
PART = "{}Part"
MEASURES = {
    "type": "object",
    "additionalProperties": {"anyOf": [{"$ref": "OnABatchPart"}, {"$ref": "OnRegionsPart"}, {"type": "null"}]},
}
# Types that a model leaves open, as they are checked after merging.
CLOSER: dict[tuple[str, str], dict[str, Any]] = {
    ("Run", "search"): {"$ref": "PresetPart"},
    ("Run", "limits"): {"$ref": "Limits"},
    ("Run", "retraining"): {"$ref": "RetrainingPart"},
    ("Study", "measures"): MEASURES,
    ("Preset", "measures"): MEASURES,
    ("Preset", "limits"): {"$ref": "Limits"},
    ("Preset", "rounds"): {
        "anyOf": [
            {"type": "array", "items": {"anyOf": [{"$ref": PART.format(model.__name__)} for model in ROUNDS]}},
            {"type": "object", "description": "In a run's search: number of a round -> changes to it."},
        ]
    },
    ("TrainingRound", "training"): {"$ref": "RetrainingPart"},
    **{
        (model.__name__, "measures"): {"anyOf": [MEASURES, {"type": "array", "items": {"type": "string"}}]}
        for model in (OperatorsEntry, EdgesRound, CellsRound)
    },
}


def _plain(value: Any) -> Any:
    """Translate pydantic's schema to the standard keywords, without titles, which repeat the keys."""
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if not isinstance(value, Mapping):
        return value
    found = {BOUNDS.get(key, key): _plain(part) for key, part in value.items() if not (key == "title" and isinstance(part, str))}
    if isinstance(found.get("description"), str):
        found["description"] = " ".join(found["description"].replace("``", "`").split())
    return found


def definitions() -> dict[str, dict[str, Any]]:
    """Schemas of all models by name, and of their partial forms (PART); references are names."""
    _, whole = models_json_schema([(model, "validation") for model in MODELS], ref_template="{model}")
    found: dict[str, dict[str, Any]] = _plain(whole["$defs"])
    for (name, key), closer in CLOSER.items():
        own = found[name]["properties"][key]
        found[name]["properties"][key] = {k: own[k] for k in ("description", "default") if k in own} | closer
    for name, part in list(found.items()):
        keys = {key: {k: v for k, v in value.items() if k != "default"} for key, value in part["properties"].items()}
        if name == OnABatch.__name__:
            keys |= {key: _or_trained(keys[key]) for key in MOST_AS_TRAINED}
        needed = {"required": ["kind"]} if "kind" in keys else {}
        found[PART.format(name)] = {k: v for k, v in part.items() if k != "required"} | {"properties": keys} | needed
    return found


def _or_trained(size: Mapping[str, Any]) -> dict[str, Any]:
    """Allow ``trained`` for the size of a network: that of the trained one."""
    described = {key: size[key] for key in ("description",) if key in size}
    return described | {"anyOf": [{key: part for key, part in size.items() if key != "description"}, {"const": "trained"}]}


def _used(value: Any) -> Iterator[str]:
    """Names to which a schema refers."""
    if isinstance(value, Mapping):
        if "$ref" in value:
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _used(part)


def _pointed(value: Any) -> Any:
    """Replace the references of a schema, which are names, by JSON pointers."""
    if isinstance(value, list):
        return [_pointed(part) for part in value]
    if not isinstance(value, Mapping):
        return value
    return {key: f"#/$defs/{part}" if key == "$ref" else _pointed(part) for key, part in value.items()}


def schema(model: type[Model], title: str) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a file that contains a model."""
    known = definitions()
    waiting, needed = [model.__name__], dict[str, dict[str, Any]]()
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed[name] = known[name]
            waiting += _used(known[name])
    main = needed.pop(model.__name__)
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title}
    return {**dialect, **_pointed(main), "$defs": _pointed(dict(sorted(needed.items())))}


def _value(part: Mapping[str, Any]) -> str:
    """Describe the allowed values of a key in words."""
    options = [option for option in part.get("anyOf", []) if option.get("type") != "null"]
    if options:
        return ", or ".join(dict.fromkeys(_value(option) for option in options))
    if "enum" in part or "const" in part:
        return ", ".join(f"`{value}`" for value in part.get("enum", [part.get("const")]))
    if "$ref" in part:
        return "mapping"
    kind = part.get("type")
    if kind in ("integer", "number"):
        words = ["whole number" if kind == "integer" else "number"]
        words += [f"from {part['minimum']:,}"] if "minimum" in part else []
        words += [f"above {part['exclusiveMinimum']:,}"] if "exclusiveMinimum" in part else []
        words += [f"to {part['maximum']:,}"] if "maximum" in part else []
        words += [f"below {part['exclusiveMaximum']:,}"] if "exclusiveMaximum" in part else []
        return " ".join(words)
    if kind == "array":
        return f"list of: {_value(part['items'])}" if part.get("items") else "list"
    return {"string": "text", "boolean": "`true`, `false`", "object": "mapping"}.get(str(kind), "any")


def _rows(name: str, known: Mapping[str, Mapping[str, Any]], before: str = "") -> Iterator[tuple[str, str, str, str]]:
    model = known[name]
    for key, part in model["properties"].items():
        if key == "kind":
            continue  # the model of the table itself
        inside = next((ref for ref in _used(part) if ref in {model.__name__ for model in INSIDE}), None)
        optional = any(option.get("type") == "null" for option in part.get("anyOf", []))
        if inside is None or optional:
            if key in model.get("required", ()):
                default = "needed"
            elif "default" in part:
                default = f"`{json.dumps(part['default'], ensure_ascii=False)}`"
            else:
                default = ""
            if name in {model.__name__ for model in ROUNDS} and key in Preset.model_fields:
                default = "the preset's"
            yield f"{before}{key}", _value(part), default, part.get("description", "")
        if inside is not None:
            yield from _rows(inside, known, f"{before}{key}.")


def table(model: type[Model]) -> str:
    """Markdown table of the keys of a model: key, value, default, meaning."""
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, value, default, meaning in _rows(model.__name__, definitions()):
        lines.append(f"| `{key}` | {value} | {default} | {meaning.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


BLOCK = re.compile(r"(<!-- keys of (\w+), made by scripts/reference -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(page: str) -> str:
    """Update the marked tables of a page. Raises KeyError for a mark that names no model."""
    return BLOCK.sub(lambda match: f"{match[1]}{table(TABLES[match[2]])}\n{match[3]}", page)


def files(page: str) -> dict[str, str]:
    """Path below config/ -> expected content. ``page``: config/README.md as it is."""
    found = {f"schemas/{name}": json.dumps(schema(*of), indent=2, ensure_ascii=False) + "\n" for name, of in FILES.items()}
    return found | {"README.md": with_tables(page)}
