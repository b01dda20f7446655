"""Schedulers, this machine among them, and the sites where they start jobs."""
