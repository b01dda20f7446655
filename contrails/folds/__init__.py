"""Which records each fold trains and validates on: file lists, exclusion lists, pseudo-labels."""
