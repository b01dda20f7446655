"""Fitting on records that members have not seen, and scoring the result."""
