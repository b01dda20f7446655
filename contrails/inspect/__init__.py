"""Inspection of data: contents of a file, pictures of its records, and suspicious labels."""
