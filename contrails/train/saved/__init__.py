"""What changes while a fold trains, and what of it is written."""
