"""Measures of a network at initialisation, for any ``torch.nn.Module`` that maps a batch to logits.

``MEASURES`` is the registry: ``MEASURES[name](network, images, labels)``, where labels may be left out if no loss is measured.
"""

from tenas.measures.activations import near, swap
from tenas.measures.az_nas import az_expressivity, az_nas_scores, az_progressivity, az_trainability
from tenas.measures.baselines import (
    fisher,
    gradient_norm,
    grasp,
    jacobian_covariance,
    naswot,
    snip,
    zen,
    zico,
)
from tenas.measures.costs import flops, layers, parameters
from tenas.measures.ntk import condition_number, ntk_condition_number, ntk_gram
from tenas.measures.regions import SaturatedWarning, linear_regions
from tenas.measures.registry import MEASURES, Measure, measure
from tenas.measures.synflow import log_synflow, synflow

__all__ = [
    "MEASURES", "Measure", "SaturatedWarning", "az_expressivity", "az_nas_scores", "az_progressivity", "az_trainability",
    "condition_number", "fisher", "flops", "gradient_norm", "grasp", "jacobian_covariance", "layers", "linear_regions",
    "log_synflow", "measure", "naswot", "near", "ntk_condition_number", "ntk_gram", "parameters", "snip", "swap", "synflow",
    "zen", "zico",
]  # fmt: skip
