"""List programs as text, to inspect the plan of a network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_type_hints

from tenas.measures.kernel.instructions import NO_DATA, NOWHERE, Address, Data, Images, Instruction, Place, Positions
from tenas.measures.kernel.program import Program
from tenas.measures.kernel.workspace import Region, address

# Most numbers of a constant in a listing.
SHOWN = 4


def dump(program: Program) -> str:
    """List a program: the base that it fills, then one line per instruction with its fields.

    ``array0[2, -1, -1]`` is channel 2 of the first array of cotangents, one row above and one column left of the image, where the
    border begins. ``scratch`` arrays have one sample, ``sums[5]`` is row 5 of the base's sums. Lists of numbers show the first
    few and their count, tables their shape; positions their number, per image if all images have the same. The program's plan
    must be loaded.
    """
    base, workspace = program.base, program.workspace
    names = _Names([Region("sums", address(base.part), base.part.nbytes), *workspace.regions()], workspace.vector_bytes)
    name = names.place(workspace.place(base.array, base.grid)).partition("[")[0]
    size = f"{base.channels}x{base.grid.height}x{base.grid.width}"
    lines = [f"{name}: {size}, halo {base.grid.halo}, {len(base.part)} rows of sums"]
    for number, instruction in enumerate(program.instructions):
        lines.append(f"{number:3}  {type(instruction).__name__.lower():<11}{' '.join(names.fields(instruction))}")
    return "\n".join(lines)


class _Names:
    """Names of the memory at addresses."""

    def __init__(self, regions: list[Region], vector_bytes: int) -> None:
        self.regions = regions
        self.vector_bytes = vector_bytes

    def fields(self, instruction: Instruction) -> Iterator[str]:
        """Fields of an instruction, without unused ones."""
        for (name, kind), value in zip(get_type_hints(type(instruction)).items(), instruction, strict=True):
            if isinstance(value, Images):
                yield "{}x{}x{}".format(*value)
            elif isinstance(value, Place):
                yield f"{name}={self.place(value)}"
            elif isinstance(value, Data):
                if value != NO_DATA:
                    yield f"{name}={self.constant(value.address)}"
            elif isinstance(value, Positions):
                yield f"{name}={self.count(value)}"
            elif not isinstance(value, int) or kind is not Address:
                yield f"{name}={value}"
            elif value != NOWHERE:
                yield f"{name}={self.constant(value)}"

    def region(self, address: int) -> tuple[Region, int]:
        """Region of an address, and its offset in bytes."""
        for region in self.regions:
            if region.address <= address < region.address + region.bytes:
                return region, address - region.address
        return Region("unknown", address, 0), 0

    def place(self, place: Place) -> str:
        region, offset = self.region(place.address)
        if region.grid is None:
            return region.name
        channel, rest = divmod(offset // self.vector_bytes, region.grid.plane)
        y, x = divmod(rest, region.grid.row)
        return f"{region.name}[{channel}, {y - region.grid.halo}, {x - region.grid.halo}]"

    def count(self, positions: Positions) -> str:
        if positions.dense:
            return f"{positions.dense}/image"
        starts = self.region(positions.starts)[0].values
        return "unknown" if starts is None else f"{starts[-1]}/batch"

    def constant(self, address: int) -> str:
        region, offset = self.region(address)
        if region.values is None:
            return f"{region.name}[{offset // self.vector_bytes}]"
        if region.values.ndim > 1:
            return f"({' x '.join(map(str, region.values.shape))})"
        shown = [f"{number:.4g}" for number in region.values[:SHOWN]]
        more = [] if len(region.values) <= SHOWN else [f"... {len(region.values)}"]
        return f"({', '.join(shown + more)})"
