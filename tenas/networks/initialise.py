"""Initial weights, drawn from a separate generator, so that they can be reproduced."""

import copy
import math
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.weight_norm import WeightNorm

from tenas.errors import one_of

# How a scheme draws the weights of convolutions and linear layers; None is PyTorch's default.
INITIALISERS: dict[str, Literal["fan_in", "fan_out", "normal"] | None] = {
    "kaiming_fan_in": "fan_in", "kaiming_fan_out": "fan_out", "pytorch": None, "normal": "normal",
}  # fmt: skip


_GENERATOR = threading.RLock()


def _new_lock() -> None:
    global _GENERATOR
    _GENERATOR = threading.RLock()


# A process that was forked has none of the threads that may hold it.
os.register_at_fork(after_in_child=_new_lock)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the default generators of torch, NumPy and Python within the block; afterwards restore them, torch's on the CPU.

    For the draws of user-defined operators and measures: they then follow from names, not from earlier draws. Blocks of several
    Python threads wait for each other: the generators are the process's.
    """
    with _GENERATOR, torch.random.fork_rng(devices=[]):
        before = random.getstate(), np.random.get_state()  # noqa: NPY002  # that which users' code draws from
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002


def initialise(network: nn.Module, scheme: str, seed: int) -> None:
    """Draw all weights of ``network`` again, in place, on its device, from ``seed`` only.

    ``kaiming_fan_in`` and ``kaiming_fan_out``: Kaiming normal for ReLU (He et al. 2015, section 2.2), biases zero,
    as TE-NAS means it for linear regions and for the NTK (paper, appendix A). ``pytorch``: the default of torch.nn,
    which is what the released code actually uses. ``normal``: standard normal, biases zero, as in Zen-NAS. Batch
    normalisation starts at weight 1 and bias 0 in all of them. Modules of other kinds are reset by their own
    ``reset_parameters``, if they have one.

    Values are drawn on the CPU in the order of ``network.modules()``, so they are the same on every device.
    Raises TenasError for an unknown scheme.
    """
    if scheme not in INITIALISERS:
        raise one_of("initialisation", scheme, INITIALISERS)
    mode = INITIALISERS[scheme]
    generator = Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, _ConvNd | nn.Linear):
            # The weight itself on a CPU, else a copy; also a copy, of what follows from other parameters.
            weight = module.weight.detach().to("cpu")
            bias = None if module.bias is None else module.bias.detach().to("cpu")
            if mode is None:
                nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
                if bias is not None:
                    bound = 1 / math.sqrt(weight[0].numel())
                    nn.init.uniform_(bias, -bound, bound, generator=generator)
            else:
                if mode == "normal":
                    nn.init.normal_(weight, generator=generator)
                else:
                    nn.init.kaiming_normal_(weight, mode=mode, nonlinearity="relu", generator=generator)
                if bias is not None:
                    nn.init.zeros_(bias)
            if module._parameters.get("weight") is None:
                _set_computed_weight(module, weight)
            elif module.weight.device.type != "cpu":
                module.weight.data.copy_(weight)
            if module.bias is not None and bias is not None and module.bias.device.type != "cpu":
                module.bias.data.copy_(bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif hasattr(module, "reset_parameters"):
            drawn: Any = copy.deepcopy(module).to("cpu")  # nn.Module itself has no reset_parameters
            with seeded(int(torch.randint(2**62, (), generator=generator))):
                drawn.reset_parameters()
            module.load_state_dict(drawn.state_dict())


@torch.no_grad()
def _set_computed_weight(module: Any, weight: Tensor) -> None:
    """Set the parameters that a layer's weight is computed from, so that it follows from ``weight`` as from one at construction.

    Weight and spectral norm, as hooks or as parametrizations. Another parametrization keeps what it drew, unless all of its parts
    have a ``right_inverse``.
    """
    if is_parametrized(module, "weight"):
        if all(hasattr(part, "right_inverse") for part in module.parametrizations.weight):
            with suppress(NotImplementedError):
                module.weight = weight.to(module.weight.device)
    elif "weight_orig" in module._parameters:
        module.weight_orig.copy_(weight)
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name == "weight":
            module.weight_v.copy_(weight)
            module.weight_g.copy_(torch.norm_except_dim(weight, 2, hook.dim))


def redrawn_whole(network: nn.Module) -> bool:
    """Whether ``initialise`` resets all of a network's state, from its construction and from use.

    True for the package's modules, and for torch's modules that have a reset, or no state. User-defined modules may keep what
    they drew when they were built, and so may hooks.
    """
    for module in network.modules():
        if module._forward_pre_hooks or module._forward_hooks:
            return False
        origin = type(module).__module__
        if f"{origin}.".startswith("tenas.networks."):
            continue
        if not origin.startswith("torch.nn.modules."):
            return False
        own = next(module.parameters(recurse=False), None) is not None or next(module.buffers(recurse=False), None) is not None
        if own and not hasattr(module, "reset_parameters"):
            return False
    return True
