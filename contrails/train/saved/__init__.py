"""The state of a training, and the snapshots and weights files that are written of it."""
