"""Fold-parallel training of segmentation models that no preemption can hurt."""

__version__ = "0.1.0"
