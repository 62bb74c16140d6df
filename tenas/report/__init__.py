"""What a run has found: a table over its seeds, a text for the terminal, a figure of its rankings. No torch."""

from tenas.report.rankings import plot_rankings
from tenas.report.show import show
from tenas.report.summary import accuracies, summarise

__all__ = ["accuracies", "plot_rankings", "show", "summarise"]
