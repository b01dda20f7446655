"""Readers of raw data. Each reads one layout and makes the plan from which its records are packed."""
