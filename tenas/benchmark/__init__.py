"""Tabular benchmarks: what the cells of a space reach when they are trained. Torch only to import the official files."""

from tenas.benchmark.builtin import BUILTIN, builtin_table, has_builtin, index_path
from tenas.benchmark.index import accuracies_of, find, is_accuracy, look_up, query, read_column, read_index
from tenas.benchmark.topology import canonical_form, isomorphic

__all__ = [
    "BUILTIN", "accuracies_of", "builtin_table", "canonical_form", "find", "has_builtin", "index_path", "is_accuracy",
    "isomorphic", "look_up", "query", "read_column", "read_index",
]  # fmt: skip
