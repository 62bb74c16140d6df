"""AZ-NAS's measures of a network's blocks: expressivity, progressivity, trainability. MORE IS BETTER in all three.

Source: Lee and Ham, AZ-NAS: Assembling Zero-Cost Proxies for Network Architecture Search, CVPR 2024. There the inputs are 64
standard Gaussian images and the weights Kaiming normal (fan in); networks are compared by the sum over the three measures
and FLOPs of log(rank / number of networks).

The blocks are the modules that compute the feature maps, in order, stem first: the network's attribute or method ``blocks``.
The networks of this package have it; any other module can be given a list of that name. A block's features are its
output, (n, channels, height, width) or (n, channels). Its input is the last argument with one row per image: for a DARTS
cell, which reads two, the output of the previous cell.

The network is measured in its current mode and not modified: weights, gradients, buffers, mode. Constant or overflowing
features have the worst value, -inf.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.utils.hooks import RemovableHandle

from tenas.errors import TenasError
from tenas.measures.common import check_batch, measuring, undisturbed

SHIFT = 1e-8  # keeps the logarithm of a share of zero finite
REGULARISER = 1e-6  # keeps the score of a block without a gradient finite
CONSTANT = 1e-24  # variance over mean square below which features differ by the rounding of float64 alone
SEED = 2024  # of the cotangents


class AzNas(NamedTuple):
    """The three measures of one network on one batch."""

    expressivity: float
    progressivity: float
    trainability: float


@measuring
def az_nas_scores(network: nn.Module, images: Tensor) -> AzNas:
    """All three measures in one pass; ``az_expressivity``, ``az_progressivity`` and ``az_trainability`` define them."""
    entropies, scores = _pass_blocks(network, images, gradients=True)
    return AzNas(_expressivity(entropies), _progressivity(entropies), sum(scores) / len(scores))


@measuring
def az_expressivity(network: nn.Module, images: Tensor) -> float:
    """Sum over blocks of the entropy H = -sum p log(p + 1e-8), p the spectrum of the features' covariance, summing to 1.

    The covariance, channels x channels, is over images and positions. H is at most log(channels), when all directions
    carry the same variance; a sum over blocks, so networks with equally many blocks and widths are comparable.
    -inf if the features of a block are constant, as after a cell without a path from its input.

    Traps: white noise scores best; grows with the channels and the number of blocks.
    """
    entropies, _ = _pass_blocks(network, images, gradients=False)
    return _expressivity(entropies)


@measuring
def az_progressivity(network: nn.Module, images: Tensor) -> float:
    """Min over blocks of H_(l+1) - H_l, H the entropies of ``az_expressivity``: the smallest gain from a block to the next.

    -inf if the features of a block are constant.

    Trap: a minimum is noisy: a single block decides, and which one depends on the random weights.
    """
    entropies, _ = _pass_blocks(network, images, gradients=False)
    return _progressivity(entropies)


@measuring
def az_trainability(network: nn.Module, images: Tensor) -> float:
    """Mean over all blocks but the first of 2 - s - 1 / (s + 1e-6): 0 for a block that keeps the scale of gradients, s = 1.

    s estimates the spectral norm of a block's Jacobian as the channels see it. g is a random cotangent of +1 and -1 at the
    block's output, g' its vector-Jacobian product at the block's input, and s the largest singular value of
    g'^T g / (n h w), both with one row per image and position of the output. Where the output is smaller, the positions
    that it merges are channels of g' (pixel unshuffle). The cotangents are drawn from a fixed seed and the block's number,
    so the value is a function of network and images only.

    -inf if a block is the identity, which would score best but computes nothing. A block without a gradient scores -10^6.

    The first block, the stem, does not count: its input is the image, and it is the same in all networks of a space.
    Traps: one cotangent is one sample, so s is noisy and biased upwards, most so in the last stage, where few positions are
    left; the order of the images matters, as each has cotangents of its own.
    """
    _, scores = _pass_blocks(network, images, gradients=True)
    return sum(scores) / len(scores)


def _expressivity(entropies: Sequence[float]) -> float:
    return sum(entropies)


def _progressivity(entropies: Sequence[float]) -> float:
    if -math.inf in entropies:
        return -math.inf
    return min(after - before for before, after in pairwise(entropies))


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The blocks of a network, by its attribute or method ``blocks``. Raises TenasError if it has none."""
    blocks = getattr(network, "blocks", None)
    if callable(blocks) and not isinstance(blocks, nn.Module):
        blocks = blocks()
    if isinstance(blocks, Sequence | nn.Sequential | nn.ModuleList):
        blocks = list(dict.fromkeys(blocks))  # one that runs several times is called as often
        inner = [part for block in blocks if isinstance(block, nn.Module) for part in block.modules() if part is not block]
        if not set(blocks).isdisjoint(inner):
            raise TenasError(
                f"A block of {type(network).__name__} is part of another one; AZ-NAS's measures take parts in order."
            )
        if len(blocks) > 1 and all(isinstance(block, nn.Module) for block in blocks):
            return blocks
    raise TenasError(
        f"AZ-NAS's measures need the blocks of the network: give {type(network).__name__} an attribute 'blocks', "
        "the list of at least 2 modules that make its feature maps, stem first."
    )


def _pass_blocks(network: nn.Module, images: Tensor, *, gradients: bool) -> tuple[list[float], list[float]]:
    """Entropy of each block's features, and with ``gradients`` the trainability of each block but the first.

    Each block is differentiated right after its forward pass, then its graph is freed: only one block needs memory at a time.
    """
    check_batch(images)
    blocks = blocks_of(network)
    entropies: list[float] = []
    scores: list[float] = []
    inputs: list[Tensor] = []

    def before(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not gradients or not entropies:
            return None
        # The graph begins here. Clone, as a block may write to its input, and a leaf that requires gradients must not
        # be modified.
        places = [i for i, a in enumerate(arguments) if isinstance(a, Tensor) and a.ndim >= 2 and len(a) == len(images)]
        if not places:
            raise TenasError(f"The block {type(module).__name__} has no argument with a row for each of {len(images)} images.")
        detached = [a.detach() if isinstance(a, Tensor) else a for a in arguments]
        inputs.append(detached[places[-1]].requires_grad_())
        detached[places[-1]] = inputs[-1].clone()
        return tuple(detached)

    def after(module: nn.Module, arguments: tuple[Any, ...], output: object) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim not in (2, 4) or len(output) != len(images):
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise TenasError(
                f"The block {type(module).__name__} gave {shape}; AZ-NAS's measures need features (n, channels, height, width) "
                f"or (n, channels) of {len(images)} images."
            )
        if inputs:
            if not torch.is_grad_enabled():
                name = type(module).__name__
                raise TenasError(
                    f"The block {name} runs without gradients, as in a reentrant checkpoint: give use_reentrant=False."
                )
            scores.append(_block_trainability(output, inputs.pop(), SEED + len(entropies)))
        entropies.append(_entropy(output.detach()))
        return output.detach()

    with undisturbed(network), torch.set_grad_enabled(gradients), _hooked_blocks(blocks, before, after):
        network(images.detach())
    if len(entropies) < 2:
        raise TenasError(f"Of the blocks of {type(network).__name__} only {len(entropies)} ran; AZ-NAS's measures need 2.")
    return entropies, scores


@contextmanager
def _hooked_blocks(
    blocks: Sequence[nn.Module],
    before: Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None],
    after: Callable[[nn.Module, tuple[Any, ...], object], Tensor],
) -> Iterator[None]:
    handles: list[RemovableHandle] = []
    try:
        for block in blocks:
            handles += [block.register_forward_pre_hook(before), block.register_forward_hook(after)]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rows(features: Tensor) -> Tensor:
    """(n, channels, ...) as (n * positions, channels), float64."""
    return features.movedim(1, -1).reshape(-1, features.shape[1]).double()


def _entropy(features: Tensor) -> float:
    """H of the spectrum of the channels' covariance; -inf for features that are constant or not finite."""
    rows = _rows(features)
    centred = rows - rows.mean(0)
    covariance = centred.T @ centred
    # The negation is true for NaN as well.
    if not CONSTANT * rows.square().sum() < covariance.trace() < math.inf:
        return -math.inf
    spectrum = torch.linalg.eigvalsh(covariance).clamp(min=0)
    shares = spectrum / spectrum.sum()
    return float(-(shares * (shares + SHIFT).log()).sum().item())


def _block_trainability(output: Tensor, given: Tensor, seed: int) -> float:
    """2 - s - 1 / (s + 1e-6) of one block, from its output and the input that the output was computed from."""
    cotangent = torch.randint(0, 2, output.shape, generator=Generator().manual_seed(seed), device="cpu").to(output) * 2 - 1
    product = None
    if output.requires_grad:
        (product,) = torch.autograd.grad(output, given, cotangent, allow_unused=True)
    if product is None:
        product = torch.zeros_like(given)
    if torch.equal(product, cotangent):
        return -math.inf
    rows = _rows(_unshuffled(product, output.shape[2:]))
    matrix = rows.T @ _rows(cotangent) / len(rows)
    if not matrix.isfinite().all():
        return -math.inf
    s = float(torch.linalg.matrix_norm(matrix, 2).item())
    return 2 - s - 1 / (s + REGULARISER)


def _unshuffled(tensor: Tensor, size: Sequence[int]) -> Tensor:
    """(n, c, height, width) with the positions that fall on one of ``size`` as channels: (n, c * rh * rw, *size).

    A side that is not a multiple of the smaller one is padded with zeros. Raises TenasError for a side that grows.
    """
    if tensor.shape[2:] == size:
        return tensor
    n, channels, *sides = tensor.shape
    if len(sides) != len(size) or any(small > large for small, large in zip(size, sides, strict=True)):
        raise TenasError(
            f"A block maps feature maps of {tuple(sides)} to {tuple(size)}; AZ-NAS's trainability is defined where a side stays "
            "the same or shrinks."
        )
    if 0 in size:
        raise TenasError("A block's feature maps have no positions: the images are too small for the network.")
    (height, width), (rh, rw) = size, (math.ceil(large / small) for large, small in zip(sides, size, strict=True))
    filled = nn.functional.pad(tensor, (0, width * rw - sides[1], 0, height * rh - sides[0]))
    return filled.view(n, channels, height, rh, width, rw).permute(0, 1, 3, 5, 2, 4).reshape(n, -1, height, width)
