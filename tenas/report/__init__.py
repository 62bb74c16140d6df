"""Report a run: summary over its seeds, text for the terminal, figure of its rankings. No torch."""

from tenas.report.rankings import plot_rankings
from tenas.report.show import show
from tenas.report.summary import accuracies, summarise

__all__ = ["accuracies", "plot_rankings", "show", "summarise"]
