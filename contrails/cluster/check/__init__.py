"""Checks of a site, and the drill that interrupts a training to test its recovery."""
