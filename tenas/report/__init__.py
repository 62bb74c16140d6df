"""Report a run: summary over its seeds, text for the terminal, figures, a page of all that. No torch."""

from tenas.report.rankings import draw_rounds
from tenas.report.show import show
from tenas.report.summary import accuracies, summarise

__all__ = ["accuracies", "draw_rounds", "show", "summarise"]
