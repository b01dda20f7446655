"""Batch norm over two processes: as on the whole batch, forward and backward, and alone where it must be."""

from pathlib import Path

import pytest
from torch import nn
from two_ranks import run_two_ranks

from contrails.errors import RecipeError
from contrails.train.ranks.batch_norm import join_batch_norms

SCRIPT = """
import copy
import timm
from contrails.train.ranks.batch_norm import join_batch_norms, leave_ranks
from contrails.train.ranks.gradients import GradientSums

torch.manual_seed(0)
frozen = timm.layers.freeze_batch_norm_2d(nn.BatchNorm2d(6))
whole = nn.Sequential(
    nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), timm.layers.BatchNormAct2d(6), frozen,
    nn.Conv2d(6, 2, 1), nn.BatchNorm2d(2, momentum=None, affine=False),
)
model = copy.deepcopy(whole)
join_batch_norms(model)
assert list(model.state_dict()) == list(whole.state_dict())
assert type(model[5]) is type(frozen)
sums = GradientSums(model, ranks)
mine = slice(0, 3) if number == 0 else slice(3, 5)  # the ranks need not have the same number of records
for step in range(2):
    inputs = torch.randn(5, 3, 9, 9)
    weights, found = torch.randn(5, 2, 5, 5), []
    for each, rows in ((whole, slice(None)), (model, mine)):
        each.zero_grad(set_to_none=True)
        given = inputs[rows].clone().requires_grad_()
        sums.arm()
        outputs = each(given)
        (outputs * weights[rows]).sum().backward()
        found.append((outputs.detach(), given.grad))
    sums.finish()
    for of_all, own in zip(*found):
        torch.testing.assert_close(own, of_all[mine], rtol=1e-4, atol=1e-5)
    for one, other in zip(model.parameters(), whole.parameters()):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)
for (name, one), other in zip(model.named_buffers(), whole.buffers()):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    both = [torch.empty_like(one), torch.empty_like(one)]
    distributed.all_gather(both, one)
    assert torch.equal(*both), name  # the same bits on both ranks

far = 1000 + torch.randn(5, 3, 9, 9)
norm = nn.Sequential(nn.BatchNorm2d(3))
join_batch_norms(norm)
variance, mean = torch.var_mean(far.double(), (0, 2, 3), correction=0, keepdim=True)
exact = (far.double() - mean) / variance.sqrt()
torch.testing.assert_close(norm(far[mine]), exact[mine].float(), rtol=0, atol=2e-3)

with torch.autocast("cpu", torch.bfloat16):
    half = model(torch.randn(2, 3, 9, 9))
assert half.dtype == torch.bfloat16 and model[1].running_var.dtype == torch.float32
if number == 0:  # the other rank takes no part in what follows
    alone = copy.deepcopy(model)
    leave_ranks(alone)
    alone.train()(torch.randn(2, 3, 9, 9))
    model.eval()(torch.randn(2, 3, 9, 9))
    model.train()
    model[1].eval()  # as a frozen part of a model
    model[:2](torch.randn(2, 3, 9, 9))
"""


def test_two_ranks_normalise_as_one_process_does(tmp_path: Path) -> None:
    run_two_ranks(SCRIPT, tmp_path)


def test_a_model_without_batch_norm_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"sync_batch_norm = true: expected a model with batch norm, found none"):
        join_batch_norms(nn.Sequential(nn.GroupNorm(2, 4)))
