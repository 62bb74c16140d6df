"""Which cells are the same network, written differently: operators that do nothing contracted, sums put in order."""

from collections.abc import Iterable

from tenas.spaces import Genotype, get_space


def canonical_form(genotype: Genotype) -> str:
    """A text that two cells of NAS-Bench-201 share when they are isomorphic: the same sums of the same operators.

    ``skip_connect`` is taken for the identity, ``none`` for nothing, and so is a pooling of nothing. A convolution of nothing
    stays: its batch normalisation still adds a learned constant. What doesn't reach the output is left out. An empty text is
    a cell without an output. The 15,625 cells have 5,545 forms.

    The benchmark's own count is 6,466 (NATS-Bench, table 1): its text takes a convolution of nothing for nothing, but doesn't
    see that a node is empty when it has more than one edge, nor that sums are equal when one of them is reached by a skip.
    """
    (cell,) = genotype.cells
    nodes = [["x"]]
    for target in range(1, genotype.space.nodes):
        terms = []
        for _, source, operator in (choice for choice in cell if choice.target == target):
            if operator == "skip_connect":
                terms += nodes[source]
            elif operator != "none" and (nodes[source] or operator != "avg_pool_3x3"):
                terms.append(f"{operator}({'+'.join(nodes[source])})")
        nodes.append(sorted(terms))
    return "+".join(nodes[-1])


def isomorphic(genotype: Genotype, archs: Iterable[str]) -> list[int]:
    """Places in ``archs``, texts of NAS-Bench-201's cells, of those that are isomorphic to a genotype, itself among them."""
    space, form = get_space("nas-bench-201"), canonical_form(genotype)
    return [place for place, arch in enumerate(archs) if canonical_form(space.parse(arch)) == form]
