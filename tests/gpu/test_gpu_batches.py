"""Batches on a GPU that lags behind: the pinned buffers are not filled again before they were copied."""

import numpy as np
import pytest
import torch

from contrails.dataset.store import Dataset
from contrails.inputs.batches import Source
from contrails.inputs.composites import Channel, Composite
from contrails.inputs.sampling import Selection

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]

KELVIN = Composite((Channel({"b14": 1.0}), Channel({"b15": 1.0})))


def test_a_buffer_is_not_filled_again_before_it_was_copied(framed: Dataset, gpu: torch.device) -> None:
    chance = np.random.default_rng(0)
    selections = [Selection(chance.permutation(9)[:4]) for _ in range(40)]
    expected = list(Source(framed, (0, 2), KELVIN, torch.device("cpu")).batches(selections))
    busy, found = torch.eye(4096, device=gpu), []
    for batch in Source(framed, (0, 2), KELVIN, gpu).batches(selections):
        for _ in range(8):
            busy = busy @ busy  # asked for faster than it is done, so that the next copies wait
        found.append(batch)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.rows, other.rows)
        assert torch.allclose(one.inputs.cpu(), other.inputs, atol=1e-3)
        assert torch.equal(one.target.cpu(), other.target)
        assert torch.equal(one.valid.cpu(), other.valid)
