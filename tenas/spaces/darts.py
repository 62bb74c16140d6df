"""The space of DARTS (Liu, Simonyan, Yang, ICLR 2019): a normal and a reduction cell, 4 intermediate nodes, 8 operators."""

import ast
import re
from types import MappingProxyType

from tenas.errors import TenasError
from tenas.spaces.base import Choice, Edge, Genotype, Space, WrongFormError

FIELDS = ("normal", "normal_concat", "reduce", "reduce_concat")
FORM = (
    "Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=range(2, 6), "
    "reduce=[...], reduce_concat=range(2, 6)) with 8 pairs per cell"
)


class Darts(Space):
    """DARTS's space: nodes 0 and 1 are the outputs of the previous two cells, the output concatenates nodes 2 to 5.

    A search ends with a round of edges, as in TE-NAS's released code: a node of a genotype reads two nodes.
    """

    name = "darts"
    operators = (
        "none", "max_pool_3x3", "avg_pool_3x3", "skip_connect",
        "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5",
    )  # fmt: skip
    cell_types = ("normal", "reduction")
    inputs = 2
    nodes = 6
    output = (2, 3, 4, 5)
    edges = tuple(Edge(target, source) for target in range(2, 6) for source in range(target))
    edges_of_a_node = 2
    networks = "tenas.networks.darts"
    trained = MappingProxyType({"channels": 36, "cells": 20})
    stems = ("cifar", "imagenet")
    auxiliary = True
    least_cells = 2

    def parse(self, text: str) -> Genotype:
        """Read ``Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=range(2, 6), reduce=..., reduce_concat=...)``.

        All forms in papers' code and logs are accepted: with or without an assignment, lists or tuples, any white space and
        quotes, ``[2, 3, 4, 5]`` for the range. Pairs 2i and 2i + 1 are the inputs of node i + 2. The text is not executed.
        """
        fields = _fields(text)
        cells = []
        for name in ("normal", "reduce"):
            self._check_output(fields[f"{name}_concat"], name, text)
            pairs = _pairs(fields[name], name, text)
            count = self.edges_of_a_node * len(self.output)
            if len(pairs) != count:
                raise TenasError(f"'{name}' has {len(pairs)} pairs, not {count}, in the genotype {text!r}.")
            cells.append(
                Choice(self.inputs + index // self.edges_of_a_node, source, operator)
                for index, (operator, source) in enumerate(pairs)
            )
        return self._genotype(cells, text)

    def text(self, genotype: Genotype) -> str:
        concat = f"range({self.output[0]}, {self.output[-1] + 1})"
        normal, reduction = ([(choice.operator, choice.source) for choice in cell] for cell in genotype.cells)
        return f"Genotype(normal={normal}, normal_concat={concat}, reduce={reduction}, reduce_concat={concat})"

    def _check_output(self, value: ast.expr, name: str, text: str) -> None:
        match value:
            case ast.Call(func=ast.Name(id="range"), args=[*bounds], keywords=[]) if 1 <= len(bounds) <= 3:
                numbers = [number for number in map(_literal, bounds) if type(number) is int]
                is_range = len(numbers) == len(bounds) and (len(numbers) < 3 or numbers[2] != 0)
                nodes: object = list(range(*numbers)[: self.nodes]) if is_range else None
            case _:
                nodes = _literal(value)
        if not isinstance(nodes, list | tuple) or tuple(nodes) != self.output:
            raise TenasError(
                f"'{name}_concat' must be range(2, 6), the cell's four intermediate nodes, in the genotype {text!r}."
            )


def _fields(text: str) -> dict[str, ast.expr]:
    """The four arguments of ``Genotype(...)``, by name. Raises WrongFormError for any other text."""
    # A prefix is allowed: "TENAS = ", "genotypes.", "03/15 genotype = " of a log.
    call = re.fullmatch(r"(?:[^()\[\]]*[=.:\s])?(Genotype\s*\(.*\))[\s,;]*", text.strip(), re.DOTALL)
    try:
        expression = ast.parse(call[1], mode="eval").body if call else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        expression = None
    if not isinstance(expression, ast.Call) or not isinstance(expression.func, ast.Name):
        raise WrongFormError(f"{text!r} is not a genotype of darts; expected the form {FORM}.")
    fields = dict(zip(FIELDS, expression.args, strict=False))
    fields |= {str(keyword.arg): keyword.value for keyword in expression.keywords}
    if set(fields) != set(FIELDS) or len(expression.args) + len(expression.keywords) != len(FIELDS):
        raise TenasError(f"A genotype of darts needs {', '.join(FIELDS)}, each exactly once, unlike {text!r}.")
    return fields


def _literal(expression: ast.expr) -> object:
    """The value of a literal; None for any other expression."""
    try:
        return ast.literal_eval(expression)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None


def _pairs(expression: ast.expr, name: str, text: str) -> list[tuple[str, int]]:
    pairs = _literal(expression)
    if not isinstance(pairs, list | tuple) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str) and type(pair[1]) is int for pair in pairs
    ):
        raise TenasError(f"'{name}' must be a list of pairs such as ('sep_conv_3x3', 0), in the genotype {text!r}.")
    return [(operator, source) for operator, source in pairs]


SPACE = Darts()
