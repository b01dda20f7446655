"""Losses in bf16 and fp16 training: float32 throughout, and finite for any logit of these types."""

import pytest
import torch
from every_term import TERMS, loss_of, random_masks
from in_half import InHalf, in_half

every_term = pytest.mark.parametrize("term", TERMS.values(), ids=TERMS.keys())


def test_an_operation_in_half_precision_is_noted() -> None:
    values = torch.ones(3, requires_grad=True)
    with InHalf() as noted:
        values.square().sum().backward()  # type: ignore[no-untyped-call]
    assert noted.seen == []
    with InHalf() as noted:
        values.bfloat16().square().sum().backward()  # type: ignore[no-untyped-call]
    assert {"aten.pow.Tensor_Scalar", "aten.sum.default"} <= set(noted.seen)


@every_term
@in_half
def test_a_loss_is_float32_whatever_surrounds_it(term: dict[str, object], dtype: torch.dtype) -> None:
    logits, target = random_masks()
    valid = torch.ones_like(target).bool()
    results = []
    for precision in (None, dtype):
        own = logits.clone().requires_grad_()
        with torch.autocast("cpu", precision, enabled=precision is not None), InHalf() as noted:
            total, _ = loss_of(term)(own, target, valid, torch.tensor([1.0, 0.5, 1.0]))
            (gradient,) = torch.autograd.grad(total, own)
        assert noted.seen == []
        results.append((total, gradient))
    for plain, other in zip(*results, strict=True):
        assert torch.equal(plain, other)


@every_term
def test_a_loss_of_the_largest_logits_of_fp16_is_finite(term: dict[str, object]) -> None:
    target = torch.zeros(2, 512, 512)
    target[0, 100:140] = 1
    logits = torch.full_like(target, torch.finfo(torch.float16).max)
    logits[:, ::2] *= -1
    logits.requires_grad_()
    total, _ = loss_of(term)(logits, target, torch.ones_like(target).bool())
    (gradient,) = torch.autograd.grad(total, logits)
    assert torch.isfinite(total)
    assert torch.isfinite(gradient).all()
