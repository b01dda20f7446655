"""Runs that are created, folds that are submitted or cancelled."""
