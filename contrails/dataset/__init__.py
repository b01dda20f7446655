"""The dataset file: HDF5 with integers, votes and digests, and what holds it in RAM."""
