"""A chain of layers that each choose: kernel size, expansion, or to be skipped.

A configuration names it examples/own_chain.py:SPACE.

The layers are inverted residuals (Sandler et al., MobileNetV2, CVPR 2018): a 1x1 convolution that widens, a convolution of each
channel, a 1x1 convolution that narrows; k5_e4 has a kernel of 5 and widens fourfold.
"""

from tenas import ChainSpace, Layer


def inverted(kernel, expansion):
    def make(inputs, outputs, stride):
        # Where a module is made: jobs that only rank or draw start without torch.
        from torch import nn

        from tenas.networks import Residual

        width = inputs * expansion
        body = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, kernel, stride, kernel // 2, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        return Residual(body) if stride == 1 and inputs == outputs else body

    return make


def skip(inputs, outputs, stride):
    from torch import nn

    return nn.Identity()


OPERATORS = {
    "skip": skip,
    "k3_e1": inverted(3, 1),
    "k3_e4": inverted(3, 4),
    "k5_e1": inverted(5, 1),
    "k5_e4": inverted(5, 4),
}
# Only a layer that changes neither width nor size can be skipped.
CHANGES = ("k3_e1", "k3_e4", "k5_e1", "k5_e4")
KEEPS = ("skip", "k3_e1", "k3_e4", "k5_e4")

# Six layers of four choices each, 4,096 networks. Widths are multiples of the network's channels.
SPACE = ChainSpace(
    "own-chain",
    OPERATORS,
    [
        Layer(1, operators=KEEPS),
        Layer(2, stride=2, operators=CHANGES),
        Layer(2, operators=KEEPS),
        Layer(4, stride=2, operators=CHANGES),
        Layer(4, operators=KEEPS),
        Layer(4, operators=KEEPS),
    ],
)
