"""TE-NAS: neural architecture search without training, as a reproducible pipeline."""

__version__ = "0.1.0"
