"""What a genotype is known to be worth: accuracies of a tabular benchmark, looked up. No torch."""

from tenas.benchmark.index import ACCURACIES, look_up, read_index

__all__ = ["ACCURACIES", "look_up", "read_index"]
