"""Random draws, each computed from its name alone and independent of all draws before it.

A draw is named by (seed, purpose, *position). The position is what the draw depends on, such as fold, epoch, step and
sample. The same name gives the same numbers in every process, so a run that is killed and resumed draws the same
numbers as one that is not interrupted.
"""

import hashlib

import numpy as np


def derived_seed(seed: int, purpose: str, *position: int | str) -> int:
    """Return a seed of 63 bits for `torch.manual_seed`: the SHA-256 of a draw's name, shortened."""
    name = "/".join([str(seed), purpose, *(str(part) for part in position)])
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, *position: int | str) -> np.random.Generator:
    """Return the counter-based generator (Philox, Salmon et al. 2011) of one draw."""
    return np.random.Generator(np.random.Philox(key=derived_seed(seed, purpose, *position)))
