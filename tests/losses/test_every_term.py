"""What holds for every loss: finite gradients, pixels that do not count, weights of records, its minimum."""

from typing import get_args

import pytest
import torch
from every_term import TERMS, loss_of, random_masks, value

from contrails.recipe.loss import AnyTerm

Options = dict[str, object]
SOFT_MINIMUM = {
    "bce",
    "softmax",
    "quality focal",
    "mse",
    "dice record",
    "dice batch",
    "dice global",
    "log dice",
    "jaccard",
}
"""Losses with their minimum at p = t for soft targets too, beside tversky."""


def every(names: set[str] | None = None) -> pytest.MarkDecorator:
    chosen = {name: term for name, term in TERMS.items() if names is None or name in names}
    return pytest.mark.parametrize("term", chosen.values(), ids=chosen.keys())


def test_no_loss_is_forgotten() -> None:
    assert {term["name"] for term in TERMS.values()} == {kind().name for kind in get_args(AnyTerm)}


@every()
@pytest.mark.parametrize("size", [1.0, 200.0])
@pytest.mark.parametrize("case", ["empty", "full", "ignored", "soft", "right", "wrong", "one pixel"])
def test_loss_and_gradient_are_finite(term: Options, case: str, size: float) -> None:
    logits, target = random_masks()
    valid = torch.ones_like(target).bool()
    match case:
        case "empty":
            target = torch.zeros_like(target)
        case "full":
            target = torch.ones_like(target)
        case "ignored":
            valid = torch.zeros_like(valid)
        case "soft":
            target = torch.rand(target.shape, generator=torch.Generator().manual_seed(1))
        case "right" | "wrong":
            logits = (2 * target - 1) * (1 if case == "right" else -1)
        case "one pixel":
            logits, target, valid = (tensor[:1, :1, :1] for tensor in (logits, target, valid))
    logits = (size * logits).requires_grad_()
    loss = value(term, logits, target, valid)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    if case == "ignored":
        assert loss == 0
        assert not gradient.any()
    elif case == "wrong" and size == 1:
        assert gradient.any()


@every()
def test_double_precision_is_kept(term: Options) -> None:
    logits, target = random_masks()
    exact = logits.double().requires_grad_()
    loss = value(term, exact, target.double())
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.dtype == torch.float64
    assert exact.grad is not None
    assert torch.allclose(loss.float(), value(term, logits, target), rtol=1e-5, atol=1e-6)


@every()
def test_ignored_pixels_do_not_count(term: Options) -> None:
    logits, target = random_masks()
    valid = torch.ones_like(target).bool()
    valid[0, :, 5:] = valid[2] = False
    other = torch.where(valid, logits, 7 - logits).requires_grad_()
    loss = value(term, other, torch.where(valid, target, 1 - target), valid)
    assert loss.item() == pytest.approx(value(term, logits, target, valid).item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, other)
    assert not gradient[~valid].any()
    assert gradient[valid].any()
    if term["name"] != "boundary_f1":  # which looks at neighbours: the edge of what counts is no outline
        cut = value(term, logits[:1, :, :5], target[:1, :, :5])
        alone = valid.clone()
        alone[1:] = False
        assert value(term, logits, target, alone).item() == pytest.approx(cut.item(), rel=1e-5)


@every()
def test_a_record_of_weight_zero_is_as_one_that_is_ignored(term: Options) -> None:
    logits, target = random_masks()
    valid = torch.ones_like(target).bool()
    weighted, _ = loss_of(term)(logits, target, valid, torch.tensor([1.0, 0.0, 1.0]))
    valid[1] = False
    assert weighted.item() == pytest.approx(value(term, logits, target, valid).item(), rel=1e-5)


@every(set(TERMS) - {"dice batch", "dice global", "log dice", "jaccard", "tversky", "ohem", "lovasz batch"})
def test_a_record_of_weight_one_half_pulls_half_as_hard(term: Options) -> None:
    logits, target = random_masks()
    logits.requires_grad_()
    gradients = []
    for weights in (torch.ones(3), torch.tensor([1.0, 0.5, 1.0])):
        total, _ = loss_of(term)(logits, target, torch.ones_like(target).bool(), weights)
        gradients.append(torch.autograd.grad(total, logits)[0])
    factors = torch.tensor([1.0, 0.5, 1.0]).view(3, 1, 1)
    assert torch.allclose(gradients[1], gradients[0] * factors, atol=1e-8)


@every()
def test_a_step_against_the_gradient_helps(term: Options) -> None:
    logits, target = random_masks()
    logits.requires_grad_()
    loss = value(term, logits, target)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert value(term, logits - 1e-2 * gradient / gradient.norm(), target) < loss


@every(set(TERMS) - {"bce weighted"})
def test_the_perfect_prediction_of_a_hard_target_is_the_minimum(term: Options) -> None:
    logits, target = random_masks()
    perfect = value(term, (2 * target - 1) * 40, target)
    assert perfect == pytest.approx(0, abs=1e-6)
    assert value(term, logits, target) > perfect + 1e-3
    assert value(term, -logits, target) > perfect + 1e-3


@every(SOFT_MINIMUM | {"tversky"})
def test_the_perfect_prediction_of_a_soft_target_is_the_minimum(term: Options) -> None:
    random = torch.Generator().manual_seed(3)
    target = torch.randint(0, 5, (2, 8, 8), generator=random) / 4
    logits = torch.logit(target, eps=1e-6)
    best = value(term, logits, target)
    if term["name"] not in ("bce", "softmax_ce"):
        assert best == pytest.approx(0, abs=1e-4)
    for _ in range(20):
        worse = logits + 0.3 * torch.randn(logits.shape, generator=random)
        assert value(term, worse, target) > best


@every()
def test_nothing_waits_for_the_device(term: Options) -> None:
    """On the meta device tensors have no values: what asks for one fails."""
    logits, target = (tensor.to("meta") for tensor in random_masks())
    logits.requires_grad_()
    total, _ = loss_of(term).to("meta")(logits, target, torch.ones(3, 12, 12, dtype=torch.bool, device="meta"))
    assert total.shape == ()
