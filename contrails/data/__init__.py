"""Datasets: raw records to packed files, and packed files to batches."""
