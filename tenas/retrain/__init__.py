"""Train the network of a genotype from scratch, in epochs that can be interrupted and resumed."""

from tenas.retrain.stage import retrain
from tenas.retrain.stored import load_network

__all__ = ["load_network", "retrain"]
