"""Every random draw of the project, as a function of what it is for and never of what ran before.

A draw is named by (seed, purpose, *position): the position is whatever the draw depends on, such as
fold, epoch, step and sample. Two processes that ask for the same draw get the same numbers, so a run that is
killed and resumed draws what the undisturbed run draws.
"""

import hashlib

import numpy as np


def derived_seed(seed: int, purpose: str, *position: int | str) -> int:
    """Return 63 bits derived from the name of a draw by SHA-256; fits `torch.manual_seed`."""
    name = "/".join([str(seed), purpose, *(str(part) for part in position)])
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, *position: int | str) -> np.random.Generator:
    """Return a counter-based generator (Philox, Salmon et al. 2011) that belongs to one draw alone."""
    return np.random.Generator(np.random.Philox(key=derived_seed(seed, purpose, *position)))
