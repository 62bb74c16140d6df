"""Networks of functions, and batches for them."""

import torch
from torch import Tensor, nn


def batch(*shape: int) -> Tensor:
    """The same images each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


class Own(nn.Module):
    """A network of a function of itself and its input."""

    def __init__(self, function, **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)
