"""Sending metrics and aggregations to Weights & Biases."""
