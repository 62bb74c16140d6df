"""Parts of networks of all kinds: edges with their operators, sums, concatenations."""

from collections.abc import Iterable, Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from tenas.spaces.base import Space


class Edge(nn.ModuleDict):
    """Operators by name: in a supernet all candidates of the edge, so that its weights do not depend on the mask.

    An operator that adds nothing (``none``) has no module. ``place``: cell type and number of the edge in the space.
    """

    def __init__(
        self, space: Space, place: tuple[str, int], names: Iterable[str], inputs: int, outputs: int, stride: int
    ) -> None:
        made = {name: space.operation(name, inputs, outputs, stride) for name in names}
        super().__init__({_key(name): module for name, module in made.items() if module is not None})
        self.place, self.names = place, tuple(made)

    def chosen(self, names: Sequence[str]) -> list[nn.Module | None]:
        """The modules of ``names``, as a plain list, since they are registered here; None for one that adds nothing."""
        return [self[name] if name in self else None for name in names]  # noqa: SIM401 - a ModuleDict has no get

    def __getitem__(self, name: str) -> nn.Module:
        return super().__getitem__(_key(name))

    def __contains__(self, name: str) -> bool:
        return super().__contains__(_key(name))

    def named(self) -> list[tuple[str, nn.Module]]:
        """The operators that have a module, by name."""
        return [(name, self[name]) for name in self.names if name in self]


@cache
def _key(name: str) -> str:
    """What an operator is registered as: modules' names have no dots, and are no attributes of modules (``double``, ``half``)."""
    key = name.replace(".", "-")
    return f"{key}-" if hasattr(nn.ModuleDict(), key) or key in ("place", "names") else key


def drop_path(x: Tensor, probability: Tensor) -> Tensor:
    """Zero each sample of x (n, c, h, w) with ``probability`` and scale the others up, which preserves the mean.

    Source: Larsson, Maire, Shakhnarovich, "FractalNet", ICLR 2017, as implemented in DARTS.
    """
    kept = torch.rand((len(x), 1, 1, 1), device=x.device) >= probability
    return x * (kept / (1 - probability)).to(x.dtype)


def average(
    operators: Sequence[nn.Module | None],
    source: int,
    nodes: Sequence[Tensor],
    rectified: dict[int, Tensor],
    drop_probability: Tensor | None = None,
) -> Tensor | None:
    """Average of the active operators of an edge that reads node ``source``; None if they add nothing.

    ``rectified``: ReLU of nodes by number, filled on demand and shared by all edges of a cell. ``drop_probability``: of
    drop-path, for all operators but identities.
    """
    total = None
    for operator in operators:
        if operator is None:
            continue
        if getattr(operator, "reads_rectified", False):
            if source not in rectified:
                rectified[source] = relu(nodes[source])
            out = operator(rectified[source])
        else:
            out = operator(nodes[source])
        if drop_probability is not None and not isinstance(operator, nn.Identity):
            out = drop_path(out, drop_probability)
        total = out if total is None else total + out
    return total / len(operators) if total is not None and len(operators) > 1 else total


class Residual(nn.Module):
    """The sum of ``body`` and its input: for user-defined operators that preserve the shape."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x + self.body(x)
        return added


class Concatenate(nn.Module):
    """Features of several origins as channels of one tensor: (n, c_i, h, w) each to (n, sum of c_i, h, w).

    ``replicas``: number of networks side by side in the channels (tenas.networks.grouped); concatenated network by network.
    """

    def __init__(self, replicas: int = 1) -> None:
        super().__init__()
        self.replicas = replicas

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        if self.replicas == 1:
            return torch.cat(tuple(parts), 1)
        return torch.cat([part.unflatten(1, (self.replicas, -1)) for part in parts], 2).flatten(1, 2)
