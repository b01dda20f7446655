"""Losses on logits, with soft targets, pixels that do not count and records that count less.

They take logits, target and `counts` (float32 (B, H, W); how much a pixel counts: 0 where it is ignored, else the
weight of its record, usually 1) and the options of the term, and return a scalar. None waits for the device, and none
has an operation without a deterministic backward on CUDA: what torch has none for (cumulative sums of floats, gradients
through sorting, pooling and gathering) is made of integers, of what needs no gradient, or of shifted copies. A batch in
which nothing counts gives 0 and gradients of 0.
"""
