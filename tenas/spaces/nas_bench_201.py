"""The topology space of NAS-Bench-201 (Dong and Yang, ICLR 2020; NATS-Bench "tss"): one cell, 4 nodes, 6 edges, 5 operators."""

import re
from collections.abc import Iterator
from itertools import product

from tenas.errors import TenasError
from tenas.spaces.base import Choice, Edge, Genotype, Space, WrongFormError


class NasBench201(Space):
    name = "nas-bench-201"
    operators = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
    cell_types = ("cell",)
    inputs = 1
    nodes = 4
    edges = tuple(Edge(target, source) for target in range(1, 4) for source in range(target))
    size = len(operators) ** len(edges)

    def parse(self, text: str) -> Genotype:
        """Read ``|op~0|+|op~0|op~1|+|op~0|op~1|op~2|``."""
        choices = []
        nodes = text.strip().split("+")
        for target, node in enumerate(nodes, start=1):
            parts = re.fullmatch(r"\|(?:[^|~+]+~\d+\|)+", node.strip())
            if parts is None:
                raise WrongFormError(
                    f"{text!r} is not a cell of {self.name}; expected the form |op~0|+|op~0|op~1|+|op~0|op~1|op~2|."
                )
            for part in node.strip().strip("|").split("|"):
                operator, source = part.split("~")
                choices.append(Choice(target, int(source), operator))
        genotype = self._genotype([choices], text)
        if len(choices) != len(self.edges):
            raise TenasError(f"{text!r} has {len(choices)} operators; a cell of {self.name} has {len(self.edges)}.")
        return genotype

    def text(self, genotype: Genotype) -> str:
        (cell,) = genotype.cells
        return "+".join(
            "|" + "".join(f"{c.operator}~{c.source}|" for c in cell if c.target == target) for target in range(1, self.nodes)
        )

    def canonical_form(self, genotype: Genotype) -> str:
        """The sum of operators that a cell computes, as a text: isomorphic cells have the same one.

        ``skip_connect`` is taken for the identity, ``none`` for nothing, and so is a pooling of nothing. A convolution of nothing
        stays: its batch normalisation still adds a learned constant. What doesn't reach the output is left out. An empty text is
        a cell without an output. The 15,625 cells have 5,545 forms.

        The benchmark's own count is 6,466 (NATS-Bench, table 1): its text takes a convolution of nothing for nothing, but doesn't
        see that a node is empty when it has more than one edge, nor that sums are equal when one of them is reached by a skip.
        """
        (cell,) = genotype.cells
        nodes = [["x"]]
        for target in range(1, self.nodes):
            terms = []
            for _, source, operator in (choice for choice in cell if choice.target == target):
                if operator == "skip_connect":
                    terms += nodes[source]
                elif operator != "none" and (nodes[source] or operator != "avg_pool_3x3"):
                    terms.append(f"{operator}({'+'.join(nodes[source])})")
            nodes.append(sorted(terms))
        return "+".join(nodes[-1])

    def genotypes(self) -> Iterator[Genotype]:
        """All 15,625 cells, the last edge's operator changing fastest (not the benchmark's index order)."""
        for operators in product(self.operators, repeat=len(self.edges)):
            yield Genotype(self, (tuple(Choice(*edge, op) for edge, op in zip(self.edges, operators, strict=True)),))
