"""What a genotype is known to be worth: a tabular benchmark, looked up. No torch, but to import the official files."""

from tenas.benchmark.index import ACCURACIES, find, look_up, query, read_index
from tenas.benchmark.topology import canonical_form, isomorphic

__all__ = ["ACCURACIES", "canonical_form", "find", "isomorphic", "look_up", "query", "read_index"]
