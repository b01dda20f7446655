"""Losses of regions and outlines, against other libraries where they have them, else against their definition."""

import math

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from every_term import loss_of, random_masks, value
from scipy import ndimage

from contrails.losses.boundaries import signed_distance

LOGITS, HARD = random_masks()
ALL = torch.ones_like(HARD).bool()


def plain(**options: object) -> dict[str, object]:
    return {"over": "batch", "smooth": 1e-6} | options


def test_dice_is_that_of_smp() -> None:
    other = smp.losses.DiceLoss("binary")(LOGITS[:, None], HARD[:, None]).item()
    assert value(plain(name="dice"), LOGITS, HARD).item() == pytest.approx(other, rel=1e-5)
    assert value(plain(name="log_dice"), LOGITS, HARD).item() == pytest.approx(-math.log(1 - other), rel=1e-3)
    squared = value(plain(name="log_dice", gamma=2.0), LOGITS, HARD).item()
    assert squared == pytest.approx(math.log(1 - other) ** 2, rel=1e-3)
    records = [smp.losses.DiceLoss("binary")(LOGITS[i, None, None], HARD[i, None, None]).item() for i in range(3)]
    assert value(plain(name="dice", over="record"), LOGITS, HARD).item() == pytest.approx(np.mean(records), rel=1e-5)


def test_jaccard_and_tversky_are_those_of_smp() -> None:
    other = smp.losses.JaccardLoss("binary")(LOGITS[:, None], HARD[:, None]).item()
    assert value(plain(name="jaccard"), LOGITS, HARD).item() == pytest.approx(other, rel=1e-5)
    other = smp.losses.TverskyLoss("binary", alpha=0.2, beta=0.9)(LOGITS[:, None], HARD[:, None]).item()
    assert value(plain(name="tversky", alpha=0.2, beta=0.9), LOGITS, HARD).item() == pytest.approx(other, rel=1e-5)


def test_an_empty_record_costs_what_is_predicted() -> None:
    """Where smp's loss of an empty batch is 0, whatever was predicted."""
    empty = torch.zeros(1, 4, 4)
    found = value({"name": "dice", "smooth": 1.0}, torch.zeros(1, 4, 4), empty)
    assert found.item() == pytest.approx(1 - 1 / (16 * 0.5 + 1))
    assert value({"name": "dice"}, torch.full((1, 4, 4), -30.0), empty).item() == pytest.approx(0, abs=1e-6)


def test_the_global_dice_is_over_the_steps_before_too() -> None:
    loss = loss_of(plain(name="dice", over="global"))
    steps = [random_masks(seed, share) for seed, share in ((1, 0.1), (2, 0.4), (3, 0.02))]
    for index, (logits, target) in enumerate(steps):
        logits.requires_grad_()
        total, _ = loss(logits, target, ALL)
        fading = [0.99 ** (index - i) for i in range(index + 1)]
        p, t = ([pair[i] for pair in steps[: index + 1]] for i in (0, 1))
        both = torch.stack([f * (a.sigmoid() * b).sum() for f, a, b in zip(fading, p, t, strict=True)]).sum()
        sizes = torch.stack([f * (a.sigmoid() + b).sum() for f, a, b in zip(fading, p, t, strict=True)]).sum()
        expected = 1 - 2 * both / sizes
        assert total.item() == pytest.approx(expected.item(), rel=1e-4)
        (gradient,) = torch.autograd.grad(total, logits)
        (diluted,) = torch.autograd.grad(expected, logits)
        # as large as if the batch were as many as it is averaged with
        assert torch.allclose(gradient, sum(fading) * diluted, atol=1e-7)
        loss.end_step(lambda tensor: tensor)
    again = loss_of(plain(name="dice", over="global"))
    again.load_state_dict(loss.state_dict())
    assert again(LOGITS, HARD, ALL)[0] == loss(LOGITS, HARD, ALL)[0]


@pytest.mark.parametrize("share", [0.3, 0.0, 1.0])
def test_lovasz_is_that_of_smp(share: float) -> None:
    logits, target = random_masks(share=share)
    for over, per_image in (("record", True), ("batch", False)):
        other = smp.losses.LovaszLoss("binary", per_image=per_image)(logits, target).item()
        term: dict[str, object] = {"name": "lovasz_hinge", "over": over}
        assert value(term, logits, target).item() == pytest.approx(other, rel=1e-5)


def test_the_gradient_of_lovasz_is_that_of_smp() -> None:
    logits, target = random_masks()
    logits.requires_grad_()
    (other,) = torch.autograd.grad(smp.losses.LovaszLoss("binary", per_image=True)(logits, target), logits)
    (own,) = torch.autograd.grad(value({"name": "lovasz_hinge"}, logits, target), logits)
    assert torch.allclose(own, other, atol=1e-7)


def test_symmetric_lovasz_treats_both_classes_alike() -> None:
    term: dict[str, object] = {"name": "lovasz_hinge", "symmetric": True}
    assert value(term, LOGITS, HARD) == value(term, -LOGITS, 1 - HARD)
    # one pixel of each class: ranks and weights by hand
    found = value(term, torch.tensor([[[2.0, -0.5]]]), torch.tensor([[[1.0, 0.0]]])).item()
    errors = [math.exp(1 - 2), 0.5 + 1]  # elu(-1) + 1 and elu(0.5) + 1: the second pixel ranks first
    of_positive = 0.5 * errors[1] + 0.5 * errors[0]  # one false positive: 1 of 2; then all wrong
    of_negative = 1.0 * errors[1] + 0.0 * errors[0]  # the only negative missed: no intersection left
    assert found == pytest.approx((of_positive + of_negative) / 2, rel=1e-6)


def distance_in_scipy(mask: np.ndarray) -> np.ndarray:
    distance: np.ndarray = ndimage.distance_transform_edt(~mask)
    return distance if mask.any() else np.full(mask.shape, np.inf)


@pytest.mark.parametrize(("share", "reach"), [(0.02, 5), (0.3, 16), (0.9, 3), (0.0, 4), (1.0, 4)])
def test_the_distance_is_that_of_scipy(share: float, reach: int) -> None:
    _, target = random_masks(share=share, size=40)
    for mask, found in zip(target.bool(), signed_distance(target.bool(), reach), strict=True):
        outside, inside = (distance_in_scipy(part) for part in (mask.numpy(), ~mask.numpy()))
        expected = np.where(mask, -(inside - 0.5), outside - 0.5)
        assert np.allclose(found, np.clip(expected / reach, -1, 1), atol=1e-6)


def test_boundary_is_the_wrong_probability_times_distance() -> None:
    p, distance = LOGITS.sigmoid(), signed_distance(HARD.bool(), 4)
    expected = ((p - HARD) * distance).mean().item()
    assert value({"name": "boundary", "reach_px": 4}, LOGITS, HARD).item() == pytest.approx(expected, rel=1e-5)
    assert expected == pytest.approx(((p - HARD).abs() * distance.abs()).mean().item(), rel=1e-5)


def test_boundary_f1_is_that_of_outlines_in_scipy() -> None:
    _, target = random_masks(share=0.2, size=24)
    target = torch.from_numpy(ndimage.binary_closing(target.numpy(), np.ones((1, 3, 3)))).float()
    predicted = torch.roll(target, (1, 2), (1, 2))
    scores = []
    for p, g in zip(predicted.bool().numpy(), target.bool().numpy(), strict=True):
        square = np.ones((3, 3))
        of_p, of_g = (mask & ~ndimage.binary_erosion(mask, square, border_value=1) for mask in (p, g))
        near_p, near_g = (ndimage.binary_dilation(outline, np.ones((5, 5))) for outline in (of_p, of_g))
        precision = ((of_p & near_g).sum() + 1) / (of_p.sum() + 1)
        recall = ((of_g & near_p).sum() + 1) / (of_g.sum() + 1)
        scores.append(1 - 2 * precision * recall / (precision + recall))
    found = value({"name": "boundary_f1", "tolerance_px": 2}, (2 * predicted - 1) * 40, target)
    assert found.item() == pytest.approx(np.mean(scores), rel=1e-4)
    assert value({"name": "boundary_f1"}, (2 * target - 1) * 40, target).item() == pytest.approx(0, abs=1e-5)


def test_the_edge_of_what_counts_is_no_outline() -> None:
    full, valid = torch.ones(1, 12, 12), torch.ones(1, 12, 12).bool()
    valid[:, :, 6:] = False
    assert value({"name": "boundary_f1"}, -40 * full, full, valid).item() == pytest.approx(0, abs=1e-5)
    half = torch.where(valid, full, 0)
    assert value({"name": "boundary_f1"}, -40 * full, half).item() > 0.5
