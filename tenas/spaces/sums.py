"""Costs of a cell that are sums over its operators: parameters, multiply-adds. No torch."""

from dataclasses import dataclass

from tenas.spaces.base import Genotype, Mask, Space


@dataclass(frozen=True)
class Sums:
    """A cost that is the sum of ``base`` and of one number per operator, ``operators[cell type][edge][operator]``."""

    space: Space
    base: int
    operators: tuple[tuple[tuple[int, ...], ...], ...]

    def of(self, genotype: Genotype) -> int:
        """The cost of a cell."""
        places = {(edge.target, edge.source): index for index, edge in enumerate(self.space.edges)}
        return self.base + sum(
            self.operators[number][places[choice.target, choice.source]][self.space.operators.index(choice.operator)]
            for number, choices in enumerate(genotype.cells)
            for choice in choices
        )

    def extreme(self, mask: Mask, largest: bool = False) -> int:
        """The smallest (or largest) cost of all cells that a mask spans."""
        best, total = (max if largest else min), self.base
        for rows, costs in zip(mask.active, self.operators, strict=True):
            for target in range(self.space.inputs, self.space.nodes):
                edges = [
                    best(cost for cost, on in zip(costs[index], rows[index], strict=True) if on)
                    for index, edge in enumerate(self.space.edges)
                    if edge.target == target and any(rows[index])
                ]
                kept = self.space.kept_edges(sum(edge.target == target for edge in self.space.edges))
                total += sum(sorted(edges, reverse=largest)[:kept])
        return total
