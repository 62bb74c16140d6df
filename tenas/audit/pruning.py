"""Audit a round that prunes: repeat its ranking from the scores, its mask from the ranking."""

from collections.abc import Mapping, Sequence
from typing import Any

from tenas import layout
from tenas.audit.scores import Scores, scores_of_round
from tenas.audit.step import State, Step
from tenas.errors import TenasError
from tenas.measures.catalogue import get_measure
from tenas.scoring.subjects import Trials, trials_of
from tenas.search.prune import rank_round


def follow_pruning(step: Step) -> State | None:
    """Repeat the decisions of a round of operators or edges. Returns the state after it."""
    case, ledger, ranking, mask = step.case, step.case.ledger, step.file(layout.RANKING), step.file(layout.MASK)
    subjects = trials_of(step.before.mask, step.round, step.entry)
    try:
        case.space.trials(subjects.mask, step.round)
    except TenasError as error:
        ledger.fault(step.before.path, f"does not go with the round after it: {error}")
        ledger.hash(ranking)
        return step.after(None)
    scores, values, sound = scores_of_round(step, subjects, step.before.path)
    if values is None:
        ledger.hash(ranking)
        return step.after(None)
    columns, rows, after = rank_round(step.entry, subjects, values, step.limits)
    ledger.table(ranking, columns, rows, "is not the ranking that its scores lead to")
    case.decision(
        mask, "mask", "prune", after.to_json(), [step.before.path, ranking, *step.limits_files],
        "is not the mask that its ranking leads to", step.entry,
    )  # fmt: skip
    _tell(step, rows, scores, subjects)
    return step.after(after, sound=sound)


def _tell(step: Step, rows: Sequence[Mapping[str, Any]], scores: Scores, subjects: Trials) -> None:
    """Report what a round has pruned, and by which rows of which files."""
    folder = scores.paths[0].parent
    step.tell(f"  round {step.round.number}, {step.round.trials} trials; measurements in {folder}: {scores.counts}")
    for row in rows:
        if not row["pruned"]:
            continue
        cell = f"{row['cell']} " if len(step.case.space.cell_types) > 1 else ""
        changes = []
        for reference in step.entry["measures"]:
            name = get_measure(reference).name
            # One repeat has no error.
            error = f" +- {row[f'{name}_se']:.2g}" if row[f"{name}_se"] != "" else ""
            changes.append(f"{name} {row[f'{name}_change']:+.4g}{error} (rank {row[f'{name}_rank']:g})")
        share = "" if row["pruned_share"] == "" else f" share {row['pruned_share']:.2f}"
        step.tell(
            f"    {cell}{row['target']}<-{row['source']} loses {row['operator']:<13}{share}: "
            f"{', '.join(changes)}; rows {scores.places(row['trial'])}, "
            f"whole {scores.places(subjects.whole(row['trial']))}"
        )
