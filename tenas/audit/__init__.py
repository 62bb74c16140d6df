"""Audit a run: repeat every decision from its measurements, check every recorded hash. No torch."""

from tenas.audit.stage import Audit, audit, in_words

__all__ = ["Audit", "audit", "in_words"]
