"""From probabilities to masks: threshold, calibration, post-processing, two stages."""
