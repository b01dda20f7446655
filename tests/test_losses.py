import math

import torch

from contrails.losses import binary_cross_entropy


def test_closed_form_on_soft_targets() -> None:
    logits, target = torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[0.25, 1.0]]])
    expected = (math.log(2) + math.log(1 + math.exp(-2))) / 2
    assert math.isclose(
        float(binary_cross_entropy(logits, target, torch.ones_like(target).bool())), expected, rel_tol=1e-6
    )


def test_ignored_pixels_do_not_count() -> None:
    logits = torch.tensor([[[0.0, 50.0]]], requires_grad=True)
    valid = torch.tensor([[[True, False]]])
    loss = binary_cross_entropy(logits, torch.zeros(1, 1, 2), valid)
    loss.backward()  # type: ignore[no-untyped-call]
    assert math.isclose(float(loss.detach()), math.log(2), rel_tol=1e-6)
    assert logits.grad is not None
    assert logits.grad[0, 0, 1] == 0


def test_a_batch_without_valid_pixels_is_zero() -> None:
    assert binary_cross_entropy(torch.ones(1, 2, 2), torch.ones(1, 2, 2), torch.zeros(1, 2, 2).bool()) == 0
