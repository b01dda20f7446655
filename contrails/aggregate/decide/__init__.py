"""Fitting how probabilities become masks: threshold, calibration, post-processing, two stages."""
