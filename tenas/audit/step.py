"""A round under audit: its files, the state before it, and the state after it."""

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
    """State of a search between rounds, and its file."""

    value: Mask | Cells
    path: Path

    @property
    def mask(self) -> Mask:
        """The mask: initial state, and state after rounds of operators and edges."""
        assert isinstance(self.value, Mask)
        return self.value

    @property
    def cells(self) -> Cells:
        """The list of cells: state after rounds of cells and trainings."""
        assert isinstance(self.value, Cells)
        return self.value


class Step(NamedTuple):
    """A round of the search of one seed. ``limits``: of the run, None if it has none."""

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
        """State after the round: ``value``, the repeated decision, or the written one if measurements are faulty.

        The written state lets later rounds be judged by themselves. None if there is neither.
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
