"""Training of segmentation models, one job per fold, with byte-identical results after a preemption."""

__version__ = "0.1.0"
