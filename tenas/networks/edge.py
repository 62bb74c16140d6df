"""An edge of a cell, or a layer of a chain, with the operators that it is built with."""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from tenas.spaces.base import Space


class Edge(nn.ModuleDict):
    """Operators by name: in a supernet all candidates of the edge, so that its weights do not depend on the mask.

    An operator that adds nothing (``none``) has no module. ``place``: cell type and number of the edge in the space.
    """

    def __init__(
        self, space: Space, place: tuple[str, int], names: Iterable[str], inputs: int, outputs: int, stride: int
    ) -> None:
        made = {name: space.operation(name, inputs, outputs, stride) for name in names}
        super().__init__({name: module for name, module in made.items() if module is not None})
        self.place = place

    def chosen(self, names: Sequence[str]) -> list[nn.Module | None]:
        """The modules of ``names``, as a plain list, since they are registered here; None for one that adds nothing."""
        return [self[name] if name in self else None for name in names]  # noqa: SIM401 - a ModuleDict has no get


class Residual(nn.Module):
    """The sum of ``body`` and its input: for user-defined operators that preserve the shape."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x + self.body(x)
        return added
