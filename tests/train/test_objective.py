"""The sum of a recipe's losses against its closed form."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from contrails.inputs.batches import Batch
from contrails.models.outputs import Outputs
from contrails.recipe.recipe import Recipe
from contrails.train.objective import Objective

HEADS = {"classifier": True, "share": True, "deep_supervision": 2}


@pytest.fixture
def batch() -> Batch:
    """Three records: the first one half covered, the second empty, the third without a pixel that counts."""
    target = torch.zeros(3, 4, 4)
    target[0, :2] = 1.0
    valid = torch.ones(3, 4, 4, dtype=torch.bool)
    valid[2] = False
    return Batch(np.arange(3), torch.zeros(3, 1, 4, 4), target, valid)


@pytest.fixture
def outputs() -> Outputs:
    random = torch.Generator().manual_seed(0)
    mask, fine, coarse = torch.randn(3, 3, 4, 4, generator=random)
    classes, share = torch.randn(2, 3, generator=random)
    return Outputs(mask, classes, share, aux=(fine, coarse))


def test_each_head_counts_with_its_weight(recipe_with: Callable[..., Recipe], batch: Batch, outputs: Outputs) -> None:
    weights: dict[str, Any] = {"classes": 0.5, "share": 0.25, "aux": 0.1}
    objective = Objective(recipe_with(model=HEADS, loss=weights))
    total, parts = objective(outputs, batch)
    aux = [cross_entropy(level[:2], batch.target[:2]) for level in outputs.aux]
    assert outputs.classes is not None
    assert outputs.share is not None
    expected = {
        "classes": cross_entropy(outputs.classes[:2], torch.tensor([1.0, 0.0])),
        "share": cross_entropy(outputs.share[:2], torch.tensor([0.5, 0.0])),
        "aux": aux[0] + aux[1] / 2,
    }
    assert set(objective.names) == set(parts) >= set(expected)
    for name, value in expected.items():
        assert parts[name].item() == pytest.approx(value.item(), rel=1e-5)
    of_mask = cross_entropy(outputs.mask[:2], batch.target[:2])
    assert total.item() == pytest.approx((of_mask + sum(weights[n] * v for n, v in expected.items())).item(), rel=1e-5)


def test_a_gate_learns_the_mask_where_there_is_one(
    recipe_with: Callable[..., Recipe], batch: Batch, outputs: Outputs
) -> None:
    objective = Objective(recipe_with(model={"classifier": True}, loss={"gate": True}))
    total, parts = objective(outputs, batch)
    assert total.item() == pytest.approx(
        (cross_entropy(outputs.mask[0], batch.target[0]) + parts["classes"]).item(), rel=1e-5
    )
