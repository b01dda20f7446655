"""Imports segmentation-models-pytorch and timm without wandb, which timm would import too.

Importing wandb takes 1.4 s, and training must not depend on it.
"""

import sys

_absent = "wandb" not in sys.modules
if _absent:
    sys.modules["wandb"] = None  # type: ignore[assignment]
try:
    import segmentation_models_pytorch as smp
    import timm
finally:
    if _absent:
        del sys.modules["wandb"]

__all__ = ["smp", "timm"]
