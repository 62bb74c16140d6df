"""Operators with reverse rules: for each the rule in plain torch, and the compiled rules if any.

Other operators go through autograd (``ntk_rules.by_autograd``). Compiled rules and forward operators are functions of
``kernel.rules`` and ``kernel.forward``, given as text, as they are imported only if numba is installed. Without a compiled rule,
or if it does not support the arguments, an operator goes through the rule in plain torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from tenas.measures import ntk_launches as launches
from tenas.measures import ntk_rules as rules
from tenas.measures.ntk_rules import BATCH_NORMS, DIVISIONS, RELUS, SUBTRACTIONS, Contributions
from tenas.measures.ntk_tape import Record, aten

Rule = Callable[[Record, list[Tensor | None]], Contributions]


class Primitive(NamedTuple):
    """Implementations of an operator: reverse rules ``torch`` and ``compiled``, and ``forward`` if torch is slow.

    ``gpu``: reverse rule with fewer launches and passes over memory, also in plain torch.
    """

    torch: Rule
    compiled: str = ""
    forward: str = ""
    gpu: Rule | None = None


_ROWS: list[tuple[Primitive, list[object]]] = [
    #          plain torch          compiled         compiled forward  on a GPU
    (Primitive(rules.convolution,  "convolution",   "convolution",   launches.convolution),  [aten.convolution.default]),
    (Primitive(rules.average_pool, "average_pool",  "average_pool",  launches.average_pool), [aten.avg_pool2d.default]),
    (Primitive(rules.max_pool,     "max_pool",      "max_pool"),     [aten.max_pool2d_with_indices.default]),
    (Primitive(rules.batch_norm,   "batch_norm",    "",              launches.batch_norm),   [*BATCH_NORMS]),
    (Primitive(rules.relu,         "relu",          "",              launches.relu),         [*RELUS]),
    (Primitive(rules.add,          "add"),                           [aten.add.Tensor, aten.add_.Tensor, *SUBTRACTIONS]),
    (Primitive(rules.scale,        "scale"),                         [aten.mul.Tensor, aten.mul.Scalar, aten.mul_.Scalar]),
    (Primitive(rules.scale,        "scale"),                         [*DIVISIONS]),
    (Primitive(rules.cat,          "cat"),                           [aten.cat.default]),
    (Primitive(rules.slice_,       "slice_"),                        [aten.slice.Tensor]),
    (Primitive(rules.mean),                                          [aten.mean.dim]),
    (Primitive(rules.addmm),                                         [aten.addmm.default, aten.mm.default]),
    (Primitive(rules.reshape),                                       [aten.view.default, aten._unsafe_view.default]),
    (Primitive(rules.reshape),                                       [aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims]),
    (Primitive(rules.reshape),                                       [aten.unsqueeze.default]),
    (Primitive(rules.transpose),                                     [aten.t.default]),
]  # fmt: skip
PRIMITIVES: dict[object, Primitive] = {op: primitive for primitive, ops in _ROWS for op in ops}


def reverse(record: Record, cotangents: list[Tensor | None], *, gpu: bool = False) -> Contributions:
    """Apply the rule in plain torch of a record's operator; ``gpu``: the one with few launches, if any."""
    primitive = PRIMITIVES.get(record.op, Primitive(rules.by_autograd))
    return (primitive.gpu if gpu and primitive.gpu else primitive.torch)(record, cotangents)
