"""Losses on logits, for soft targets, ignored pixels and weighted records.

Each loss takes logits, target, `counts` and the options of its term, and returns a scalar. `counts` float32 (B, H, W)
is the weight of each pixel: 0 if it is ignored, else the weight of its record, usually 1. A batch without valid pixels
gives 0 and gradients of 0.

No loss waits for the device, and none uses an operation that is not deterministic on CUDA. Cumulative sums of floats
are not, nor are gradients through sorting, pooling and gathering. Losses that need such an operation use integers,
tensors without a gradient, or shifted copies instead.
"""
