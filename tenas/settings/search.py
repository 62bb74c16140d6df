"""Settings of a search: resolve a preset with changes to the content of search.json, check it, list its rounds. No torch."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tenas.code import is_reference
from tenas.errors import TenasError, in_short
from tenas.files import read_json, read_table
from tenas.measures.catalogue import Measure, get_measure
from tenas.settings.base import checked, merged, number_of, parse_yaml, read_preset
from tenas.settings.retrain import Retraining, retrain_settings
from tenas.settings.rounds import (
    KINDS,
    MEASURE_SETTINGS,
    MOST_AS_TRAINED,
    CellsRound,
    EdgesRound,
    Limits,
    OperatorsEntry,
    Preset,
    Settings,
    TrainingRound,
)
from tenas.spaces import Round, Space, get_space
from tenas.spaces.base import after, operators_left


def measure_settings(measures: Mapping[str, Any], where: str, at: str = "measures") -> dict[str, dict[str, Any]]:
    """Check settings of measures, by name or reference. Raises TenasError for unknown measures and keys."""
    if not measures:
        raise TenasError(f"{where}: '{at}' names no measure.")
    found, names = {}, set()
    for reference, value in measures.items():
        try:
            measure = get_measure(str(reference))
        except TenasError as error:
            what = "" if is_reference(reference) else "unknown key in "
            raise TenasError(f"{where}: {what}'{at}': {error}") from error
        if measure.name in names:
            raise TenasError(f"{where}: '{at}' has two measures named {measure.name!r}.")
        names.add(measure.name)
        found[str(reference)] = checked(MEASURE_SETTINGS[measure.inputs], value, where, f"{at}.{reference}").model_dump()
    return found


def measures_of(settings: Mapping[str, Any]) -> dict[str, tuple[Measure, dict[str, Any]]]:
    """Measures of a round or study, by name, with their settings."""
    found = {}
    for reference, value in settings["measures"].items():
        measure = get_measure(reference)
        found[measure.name] = (measure, value)
    return found


def _measures_of_round(entry: Mapping[str, Any], shared: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Merge the measures of a round over those shared by the preset; all of these if the round names none."""
    own = entry.get("measures")
    if own is None:
        return dict(shared)
    if isinstance(own, list) and all(isinstance(name, str) for name in own):
        if len(set(own)) < len(own):
            raise TenasError(f"{where}: 'measures' names a measure twice: {', '.join(own)}.")
        own = {name: {} for name in own}
    if not isinstance(own, Mapping):
        raise TenasError(f"{where}: 'measures' is {own!r}; it must be a mapping, or an array (list) of names.")
    return {name: _over(shared.get(name), value) for name, value in own.items()}


def as_trained(measures: Mapping[str, Any], shape: Mapping[str, Any]) -> dict[str, Any]:
    """Replace ``trained`` in settings of measures by the size of the finally trained network."""
    sizes = {key: min(shape[key], most) for key, most in MOST_AS_TRAINED.items()}
    return {
        name: {key: sizes[key] if item == "trained" and key in sizes else item for key, item in value.items()}
        if isinstance(value, Mapping)
        else value
        for name, value in measures.items()
    }


def _over(base: object, value: object) -> object:
    """Merge a mapping over that of the preset; return any other value unchanged, for validation to refuse."""
    given = {} if value is None else value
    return merged(base, given) if isinstance(base, Mapping) and isinstance(given, Mapping) else given


def _rounds(
    preset: Preset, space: Space, retraining: Mapping[str, Any] | None, datasets: Sequence[str], where: str
) -> list[dict[str, Any]]:
    """Expand the rounds of a preset: as many as the space needs, each with all keys."""
    shared = {name: value for name, value in preset.measures.items() if value is not None}
    left = operators_left(space.full_mask(preset.exclude))
    found: list[dict[str, Any]] = []
    for number, entry in enumerate(preset.rounds, start=1):
        here = f"{where}: round {number}"
        kind = _kind(entry, here)
        entry = dict(entry)
        if kind == "training":
            if preset.trainings == "none":
                continue
            found.append(_training(entry, preset, space, retraining, datasets, here))
            continue
        measures = as_trained(_measures_of_round(entry, shared, here), retraining or space.trained)
        entry["measures"] = measure_settings(measures, here)
        if preset.aggregate is not None:
            entry.setdefault("aggregate", preset.aggregate)
        if kind == "cells":
            cells = checked(CellsRound, entry, here).model_dump(mode="json")
            if is_list(cells["sample"]):
                cells["listed"] = len(read_table(cells["sample"], ("arch",), "list of cells", given=True))
            found.append(cells)
            continue
        for value in entry["measures"].values():
            # A smaller network would lack a cell type, whose trials would change nothing.
            value["cells"] = max(value["cells"], space.least_cells)
        entry = {key: getattr(preset, key) for key in ("change", "decimals", "ranks", "images", "own_weights")} | entry
        if kind == "edges":
            if space.edges_rounds(1):
                found.append(checked(EdgesRound, entry, here).model_dump())
            continue
        model = checked(OperatorsEntry, {"prune": preset.prune, "order": preset.order} | entry, here).model_dump()
        order, times, own = model.pop("order"), model.pop("times"), model.pop("edge")
        edges = [key for key in left if left[key] > 1] if order == "edge_by_edge" else [None] * len(space.operators)
        if own is not None:
            edges = [key for key in left if key == own]
            if not edges:
                raise TenasError(f"{here}: 'edge' is {list(own)!r}; {space.name} has no such cell type and edge.")
        for edge in edges[:times]:
            round = space.operators_round(1, left, model["prune"], edge)
            if round.trials:
                found.append(model | {"prune": round.prune, "edge": None if edge is None else list(edge)})
                left = after(left, round)
    return found


def is_list(sample: object) -> bool:
    """Whether the ``sample`` of a round names a file of cells."""
    return isinstance(sample, str) and sample != "all"


def _kind(entry: object, where: str) -> str:
    if not isinstance(entry, Mapping):
        raise TenasError(f"{where} is {entry!r}; it must be a mapping with the key 'kind'.")
    kind = entry.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise TenasError(f"{where}: 'kind' is {kind!r}; allowed: {', '.join(KINDS)}.")
    return str(kind)


def _training(
    entry: dict[str, Any], preset: Preset, space: Space, retraining: Mapping[str, Any] | None, datasets: Sequence[str], where: str
) -> dict[str, Any]:
    source, _, column = preset.trainings.partition(":")
    if source == "table":
        known = [space.short_trainings[name] for name in datasets if name in space.short_trainings]
        if not column and not known:
            raise TenasError(
                f"{where}: 'trainings' is 'table', but which column of the table of {space.name} has short trainings on this "
                "data set is not known: say table:COLUMN."
            )
        column = column or known[0]
        entry = entry | {"column": column, "training": {}}
    model = checked(TrainingRound, entry, where)
    if source == "real":
        protocol = merged(retraining or {**SHORT, **space.trained}, model.training)
        model.training = checked(Retraining, protocol, where, "training").model_dump()
        if not model.training["validation"]:
            raise TenasError(f"{where}: 'training.validation' is 0; held-out images choose the cells: set a share, such as 0.2.")
    return model.model_dump()


# Short trainings of a run without retraining: NAS-Bench-201's protocol (its own short trainings have 12 epochs).
SHORT = {
    "epochs": 12, "batch": 256, "learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0005,
    "crop_padding": 4, "flip": True, "validation": 0.2,
}  # fmt: skip


def with_changes(preset: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Merge changes into a preset; those of ``rounds`` may map round numbers, from 1, to changes."""
    changes = dict(changes)
    by_number = changes.pop("rounds", None)
    result = merged(preset, changes)
    if isinstance(by_number, Mapping):
        rounds = preset.get("rounds") or [{"kind": "operators"}, {"kind": "edges"}]
        if not isinstance(rounds, list) or not all(isinstance(entry, Mapping) for entry in rounds):
            raise TenasError(
                f"{where}: 'rounds' of the preset is {in_short(rounds)}; it must be a list of mappings of keys to values."
            )
        rounds = list(rounds)
        for number, change in by_number.items():
            # Compared, not converted: a number may have thousands of digits.
            place = next((place for place in range(len(rounds)) if number in (place + 1, str(place + 1))), None)
            if place is None:
                raise TenasError(f"{where}: 'rounds' has no round {in_short(number)}; the preset has rounds 1 to {len(rounds)}.")
            if not isinstance(change, Mapping):
                raise TenasError(f"{where}: round {number} is {in_short(change)}; it must be a mapping of keys to values.")
            rounds[place] = merged(rounds[place], change)
        result["rounds"] = rounds
    elif by_number is not None:
        result["rounds"] = by_number
    return result


def _places(key: str) -> list[str]:
    """Split a key at its dots, except those within a reference under ``measures``."""
    before, _, after = key.partition("measures.")
    reference = re.match(r"(.+?:\w+)(\..*)?$", after)
    if not reference:
        return key.split(".")
    return [*f"{before}measures".split("."), reference[1], *(reference[2] or "").split(".")[1:]]


def assigned(assignments: Iterable[str]) -> dict[str, Any]:
    """Parse changes such as ``prune=2`` or ``rounds.1.keep=8``; values are YAML. Raises TenasError for other texts."""
    changes: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not all(_places(key)):
            raise TenasError(f"{text!r} is no change of a setting; expected KEY=VALUE, such as rounds.1.keep=8.")
        try:
            parsed = number_of(parse_yaml(value))
        except ValueError as error:
            raise TenasError(f"The value of {text!r} is not valid YAML: {str(error).rstrip('.')}.") from error
        part = changes
        *parents, last = _places(key)
        for parent in parents:
            part = part.setdefault(parent, {})
            if not isinstance(part, dict):
                raise TenasError(f"{text!r} changes a key below one that another change sets to a value.")
        if last in part:
            raise TenasError(f"{key!r} is set twice: to {in_short(part[last])} and to {in_short(parsed)}.")
        part[last] = parsed
    return changes


def search_settings(
    space: str | Space,
    preset: str,
    changes: Mapping[str, Any] | None = None,
    *,
    retraining: Mapping[str, Any] | None = None,
    limits: Mapping[str, Any] | None = None,
    trainings: str | None = None,
    datasets: Sequence[str] = (),
) -> dict[str, Any]:
    """Resolve the settings of a search: the content of search.json.

    ``preset``: a name, or the path of a YAML file; ``changes``: to the preset (a measure set to null is left out).
    ``retraining``: resolved settings of the run's retraining, to which limits and short trainings refer. ``limits`` and
    ``trainings``: of the run. ``datasets``: names of its data set, to find a column of short trainings. Raises TenasError for
    anything that would stop the search later.
    """
    space = get_space(space)
    where = f"preset {preset}" if not changes else f"preset {preset} with the run's changes"
    given = with_changes(read_preset("search", preset), changes or {}, where)
    if trainings is not None:
        given["trainings"] = trainings
    if limits:
        given["limits"] = dict(limits)
    model = checked(Preset, given, where)
    if "exclude" not in (changes or {}):
        # Presets serve all spaces: ignore operators that this space does not have.
        model.exclude = [operator for operator in model.exclude if operator in space.operators]
    shape = retraining or space.trained
    rounds = _rounds(model, space, retraining, datasets, where)
    settings = {
        "space": space.reference,
        "preset": str(preset),
        "exclude": model.exclude,
        "rounds": rounds,
        "limits": {k: v for k, v in checked(Limits, model.limits, where, "limits").model_dump().items() if v is not None},
        "network": {key: shape.get(key) for key in ("channels", "cells", "stem", "side")},
    }
    _check_used((changes or {}).get("measures"), rounds, where)
    check_search(settings)
    return settings


def run_settings(run: Mapping[str, Any], source: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Resolve the settings of a run's search, and of its retraining if it has one.

    ``run``: its entry in a configuration. ``source``: of its data set.
    """
    retraining = None if run["retrain"] is None else retrain_settings(run["retrain"], run["retraining"])
    settings = search_settings(
        run["space"],
        run["preset"],
        run["search"],
        retraining=retraining,
        limits=run["limits"],
        trainings=run["trainings"],
        datasets=(run["dataset"], source),
    )
    if retraining is not None:
        check_network(get_space(settings["space"]), retraining, "retraining")
    return settings, retraining


# Modules of networks.
NO_DROP_PATH = ("tenas.networks.single", "tenas.networks.nas_bench_201", "tenas.networks.chain")


def check_network(space: Space, training: Mapping[str, Any], where: str) -> None:
    """Raise TenasError for settings of a training that the networks of a space do not have."""
    if training["auxiliary"] and not space.auxiliary:
        raise TenasError(f"{where}: The networks of {space.name} have no auxiliary head: 'auxiliary' must be 0.")
    if training["stem"] not in space.stems:
        stems = ", ".join(map(repr, space.stems))
        raise TenasError(f"{where}: The stem of networks of {space.name} is {training['stem']!r}; it must be one of {stems}.")
    # Those of a user's own builder may have it.
    if training["drop_path"] and space.networks in NO_DROP_PATH:
        raise TenasError(f"{where}: The networks of {space.name} have no drop-path: 'drop_path' must be 0.")


def _check_used(changed: object, rounds: Sequence[Mapping[str, Any]], where: str) -> None:
    """Raise TenasError for a measure that the run changes but no round takes, or that is none: the change would be ignored."""
    taken = {name for entry in rounds for name in entry.get("measures", ())}
    for name, value in changed.items() if isinstance(changed, Mapping) else ():
        if str(name) in taken:
            continue
        try:
            get_measure(str(name))
        except TenasError as error:
            raise TenasError(f"{where}: 'measures': {error}") from error
        if value is not None:
            raise TenasError(f"{where}: no round measures {name!r}, which 'measures' has: name it in the 'measures' of a round.")


def difference(found: object, meant: object, at: str = "") -> str | None:
    """First difference of two settings: the key, and both values; None if they are equal."""
    if isinstance(found, Mapping) and isinstance(meant, Mapping):
        pairs = [(str(key), found.get(key), meant.get(key)) for key in dict.fromkeys((*meant, *found))]
    elif isinstance(found, list) and isinstance(meant, list) and len(found) == len(meant):
        pairs = [(str(place), one, other) for place, (one, other) in enumerate(zip(found, meant, strict=True), start=1)]
    else:
        return None if found == meant else f"{at} is {in_short(found)}, not {in_short(meant)}"
    differences = (difference(one, other, f"{at}.{key}" if at else key) for key, one, other in pairs)
    return next((text for text in differences if text is not None), None)


def first_difference(written: Mapping[str, Any], settings: Mapping[str, Any]) -> str | None:
    """The first setting of ``settings`` that was another one when they were ``written``, perhaps by an earlier version.

    None if they are the same, with the keys that were filled in since. Their preset, and the file of their space, may be named
    otherwise: what a preset says is in the settings.
    """
    written = renamed(written, settings)
    if written == settings:
        return None
    try:
        return difference(check_settings(settings, "search"), check_settings(written, "search"))
    except TenasError as error:
        return str(error).rstrip(".")


def renamed(settings: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the name of the preset of others, and the name of their space if both are of one file."""
    named = {"preset": like.get("preset", settings.get("preset"))}
    if _file_of(settings.get("space")) == _file_of(like.get("space")) is not None:
        named["space"] = like["space"]
    return {**settings, **named}


def _file_of(space: object) -> tuple[Path, str] | None:
    """The file and the object of a reference to a space; None for another name."""
    file, _, name = str(space).rpartition(":")
    return (Path(file).resolve(), name) if file.endswith(".py") else None


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the settings of a search from its search.json, and check them: the file may have been edited."""
    value = read_json(path, "search settings")
    if is_of_earlier_version(value):
        raise TenasError(
            f"The settings {path} are of an earlier version, whose searches had no list of rounds: read the run with the version "
            "that made it, or search again."
        )
    return check_settings(value, str(path))


def is_of_earlier_version(value: Mapping[str, Any]) -> bool:
    """Whether the settings are of a version whose searches had no list of rounds."""
    return "measures" in value and "rounds" not in value


def check_settings(value: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check resolved settings of a search. Raises TenasError with a sentence that begins with ``where``."""
    settings = checked(Settings, value, where).model_dump()
    for number, entry in enumerate(settings["rounds"], start=1):
        here = f"{where}: round {number}"
        settings["rounds"][number - 1] = model = checked(KINDS[_kind(entry, here)], entry, here).model_dump(mode="json")
        if "measures" in model:
            model["measures"] = measure_settings(model["measures"], here)
    check_search(settings)
    return settings


def check_search(settings: Mapping[str, Any]) -> None:
    """Raise TenasError unless each round can follow the one before and the last one ends the search."""
    space = get_space(settings["space"])
    mask = space.full_mask(settings["exclude"])
    kinds = [entry["kind"] for entry in settings["rounds"]]
    if not kinds:
        raise TenasError(
            f"'exclude' leaves nothing to search, or 'rounds' has no round: {space.name} has the operators "
            f"{', '.join(space.operators)}."
        )
    order = {"operators": 0, "edges": 1, "cells": 2, "training": 3}
    if [order[kind] for kind in kinds] != sorted(order[kind] for kind in kinds):
        raise TenasError(f"The rounds are {', '.join(kinds)}; their order must be operators, edges, cells, training.")
    if "training" in kinds and "cells" not in kinds:
        raise TenasError("A round of trainings needs a round of cells before it.")
    left = operators_left(mask)
    for round, entry in zip(schedule(settings), settings["rounds"], strict=True):
        signed = [name for name, (measure, _) in measures_of(entry).items() if measure.signed] if "measures" in entry else []
        if entry.get("change") == "log" and signed:
            raise TenasError(
                f"The measure {signed[0]} can be negative and has no logarithm: 'change' must be relative or absolute."
            )
        for name in entry.get("own_weights", ()):
            if entry.get("images") != "own" or name not in measures_of(entry):
                raise TenasError(
                    f"Round {round.number}: 'own_weights' names {name!r}, which "
                    + ("needs 'images: own'." if name in measures_of(entry) else "is not among its measures.")
                )
        if round.stage == "operators":
            left = after(left, round)
        elif round.stage == "edges" and max(left.values()) > 1:
            raise TenasError(f"Round {round.number} of edges needs rounds before it that leave one operator on each edge.")
        elif round.stage == "cells":
            first = "cells" not in kinds[: round.number - 1]
            if first != (entry["sample"] is not None):
                raise TenasError(
                    f"Round {round.number} of cells {'needs' if first else 'cannot have'} the key 'sample': "
                    "the first one draws cells, the others measure those that are left."
                )
            if first and entry["sample"] != "all" and entry["keep"] > round.trials:
                raise TenasError(f"Round {round.number} draws {round.trials} cells and cannot keep {entry['keep']}.")
        elif entry.get("training"):
            check_network(space, entry["training"], f"Round {round.number}")
    # A search that ends with a mask must leave no choice.
    if kinds[-1] in ("operators", "edges") and (max(left.values()) > 1 or ("edges" not in kinds and space.edges_rounds(1))):
        raise TenasError("The rounds leave a choice: they must prune to one operator per edge, or end with cells or trainings.")


def schedule(settings: Mapping[str, Any]) -> tuple[Round, ...]:
    """List the rounds of a search with their numbers of subjects: known beforehand, so the graph of jobs is static."""
    space = get_space(settings["space"])
    left = operators_left(space.full_mask(settings["exclude"]))
    spanned, held, rounds = space.size_of(left), 0, []
    for number, entry in enumerate(settings["rounds"], start=1):
        match entry["kind"]:
            case "operators":
                edge = None if entry["edge"] is None else (entry["edge"][0], entry["edge"][1])
                round = space.operators_round(number, left, entry["prune"], edge)
                left = after(left, round)
                spanned = space.size_of(left)
            case "edges":
                if not space.edges_rounds(number):
                    raise TenasError(f"Round {number} prunes edges, but the cells of {space.name} keep all of them.")
                (round,) = space.edges_rounds(number)
                spanned = 1
            case "cells":
                held = _sampled(entry, spanned, number) if entry["sample"] is not None else held
                round = Round(number, "cells", 0, held, keep=min(entry["keep"], held))
                held = round.keep
            case "training":
                round = Round(number, "training", 0, held, keep=min(entry["keep"], held))
                held = round.keep
        rounds.append(round)
    return tuple(rounds)


def _sampled(entry: Mapping[str, Any], spanned: int, number: int) -> int:
    """Maximum number of cells that a round of cells draws, with ``spanned`` cells left."""
    if is_list(entry["sample"]):
        if entry["listed"] is None:
            raise TenasError(f"Round {number} has a list of cells, but not the key 'listed' that says how many they are.")
        return int(entry["listed"])
    return spanned if entry["sample"] == "all" else int(entry["sample"])


def find_round(settings: Mapping[str, Any], number: int) -> Round:
    """Get the round ``number``. Raises TenasError if there is none."""
    rounds = schedule(settings)
    if not 1 <= number <= len(rounds):
        raise TenasError(f"There is no round {number}; this search has rounds 1 to {len(rounds)}.")
    return rounds[number - 1]
