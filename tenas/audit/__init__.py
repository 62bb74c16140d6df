"""From a genotype back to the images: every decision taken again from its measurements, every recorded hash checked. No torch."""

from tenas.audit.stage import Audit, audit, in_words

__all__ = ["Audit", "audit", "in_words"]
