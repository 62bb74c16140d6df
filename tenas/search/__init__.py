"""The search: score the trials of a round, prune by their ranking, export what is left. Only ``score`` needs torch."""
