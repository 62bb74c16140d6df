"""The costs of a network: parameters, and multiply-accumulates per image."""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from tenas.errors import TenasError
from tenas.networks.observer import ByStorage, Observer, is_torchs, name_of, transformers_by_parts

R = TypeVar("R")


def count_parameters(network: nn.Module) -> int:
    """Number of trainable parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


class Products(Observer):
    """Calls ``counted`` with the multiply-accumulates of each product and convolution of a pass, module or function.

    One per multiplication, and one per output that a bias is added to. A convolution of zeros is counted as any other.
    """

    def __init__(self, counted: Callable[[int], None]) -> None:
        super().__init__()
        self.counted = counted
        self.unknown: set[str] = set()
        self._without_bias = ByStorage[bool]()

    def saw(self, operator: OpOverload, read: Any, out: Any) -> None:
        name = name_of(operator)
        if count := _FLOPS.get(name):
            made = out[0] if isinstance(out, tuple) else out
            self.counted(count(read[0], made))
            if name in ("mm", "bmm"):
                self._without_bias[made] = True
        elif name in ("add", "add_"):
            # Of a linear layer, whose product and sum are one operator or two by the strides of what it reads.
            terms = [term for term in read[0] if isinstance(term, Tensor)]
            for product, bias in (terms, terms[::-1]) if len(terms) > 1 else ():
                if bias.ndim == 1 and bias.shape == out.shape[-1:] and product in self._without_bias:
                    self._without_bias.remove(product)
                    self.counted(out.numel())
                    break
        elif not is_torchs(operator):
            self.unknown.add(name_of(operator))


def _of_convolution(args: Sequence[Any], out: Tensor) -> int:
    images, weight, bias, *_, transposed, _, _ = args
    count: int = (images if transposed else out).numel() * weight[0].numel()
    return count + (0 if bias is None else out.numel())


def _of_linear(args: Sequence[Any], out: Tensor) -> int:
    return out.numel() * (int(args[0].shape[-1]) + (len(args) > 2 and args[2] is not None))


def _of_attention(args: Sequence[Any], out: Tensor) -> int:
    """Scores of queries (..., l, d) and keys (..., s, d), and sums of values."""
    queries, keys, values = args[:3]
    pairs = int(queries[..., 0].numel() * keys.shape[-2])
    return pairs * int(queries.shape[-1] + values.shape[-1])


# Operator -> its multiply-accumulates, from its arguments and its result.
_FLOPS: dict[str, Callable[[Sequence[Any], Tensor], int]] = {
    "convolution": _of_convolution,
    "linear": _of_linear,
    **dict.fromkeys(("mm", "bmm", "mv", "dot"), lambda args, out: out.numel() * args[0].shape[-1]),
    # Of a bilinear layer: each weight multiplies once for an output.
    "_trilinear": lambda args, out: out.numel() * args[1][0].numel(),
    "addbmm": lambda args, out: args[1].numel() * args[2].shape[-1] + out.numel(),
    # Each image's window is read once for an output.
    "conv_tbc": lambda args, out: out.numel() * (args[1][..., 0].numel() + 1),
    "torchvision::deform_conv2d": lambda args, out: out.numel() * (args[1][0].numel() + (args[4].numel() > 0)),
    "_cdist_forward": lambda args, out: out.numel() * args[0].shape[-1],
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), lambda args, out: out.numel() * (args[1].shape[-1] + 1)),
    **dict.fromkeys(
        ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention", "scaled_dot_product_attention",
         "_scaled_dot_product_efficient_attention", "_scaled_dot_product_fused_attention_overrideable"),
        _of_attention,
    ),
}  # fmt: skip


def copied(network: nn.Module) -> nn.Module:
    """Copy a network, even one that holds tensors of a pass (stored features, weights computed by an old weight norm).

    Such tensors belong to a graph, which cannot be copied; the copy has plain tensors instead.
    """
    held = [leaf for module in network.modules() for leaf in tree_leaves(vars(module)) if isinstance(leaf, Tensor)]
    return copy.deepcopy(network, {id(tensor): tensor.detach() for tensor in held if not tensor.is_leaf})


def on_meta(network: nn.Module) -> nn.Module:
    """A copy of a network without values, in evaluation mode. Parameters that modules share stay shared."""
    network = copied(network)
    shared: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                shared.setdefault(id(parameter), []).append((module, name))
    network = network.to("meta").eval()
    for module in network.modules():
        # Tables that are no buffers.
        vars(module).update({name: value.to("meta") for name, value in vars(module).items() if isinstance(value, Tensor)})
    for (first, its_name), *others in shared.values():
        for module, name in others:
            module._parameters[name] = first._parameters[its_name]
    return network


@contextmanager
def without_values() -> Iterator[None]:
    """Run networks on the meta device within the block. Raises TenasError for a network with an operator that needs values."""
    try:
        with torch.no_grad(), transformers_by_parts():
            yield
    except RuntimeError as error:
        if "meta" not in str(error).lower():
            raise
        said = str(error).splitlines()[0].partition(". ")[0].rstrip(".")
        raise TenasError(f"Costs are counted without values, and an operator of this network needs them: {said}.") from error


def counted(run: Callable[[], R]) -> R:
    """What ``run`` gives, which runs a network without values.

    Once more where that fails, with the tensors that the network makes on no device in particular without values, too.
    """
    try:
        return run()
    except TenasError:
        with torch.device("meta"):
            return run()


def count_flops(network: nn.Module, image_shape: Sequence[int], dtype: torch.dtype | None = None) -> int:
    """Multiply-accumulates of the network for one image of ``image_shape`` (channels, height, width), in evaluation mode.

    Counted as the "FLOPs" of NAS-Bench-201: one per multiplication of a convolution or a linear layer, and one per output with a
    bias; normalisation, poolings and sums are not counted. Papers in the DARTS space count some of those too, and report 2 to 8 %
    more (P-DARTS on ImageNet 557 M, here 543 M; DARTS 574 M, here 530 M). Other products of matrices count too, such as those of
    attention.

    A layer counts each time that it runs. The network is not modified and nothing is computed: a copy runs on the meta device.
    ``dtype``: of the images.
    """
    network = on_meta(network)

    def run() -> tuple[int, set[str]]:
        counts: list[int] = []
        with without_values(), Products(counts.append) as products:
            network(torch.empty(1, *image_shape, dtype=dtype, device="meta"))
        return sum(counts), products.unknown

    count, unknown = counted(run)
    if unknown:
        warnings.warn(f"Multiply-adds of operators of other libraries do not count: {', '.join(sorted(unknown))}.", stacklevel=2)
    return count
