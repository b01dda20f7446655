"""The weighted sum of terms: each on its own, weights, magnitudes, names."""

import pytest
import torch
from every_term import loss_of, random_masks, value

LOGITS, HARD = random_masks()
ALL = torch.ones_like(HARD).bool()
BCE: dict[str, object] = {"name": "bce", "weight": 2.0}
DICE: dict[str, object] = {"name": "dice", "weight": 0.5, "over": "record"}


def test_the_total_is_the_weighted_sum_of_its_parts() -> None:
    loss = loss_of(BCE, DICE, {"name": "dice"})
    total, parts = loss(LOGITS, HARD, ALL)
    assert list(parts) == loss.names == ["bce", "dice", "dice_2"]
    assert parts["bce"] == value({"name": "bce"}, LOGITS, HARD)
    assert parts["dice"] == value(DICE | {"weight": 1.0}, LOGITS, HARD)
    assert total.item() == pytest.approx((2 * parts["bce"] + 0.5 * parts["dice"] + parts["dice_2"]).item())


def test_normalised_terms_weigh_what_their_weights_say() -> None:
    logits = LOGITS.clone().requires_grad_()
    total, parts = loss_of({"name": "bce"}, DICE | {"weight": 3.0}, normalise=True)(logits, HARD, ALL)
    assert total.item() == pytest.approx(4 * parts["bce"].item())
    (found,) = torch.autograd.grad(total, logits, retain_graph=True)
    of_bce, of_dice = (torch.autograd.grad(parts[name], logits, retain_graph=True)[0] for name in ("bce", "dice"))
    expected = of_bce + 3 * of_dice * (parts["bce"] / parts["dice"]).item()
    assert torch.allclose(found, expected, atol=1e-8)


def test_a_perfect_part_is_not_enlarged_beyond_bounds() -> None:
    perfect = ((2 * HARD - 1) * 60).requires_grad_()
    total, _ = loss_of({"name": "bce"}, DICE, normalise=True)(perfect, HARD, ALL)
    (gradient,) = torch.autograd.grad(total, perfect)
    assert torch.isfinite(gradient).all()


def test_the_default_is_plain_cross_entropy() -> None:
    total, parts = loss_of({"name": "bce"})(LOGITS, HARD, ALL)
    assert total == parts["bce"] == torch.nn.functional.binary_cross_entropy_with_logits(LOGITS, HARD)
