"""Audit the limits of a run: consistent with each other, with the settings and with the table of latencies.

Costs of operators are not counted again, as that takes torch; the record's own hash covers them.
"""

import os
from typing import Any

from tenas import layout
from tenas.audit.case import Case
from tenas.audit.ledger import mapping
from tenas.benchmark.builtin import index_path
from tenas.benchmark.index import read_column
from tenas.files import read_json
from tenas.search.limits import UNITS, Limits, from_json, resolve


def look_at_limits(case: Case) -> Limits | None:
    """Check and return the limits of a run; None if it has none, or if they cannot be read."""
    path, limits = layout.path(layout.LIMITS, case.folder), case.settings["limits"]
    if not limits:
        if path.exists():
            case.ledger.note(f"{path} is no part of the run, whose settings have no limits: an earlier run has left it.")
        return None
    value = case.ledger.json(path, "limits")
    if not value:
        return None
    case.ledger.sealed(path, value)
    table_file = index_path(limits["latency"]["table"], case.space) if "latency" in limits else None
    recorded = mapping(mapping(value.get("made_by")).get("inputs"))
    if table_file is not None and not os.path.isfile(table_file):
        case.ledger.note(f"The table {table_file} of the latency limit is not here: its figures were taken as they are.")
        table_file = None
    case.made_by(path, "limits", mapping(value.get("made_by")), [table_file] if "latency" in limits else [])
    with case.ledger.damage(path):
        found = from_json(value)
        latency = mapping(value.get("latency"))
        figures = dict(latency["values"]) if latency else None
        if table_file is not None and case.ledger.hash(table_file) in recorded.values():
            figures = read_column(table_file, limits["latency"]["column"], case.space)
        again = resolve(
            case.space, case.settings["exclude"], limits, {name: sums for name, (sums, _) in found.sums.items()}, figures
        )
        again |= {"network": _network(case, value)}
        written = {key: part for key, part in value.items() if key not in ("made_by", "record_sha256")}
        if written != again:
            wrong = sorted(key for key in written.keys() | again.keys() if written.get(key) != again.get(key))
            case.ledger.fault(path, f"has other numbers under {', '.join(wrong)} than follow from its settings, costs and table")
        texts = [f"at most {most:,.0f} {UNITS[name]}" for name, (_, most) in found.sums.items()]
        texts += [f"at most {found.most:g} of {latency['column']}"] if latency else []
        case.trail.append(f"limits {path}: {', '.join(texts)}")
        return found
    return None


def _network(case: Case, value: dict[str, Any]) -> dict[str, Any]:
    """The network that the limits apply to: that of the settings, with classes and side of the images."""
    network = dict(case.settings["network"])
    side = network.pop("side", None)
    card_file = case.prepared(layout.CARD)
    if card_file is None or case.ledger.hash(card_file) is None:
        recorded = mapping(value.get("network"))
        return {**network, "classes": recorded.get("classes"), "side": side or recorded.get("side")}
    card = read_json(card_file, "data card")
    return {**network, "classes": card.get("classes"), "side": side or card.get("side")}
