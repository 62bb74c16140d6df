"""Measures of a network at initialisation, for any ``torch.nn.Module`` that maps a batch to logits."""

from tenas.measures.ntk import condition_number, ntk_condition_number, ntk_gram
from tenas.measures.regions import SaturatedWarning, linear_regions

__all__ = ["SaturatedWarning", "condition_number", "linear_regions", "ntk_condition_number", "ntk_gram"]
