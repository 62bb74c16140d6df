"""The topology space of NAS-Bench-201 (Dong and Yang, ICLR 2020; NATS-Bench "tss"): one cell, 4 nodes, 6 edges, 5 operators."""

from types import MappingProxyType

from tenas.spaces.base import Edge, Genotype, Space


class NasBench201(Space):
    """15,625 cells; the text of a cell is ``|op~0|+|op~0|op~1|+|op~0|op~1|op~2|``."""

    name = "nas-bench-201"
    operators = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
    cell_types = ("cell",)
    inputs = 1
    nodes = 4
    networks = "tenas.networks.nas_bench_201"
    edges = tuple(Edge(target, source) for target in range(1, 4) for source in range(target))

    # A residual block adds a convolution of stride 2, padded, to an average pooling that is not: their sizes differ at odd sides.
    side_step = 4
    listed_cells = len(operators) ** len(edges)
    short_trainings = MappingProxyType(
        {
            "cifar10": "cifar10_valid_e12",
            "cifar100": "cifar100_valid_e12",
            "imagenet16-120": "imagenet16_valid_e12",
        }
    )

    def canonical_form(self, genotype: Genotype) -> str:
        """A text that two cells share when they are isomorphic: the same sums of the same operators.

        ``skip_connect`` is taken for the identity, ``none`` for nothing, and so is a pooling of nothing. A convolution of nothing
        stays: its batch normalisation still adds a learned constant. What does not reach the output is left out. An empty text is
        a cell without an output. The 15,625 cells have 5,545 forms.

        The benchmark's own count is 6,466 (NATS-Bench, table 1): its text takes a convolution of nothing for nothing, but does
        not see that a node is empty when it has more than one edge, nor that sums are equal when one of them is reached by a
        skip.
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


SPACE = NasBench201()
