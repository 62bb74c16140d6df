"""Many networks of one structure as one network: side by side as groups of channels, in one forward and one reverse pass.

Network r of R has the channels r * C to (r + 1) * C of each value, (n, R * C, h, w). Convolutions get R times their groups; batch
normalisations, poolings and ReLUs treat each channel separately; a linear layer becomes a convolution of 1x1 images. Networks do
not mix, so each computes the same as alone, to rounding. On a GPU, where small networks wait for the launches of their operators,
R of them take little longer than one.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from tenas.networks.edge import Concatenate, Edge
from tenas.spaces.base import Mask

# Leaves that are replaced, and those that treat each channel separately. The modules that contain them are the package's own.
_REPLACED = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, Concatenate)
_BY_CHANNEL = (nn.Identity, nn.ReLU, nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# Alignment of weights in one piece of memory, in elements: fast kernels need aligned weights.
ALIGNED = 64

State = Mapping[str, Tensor]
"""Parameters and buffers of a network by name, as ``state_dict`` gives them."""


def groupable(network: nn.Module) -> bool:
    """Whether ``grouped`` supports all modules of a network, and all weights have one dtype."""
    if len({parameter.dtype for parameter in network.parameters()}) != 1:
        return False
    return all(_known(module) for module in network.modules())


def _known(module: nn.Module) -> bool:
    if module._forward_hooks or module._forward_pre_hooks or getattr(module, "drops_paths", False):
        return False
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        return False
    own = type(module).__module__.startswith("tenas.networks.") or type(module).__module__ == "tenas.networks"
    # Linear layers only in the package's networks, where their input has no positions, (n, c).
    flat = own and not isinstance(module, nn.ModuleDict)
    if not flat and any(isinstance(child, nn.Linear) for child in module.children()):
        return False
    return own or type(module) in (*_REPLACED, *_BY_CHANNEL, *_CONTAINERS)


def grouped(network: nn.Module, states: Sequence[State], masks: Sequence[Mask] = (), device: str = "cpu") -> nn.Module:
    """Build the network that maps (n, R * c, h, w), R batches side by side, to the outputs of R networks side by side.

    Args:
        network: a ``groupable`` network with the common structure; not modified, and its values are not read.
        states: parameters of each of the R networks; for batch normalisation in evaluation mode also its statistics. Networks may
            share tensors.
        masks: of each network, if they are supernets with different masks of one space. An operator runs for all networks if one
            of them has it; where it is pruned its output, and so the gradient of its weights, is multiplied by 0.
        device: of the new network. All values are transferred in one copy.

    Returns:
        a network in the mode of ``network``; in training mode without running statistics, so that a pass does not change it.
    """
    count = len(states)
    values = _side_by_side(network, states, device)
    memo: dict[int, Any] = {}
    for name, module in network.named_modules():
        if isinstance(module, _REPLACED):
            own = {key: values.get(f"{name}.{key}".lstrip(".")) for key in ("weight", "bias", "running_mean", "running_var")}
            memo[id(module)] = _widened(module, own, count)
    if masks:
        _weigh(network, masks, memo, device)
    made = copy.deepcopy(network, memo)
    if masks:
        cast("Any", made).set_mask(_union(masks))
    return made


def _side_by_side(network: nn.Module, states: Sequence[State], device: str) -> dict[str, Tensor]:
    """Values of all networks by name, (R * first dimension, ...): views of one tensor on the device."""
    names = [name for name, _ in network.named_parameters()]
    names += [name for name, _ in network.named_buffers() if name.endswith(("running_mean", "running_var"))]
    pieces: list[Tensor] = []
    for name in names:
        piece = torch.stack([state[name].detach() for state in states]).flatten()
        pieces += [piece, piece.new_zeros(-len(piece) % ALIGNED)]
    whole = torch.cat(pieces).to(device)
    values, start = {}, 0
    for name, piece in zip(names, pieces[::2], strict=True):
        first, *rest = states[0][name].shape
        values[name] = whole[start : start + len(piece)].view(len(states) * first, *rest)
        start += len(piece) + -len(piece) % ALIGNED
    return values


def _widened(module: nn.Module, own: Mapping[str, Tensor | None], count: int) -> nn.Module:
    """The grouped form of a module; ``own``: its values."""
    made: nn.Module
    match module:
        case nn.Conv2d():
            same: dict[str, Any] = {key: getattr(module, key) for key in ("kernel_size", "stride", "padding", "dilation")}
            groups, biased = count * module.groups, module.bias is not None
            made = nn.Conv2d(
                count * module.in_channels, count * module.out_channels, groups=groups, bias=biased, device="meta", **same
            )
        case nn.BatchNorm2d():
            fixed = not module.training and module.running_mean is not None
            made = nn.BatchNorm2d(count * module.num_features, module.eps, None, module.affine, fixed, device="meta")
            if fixed:
                made.running_mean, made.running_var, made.num_batches_tracked = own["running_mean"], own["running_var"], None
        case nn.Linear():
            made = Linear(module, count)
        case _:
            return Concatenate(count)
    layer = made.of if isinstance(made, Linear) else made
    for key in ("weight", "bias"):
        parameter, value = getattr(module, key), own[key]
        if parameter is not None and value is not None:
            shape = getattr(layer, key).shape
            setattr(layer, key, nn.Parameter(value.view(shape), requires_grad=parameter.requires_grad))
    return made.train(module.training)


class Linear(nn.Module):
    """Linear layers side by side, (n, R * inputs) to (n, R * outputs), as a convolution of 1x1 images."""

    def __init__(self, one: nn.Linear, count: int) -> None:
        super().__init__()
        inputs, outputs = count * one.in_features, count * one.out_features
        self.of = nn.Conv2d(inputs, outputs, 1, groups=count, bias=one.bias is not None, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.of(x.view(*x.shape, 1, 1))
        return outputs.flatten(1)


class Weighted(nn.Module):
    """An operator of an edge, times one weight per network, 0 where it is pruned. ``weights``: (R, 1, 1, 1)."""

    def __init__(self, operator: nn.Module, weights: Tensor) -> None:
        super().__init__()
        self.operator, self.weights = operator, weights
        self.reads_rectified = getattr(operator, "reads_rectified", False)

    @property
    def runs(self) -> Tensor:
        """Whether each network has the operator, (R,) booleans."""
        return self.weights.flatten() != 0

    def forward(self, x: Tensor) -> Tensor:
        weighted: Tensor = self.operator(x).unflatten(1, (len(self.weights), -1)) * self.weights
        return weighted.flatten(1, 2)


def _union(masks: Sequence[Mask]) -> Mask:
    """Union of masks; an edge that is empty in all of them gets an arbitrary operator."""
    space, active = masks[0].space, []
    for number, cell in enumerate(space.cell_types):
        edges = zip(*(mask.active[number] for mask in masks), strict=True)
        rows = [list(map(any, zip(*edge, strict=True))) for edge in edges]
        for place, row in enumerate(rows):
            if not any(row):
                row[space.operators.index(space.choices(cell, place)[0])] = True
        active.append(tuple(map(tuple, rows)))
    return Mask(space, tuple(active))


def _weigh(network: nn.Module, masks: Sequence[Mask], memo: dict[int, Any], device: str) -> None:
    """Enter in ``memo`` a Weighted for each operator that some masks lack, or average differently.

    An edge divides by its number of operators, which is that of the union: the weights compensate for it.
    """
    union = _union(masks)
    found: list[nn.Module] = []
    rows: list[list[float]] = []
    for edge in network.modules():
        if not isinstance(edge, Edge):
            continue
        run, each = union.operators(*edge.place), [mask.operators(*edge.place) for mask in masks]
        for name, operator in edge.named():
            row = [len(run) / len(names) if name in names else 0.0 for names in each]
            if name in run and any(weight != 1 for weight in row):
                found.append(operator)
                rows.append(row)
    if not found:
        return
    dtype = next(network.parameters()).dtype
    weights = torch.tensor(rows, dtype=dtype).to(device)
    for operator, row in zip(found, weights, strict=True):
        memo[id(operator)] = Weighted(copy.deepcopy(operator, memo), row.view(-1, 1, 1, 1))
