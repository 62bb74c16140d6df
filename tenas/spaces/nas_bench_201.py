"""The topology space of NAS-Bench-201 (Dong and Yang, ICLR 2020; NATS-Bench "tss"): one cell, 4 nodes, 6 edges, 5 operators."""

from types import MappingProxyType

from tenas.spaces.base import Edge, Genotype, Space


class NasBench201(Space):
    """The space of 15,625 cells with texts ``|op~0|+|op~0|op~1|+|op~0|op~1|op~2|``."""

    name = "nas-bench-201"
    operators = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
    cell_types = ("cell",)
    inputs = 1
    nodes = 4
    networks = "tenas.networks.nas_bench_201"
    edges = tuple(Edge(target, source) for target in range(1, 4) for source in range(target))

    # A residual block adds a padded convolution of stride 2 to an unpadded average pooling: their sizes differ for odd sides.
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
        """A text shared by all isomorphic cells: the same sums of the same operators.

        ``skip_connect`` is the identity; ``none`` and a pooling of an empty node add nothing. A convolution of an empty node
        stays: its batch normalisation still adds a learned constant. Operators that do not reach the output are left out. A cell
        without an output has an empty text. The 15,625 cells have 5,545 forms.

        The benchmark's own count is 6,466 (NATS-Bench, table 1): its text drops convolutions of empty nodes, but misses empty
        nodes with more than one edge, and equal sums of which one is reached by a skip.
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
