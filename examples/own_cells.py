"""Spaces of cells: an operator on each edge, a sum at each node. A configuration names them examples/own_cells.py:SPACE.

An operator is a factory: a function of (channels in, channels out, stride) that makes a module, or gives None for an operator
that adds nothing. The package makes the rest: supernet, discrete networks, sampling, limits, drawing, texts.

Torch is imported where a module is made: jobs that only rank or draw then start without it, in a moment.
"""

from tenas import CellSpace


def conv(kernel):
    """ReLU, convolution, batch normalisation."""

    def make(inputs, outputs, stride):
        from torch import nn

        convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        return nn.Sequential(nn.ReLU(), convolution, nn.BatchNorm2d(outputs))

    return make


def depthwise(kernel):
    """ReLU, a convolution of each channel, a 1x1 convolution, batch normalisation."""

    def make(inputs, outputs, stride):
        from torch import nn

        own = nn.Conv2d(inputs, inputs, kernel, stride, kernel // 2, groups=inputs, bias=False)
        return nn.Sequential(nn.ReLU(), own, nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    return make


def skip(inputs, outputs, stride):
    """The identity; where height and width are halved, which no identity can, a pooling."""
    from torch import nn

    return nn.Identity() if stride == 1 else nn.AvgPool2d(2)


def nothing(inputs, outputs, stride):
    return None


OPERATORS = {"none": nothing, "skip": skip, "conv_1x1": conv(1), "conv_3x3": conv(3), "dw_5x5": depthwise(5)}

# One cell with one input: three nodes after it, each of which reads all before it. Stands in the skeleton of NAS-Bench-201.
SPACE = CellSpace("own-cells", OPERATORS, nodes=4)

# Normal and reduction cells that read the two cells before them, as in DARTS. A node keeps two of its edges. The edges from the
# cell before the last cannot be a 3x3 convolution: that costs most there.
DARTS_LIKE = CellSpace(
    "own-darts",
    {name: OPERATORS[name] for name in ("skip", "conv_3x3", "dw_5x5")},
    inputs=2,
    nodes=5,
    cell_types=("normal", "reduction"),
    edges_of_a_node=2,
    choices={(2, 0): ("skip", "dw_5x5"), (3, 0): ("skip", "dw_5x5"), (4, 0): ("skip", "dw_5x5")},
    cells=8,
)
