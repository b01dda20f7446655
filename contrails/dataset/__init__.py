"""The dataset file: an HDF5 file with packed integers, votes and digests, and its copies in RAM and on nodes."""
