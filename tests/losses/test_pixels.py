"""Losses of pixels, against other libraries where they have them, else against their formula in plain numpy."""

import math

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from every_term import random_masks, value
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from contrails.losses.pixels import binary_cross_entropy

LOGITS, HARD = random_masks()
SOFT = torch.randint(0, 5, (3, 12, 12), generator=torch.Generator().manual_seed(5)) / 4


def probabilities(logits: torch.Tensor) -> np.ndarray:
    result: np.ndarray = 1 / (1 + np.exp(-logits.double().numpy()))
    return result


def test_cross_entropy_in_closed_form() -> None:
    logits, target = torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[0.25, 1.0]]])
    expected = (math.log(2) + math.log(1 + math.exp(-2))) / 2
    assert float(binary_cross_entropy(logits, target, torch.ones_like(target))) == pytest.approx(expected, rel=1e-6)
    # what counts may be a mask
    half = binary_cross_entropy(logits, target, torch.tensor([[[True, False]]]))
    assert float(half) == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize(("pos_weight", "smoothing"), [(1.0, 0.0), (3.5, 0.0), (0.2, 0.1)])
def test_weighted_cross_entropy_is_that_of_smp(pos_weight: float, smoothing: float) -> None:
    term: dict[str, object] = {"name": "bce", "pos_weight": pos_weight, "smoothing": smoothing}
    # smp moves hard targets by its factor each way: to 1 - s and s
    other = smp.losses.SoftBCEWithLogitsLoss(smooth_factor=smoothing / 2, pos_weight=torch.tensor([pos_weight]))
    for target in (HARD, SOFT):
        assert value(term, LOGITS, target).item() == pytest.approx(other(LOGITS, target).item(), rel=1e-5)


def test_softmax_cross_entropy_is_that_of_torch() -> None:
    two = torch.stack([0.3 * LOGITS.flip(0), LOGITS], dim=1)
    for target in (HARD, SOFT):
        other = functional.cross_entropy(two, torch.stack([1 - target, target], 1), label_smoothing=0.1)
        found = value({"name": "softmax_ce", "smoothing": 0.1}, two[:, 1] - two[:, 0], target)
        assert found.item() == pytest.approx(other.item(), rel=1e-5)


def test_balanced_is_one_over_the_rate() -> None:
    balanced = value({"name": "bce", "pos_weight": "balanced"}, LOGITS, HARD)  # at a rate of 1%
    assert balanced == value({"name": "bce", "pos_weight": 100.0}, LOGITS, HARD)


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.5, 0.9), (0.0, 0.5)])
def test_focal_is_that_of_torchvision(gamma: float, alpha: float) -> None:
    term: dict[str, object] = {"name": "focal", "gamma": gamma, "alpha": alpha}
    other = sigmoid_focal_loss(LOGITS, HARD, alpha=alpha, gamma=gamma, reduction="mean")
    assert value(term, LOGITS, HARD).item() == pytest.approx(other.item(), rel=1e-5)
    # a soft target is the mean over its annotators
    annotators = [(torch.arange(4).view(4, 1, 1, 1) < 4 * SOFT)[i].float() for i in range(4)]
    losses = [value(term, LOGITS, marks).item() for marks in annotators]
    assert value(term, LOGITS, SOFT).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_quality_focal_is_its_formula() -> None:
    p, t = probabilities(LOGITS), SOFT.numpy()
    expected = (np.abs(t - p) ** 1.5 * -(t * np.log(p) + (1 - t) * np.log(1 - p))).mean()
    assert value({"name": "quality_focal", "beta": 1.5}, LOGITS, SOFT).item() == pytest.approx(expected, rel=1e-5)


def test_hinge_is_its_formula() -> None:
    signs = 2 * HARD.numpy() - 1
    expected = np.maximum(0, 1 - signs * LOGITS.numpy()).mean()
    assert value({"name": "hinge"}, LOGITS, HARD).item() == pytest.approx(expected, rel=1e-5)
    right = value({"name": "hinge"}, torch.ones(1, 1, 1), torch.full((1, 1, 1), 0.75))
    assert right == 2 * 0.25  # the least there is for t = 3/4


def test_mse_is_that_of_torch() -> None:
    other = functional.mse_loss(LOGITS.sigmoid(), SOFT)
    assert value({"name": "mse"}, LOGITS, SOFT).item() == pytest.approx(other.item(), rel=1e-5)


def test_symmetric_cross_entropy_is_its_formula() -> None:
    p = probabilities(LOGITS)
    for target in (HARD, SOFT):
        t = target.numpy().astype(np.float64)
        entropy = -(t * np.log(p) + (1 - t) * np.log(1 - p))
        with np.errstate(divide="ignore"):
            log_t, log_not_t = np.maximum(np.log(t), -4), np.maximum(np.log(1 - t), -4)
        expected = (0.3 * entropy - 2 * (p * log_t + (1 - p) * log_not_t)).mean()
        found = value({"name": "symmetric_ce", "alpha": 0.3, "beta": 2.0}, LOGITS, target)
        assert found.item() == pytest.approx(expected, rel=1e-5)


def hard_examples(threshold: float, min_keep: int) -> float:
    """The definition with loops over classes and a sort."""
    p, t = probabilities(LOGITS).ravel(), HARD.numpy().ravel()
    means = []
    for label in (0, 1):
        of_true = np.sort(np.where(t == 1, p, 1 - p)[t == label])
        kept = of_true[: max(min_keep, np.count_nonzero(of_true < threshold))]
        means.append(-np.log(kept).mean())
    return float(np.mean(means))


@pytest.mark.parametrize(("threshold", "min_keep"), [(0.7, 1), (0.01, 20), (0.3, 10_000), (0.99, 1)])
def test_ohem_keeps_the_hard_pixels_of_each_class(threshold: float, min_keep: int) -> None:
    term: dict[str, object] = {"name": "ohem", "threshold": threshold, "min_keep": min_keep}
    assert value(term, LOGITS, HARD).item() == pytest.approx(hard_examples(threshold, min_keep), rel=1e-5)


def test_ohem_of_a_batch_with_one_class_is_that_class() -> None:
    term: dict[str, object] = {"name": "ohem", "min_keep": 10_000}
    empty = torch.zeros_like(HARD)
    assert value(term, LOGITS, empty).item() == pytest.approx(value({"name": "bce"}, LOGITS, empty).item(), rel=1e-5)
