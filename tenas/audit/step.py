"""A round under audit: where its files are, what was left before it, and what is left after it as the files have it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tenas import layout
from tenas.audit.case import Case
from tenas.scoring.subjects import Cells
from tenas.search.limits import Limits
from tenas.search.shortlist import read_shortlist
from tenas.spaces import Mask, Round


class State(NamedTuple):
    """What is left of a search, and the file that has it."""

    value: Mask | Cells
    path: Path

    @property
    def mask(self) -> Mask:
        """The mask that rounds of operators and edges leave, and the search starts from."""
        assert isinstance(self.value, Mask)
        return self.value

    @property
    def cells(self) -> Cells:
        """The list that rounds of cells and trainings leave."""
        assert isinstance(self.value, Cells)
        return self.value


class Step(NamedTuple):
    """A round of a seed's search. ``limits``: of the run, None where it has none."""

    case: Case
    seed: int
    round: Round
    before: State
    limits: Limits | None

    @property
    def entry(self) -> Mapping[str, Any]:
        """The round's settings."""
        entry: Mapping[str, Any] = self.case.settings["rounds"][self.round.number - 1]
        return entry

    def file(self, pattern: str, **wildcards: int) -> Path:
        """A file of the round, by its pattern of the layout."""
        return layout.path(pattern, self.case.folder, seed=self.seed, round=self.round.number, **wildcards)

    @property
    def limits_files(self) -> list[Path]:
        return [] if self.limits is None else [layout.path(layout.LIMITS, self.case.folder)]

    def after(self, value: Mask | Cells | None, *, sound: bool = True) -> State | None:
        """What follows from the decision; None when there is neither that nor a written one.

        After faulty measurements what was written is the likelier one: what comes next is then judged by itself.
        """
        path = self.file(layout.STATE[self.round.stage])
        if not sound or value is None:
            value = self._written(path) or value
        return None if value is None else State(value, path)

    def _written(self, path: Path) -> Mask | Cells | None:
        if self.case.ledger.hash(path) is None:
            return None
        with self.case.ledger.damage(path):
            if self.round.stage in ("operators", "edges"):
                return self.case.space.read_mask(path)
            return read_shortlist(path, self.case.space)
        return None

    def tell(self, text: str) -> None:
        self.case.trail.append(text)
