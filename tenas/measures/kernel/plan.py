"""Plan the reverse pass of a tape as programs of the compiled kernels: on a CPU, one vector of cotangents at a time.

The cotangent of a value (n, C, H, W) is an array (n, C, H + 2 halo, W + 2 halo, lanes) with a border of zeros, so that
kernels need no special cases at edges. Most values have no array. Walking the tape backwards, each operator adds a contribution
to its inputs, and a value

- with a single contribution that is a scaled array is that array (sums, averages, concatenations);
- otherwise is computed from all its contributions at once, sample by sample, while the sample is in cache: averages and skips
  as plain sums; convolutions and poolings as gathers at listed positions. Behind a ReLU only its active positions are listed,
  for all convolutions that read it: at the others the cotangent is zero, for all lanes.

The sums over a value's cotangent are taken as soon as it is computed: sum g * patch for every convolution with this output, over
positions where the patch is not zero. Batch normalisation follows in closed form from those sums: the cotangent at its input,
gain * g + shift + slope * z, is not stored either, but computed where it is needed, one sample at a time.

Operators without a kernel go through the rules in plain torch (``ntk_rules``), with a change of layout before and after.
``README.md`` in this folder has a picture and an example.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from tenas.measures.kernel import rules
from tenas.measures.kernel.compiled import operations, vector
from tenas.measures.kernel.cotangents import Base, Contribution, Cotangent, Dense, FromTorch, Pulled
from tenas.measures.kernel.geometry import Pair, halo_of
from tenas.measures.kernel.program import Program, assemble
from tenas.measures.kernel.windows import window_at
from tenas.measures.kernel.workspace import LANES, Workspace
from tenas.measures.ntk_primitives import PRIMITIVES
from tenas.measures.ntk_reverse import empty_rows, parameter_columns, reverse_record, seed
from tenas.measures.ntk_tape import Record, Tape, Value

# Number of samples whose products are summed in the network's dtype before they are added up in float64.
SAMPLES = 16

# Cotangents in plain torch by value, and the number of lanes in use.
Step = Callable[[dict[Value, Tensor], int], None]
RULES: dict[object, Callable[[Plan, Record], bool]] = {
    op: getattr(rules, primitive.compiled) for op, primitive in PRIMITIVES.items() if primitive.compiled
}


@dataclasses.dataclass(eq=False)
class Pull:
    """A step that fills a base: its contributions, and its program, which is made when every base has an array."""

    base: Base
    contributions: Sequence[Pulled]
    program: Program = dataclasses.field(init=False)


class Plan:
    """Reverse pass of a tape for a vector of cotangents: planned once, run for each chunk of LANES samples.

    The plan depends on the tape's operators and shapes only. ``load`` reads the present values of the tape, ``run`` is the pass,
    ``release`` frees the values; all three can be called again with other values in the same tape.

    For rules: ``cotangent`` of a record's output, ``add`` for contributions to its inputs, ``steps``, ``workspace``, and
    ``gradients`` (parameters' elements, lanes), of which a parameter has the rows ``columns[parameter]``. ``left_to_torch``: the
    operators that go through plain torch, in the order of the pass. ``reusable``: whether no part of the plan depends on values.
    """

    def __init__(self, tape: Tape, logits: Value) -> None:
        self.tape = tape
        self.logits = logits
        self.n = len(logits.tensor)
        self.workspace = Workspace(self.n, logits.tensor.dtype, self._find_halos())
        self.template = vector.template(self.workspace.dtype, LANES)
        self.columns = {parameter: columns for columns, parameter in parameter_columns(tape)}
        self.gradients = np.zeros((max(columns.stop for columns in self.columns.values()), LANES))
        self.steps: list[Step] = []
        self.bases: list[Base] = []
        self.pulls: list[Pull] = []
        self.table_bytes = 0
        self.contributions: dict[Value, list[Contribution]] = {logits: [FromTorch()]}
        self.left_to_torch: list[object] = []
        self.reusable = True
        for record in reversed(tape.records):
            if any(output in self.contributions for output in record.outputs):
                rule = RULES.get(record.op)
                if rule is None or not self.fits(record) or not rule(self, record):
                    self._leave_to_torch(record)
        self.workspace.place_bases(self.bases)
        for pull in self.pulls:
            pull.program = assemble(self.workspace, pull.base, pull.contributions)
        self._link = self._tabulate()

    def _tabulate(self) -> Callable[[], None]:
        """Put the instructions of all programs into one table. Returns a function that writes the addresses of a run into it."""
        if not self.pulls:
            return lambda: None
        table = np.concatenate([program.records for program in self.programs])
        self.table_bytes = table.nbytes
        start = 0
        for pull in self.pulls:
            stop = start + len(pull.program.records)
            pull.program = dataclasses.replace(pull.program, records=table[start:stop])
            start = stop
        return self.workspace.link(table.view(np.int64))

    def load(self) -> None:
        """Read the present values of the tape."""
        self.workspace.load()
        self._link()

    def release(self) -> None:
        """Return the arrays of a run to the pool."""
        self.workspace.release()

    @property
    def nbytes(self) -> int:
        """Memory of the plan between runs, in bytes."""
        return self.workspace.nbytes + self.table_bytes + self.gradients.nbytes

    def run(self) -> Tensor:
        """Gradients of all samples' sums of logits: (n, parameters)."""
        rows = empty_rows(self.tape, self.n)
        for start in range(0, self.n, LANES):
            stop = min(start + LANES, self.n)
            self.gradients.fill(0)
            cotangents = {self.logits: seed(self.logits.tensor, start, stop)}
            for step in self.steps:
                step(cotangents, stop - start)
            rows[start:stop] = torch.from_numpy(self.gradients[:, : stop - start].T)
            for parameter, columns in self.columns.items():
                if parameter in cotangents:
                    rows[start:stop, columns] += cotangents[parameter].flatten(1)
        return rows

    def close(self) -> None:
        """``release``, and break reference cycles, to free all memory without garbage collection."""
        self.workspace.close()
        self.steps.clear()
        self.bases.clear()
        self.pulls.clear()
        self.contributions.clear()

    @property
    def programs(self) -> list[Program]:
        """All programs, in order of execution."""
        return [pull.program for pull in self.pulls]

    # --- walk of the tape

    def fits(self, record: Record) -> bool:
        """Whether the values of a record are batches of images in the dtype of the logits."""
        if "fits" not in record.cache:
            images = [v.tensor for v in (record.out, *record.inputs) if v is not None and v.tensor.ndim == 4]
            out = record.out.tensor
            record.cache["fits"] = (
                out.ndim == 4 and len(out) == self.n and all(t.dtype == self.workspace.torch_dtype and t.numel() for t in images)
            )
        return bool(record.cache["fits"])

    def _find_halos(self) -> dict[Pair, int]:
        """Border for images of each size, so that all reads of their cotangents stay within the array."""
        halos: dict[Pair, int] = {}
        for record in self.tape.records:
            window = window_at(record)
            if window is not None:
                x, out = (cast(Pair, value.shape[2:]) for value in (record.args[0], record.out))
                halos[out] = max(halos.get(out, 0), halo_of(window, x, out))
        return halos

    def add(self, value: Value, contribution: Contribution) -> None:
        self.contributions.setdefault(value, []).append(contribution)

    def cotangent(self, value: Value, *, plain: bool = False) -> Cotangent:
        """Cotangent of a value after all its consumers have been visited. ``plain``: without coupling."""
        contributions = self.contributions[value]
        if len(contributions) == 1 and isinstance(only := contributions[0], Dense):
            whole = only.mask is None and only.cotangent.base.grid == self.workspace.grid(value)
            if whole and not (plain and only.cotangent.coupling is not None):
                return only.cotangent
        pulled = [c for c in contributions if not isinstance(c, FromTorch)]
        if len(pulled) < len(contributions):
            arrived = self._pull(value, [], arriving=True)
            cotangent = self._pull(value, [*pulled, Dense(arrived)]) if pulled else arrived
        else:
            cotangent = self._pull(value, pulled)
        self.contributions[value] = [Dense(cotangent)]
        return cotangent

    def _pull(self, value: Value, contributions: Sequence[Pulled], *, arriving: bool = False) -> Cotangent:
        """Add a step that fills a new base with a value's cotangent, from contributions or plain torch, and takes its sums."""
        number = len(self.steps)
        base = Base(value.shape[1], self.workspace.grid(value), created=number, last=number)
        self.bases.append(base)
        for contribution in contributions:
            contribution.cotangent.base.last = number
        pull = Pull(base, contributions)
        self.pulls.append(pull)

        def step(cotangents: dict[Value, Tensor], lanes: int) -> None:
            if arriving:
                g = cotangents.pop(value, None)
                if g is None or lanes < LANES:
                    base.interior().zero_()
                if g is not None:
                    base.interior()[..., :lanes] = g.permute(1, 2, 3, 4, 0)
            if base.wants:
                base.sums.fill(0)
            for first in range(0, self.n, SAMPLES):
                base.part.fill(0)
                operations.run(self.template, pull.program.records, first, min(first + SAMPLES, self.n))
                if base.wants:
                    base.sums += base.part

        self.steps.append(step)
        return Cotangent(base, 0, np.ones(base.channels))

    def _leave_to_torch(self, record: Record) -> None:
        for output in record.outputs:
            if output in self.contributions and not all(isinstance(c, FromTorch) for c in self.contributions[output]):
                self._to_torch(output)
        self.left_to_torch.append(record.op)
        self.steps.append(lambda cotangents, lanes: reverse_record(record, cotangents))
        for value in record.inputs:
            if value.active and value not in self.columns:
                contributions = self.contributions.setdefault(value, [])
                if not any(isinstance(c, FromTorch) for c in contributions):
                    contributions.append(FromTorch())

    def _to_torch(self, value: Value) -> None:
        """Add a step that passes a value's cotangent to the rules in plain torch."""
        cotangent = self.cotangent(value, plain=True)
        base, channel = cotangent.base, cotangent.channel
        base.last = len(self.steps)

        def step(cotangents: dict[Value, Tensor], lanes: int) -> None:
            gain = torch.from_numpy(cotangent.gain).to(self.workspace.torch_dtype).view(-1, 1, 1)
            g = base.interior()[:, channel : channel + len(gain), ..., :lanes]
            cotangents[value] = g.permute(4, 0, 1, 2, 3) * gain

        self.steps.append(step)
