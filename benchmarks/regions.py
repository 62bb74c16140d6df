"""Linear regions of a stack of cells on crops of 3, 5 and 9 pixels: measures of one's own, for config/study-regions.yaml.

``linear_regions`` of a search counts the patterns of one cell on 3x3 crops. Here the cells of the first stage count, one or
several behind each other as ``cells`` says, with batch normalisation and ReLU behind the last, as ``tenas.networks.single.Cells``
has them: on one crop from each image of the batch, of a random channel at a random place. Later stages halve the image, which a
crop of odd side does not fit.
"""

from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING

from tenas import Measure

if TYPE_CHECKING:
    from torch import Tensor, nn


def regions_of_crops(network: "nn.Module", images: "Tensor", side: int) -> int:
    """Sign patterns of the first stage's cells for a crop (1, side, side) of each of the images (n, 3, h, w): 1 to n."""
    import torch
    from torch import nn

    from tenas.measures.regions import linear_regions
    from tenas.networks.single import Cell

    n, channels, height, width = images.shape
    top, left = torch.randint(height - side + 1, (n, 1, 1)), torch.randint(width - side + 1, (n, 1, 1))
    channel = torch.randint(channels, (n, 1, 1))
    offsets = torch.arange(side)
    crops = images[torch.arange(n)[:, None, None], channel, top + offsets[:, None], left + offsets][:, None]
    stage = list(takewhile(lambda block: isinstance(block, Cell), network.blocks[1:]))
    width = network.blocks[0][0].out_channels
    stack = nn.Sequential(*stage, nn.BatchNorm2d(width), nn.ReLU()).to(images.device).train(network.training)
    return linear_regions(stack, crops.expand(-1, width, -1, -1))


CROPS_3, CROPS_5, CROPS_9 = (
    Measure(f"regions_{side}", partial(regions_of_crops, side=side), source="TE-NAS, section 3.1.2") for side in (3, 5, 9)
)
