"""Sums of gradients in buckets: the sum of both ranks, the same operations on both, and during backward."""

from pathlib import Path

from two_ranks import run_two_ranks

SCRIPT = """
import copy
from contrails.train.ranks import gradients

gradients.BUCKET_BYTES = 400
torch.manual_seed(0)
model = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("first", "unused", "second", "of_one", "third", "frozen")})
model["first"].double()
sums = gradients.GradientSums(model, ranks)
plain = copy.deepcopy(model)  # without the hooks
started, in_backward, real = [], False, distributed.all_reduce

def all_reduce(tensor, *arguments, **options):
    if options.get("async_op"):
        started.append((tensor.numel(), in_backward))
    return real(tensor, *arguments, **options)

def loss(model, inputs, piece):
    hidden = model["second"](model["first"](inputs.double()).float())
    if number == 1 and piece == 0:
        hidden = hidden + model["of_one"](inputs)
    return model["frozen"](model["third"](hidden)).square().sum()

distributed.all_reduce = all_reduce
for step, frozen in enumerate((["frozen"], ["frozen", "second"], [])):
    for each in (model, plain):
        each.zero_grad(set_to_none=True)
        for name, part in each.items():
            part.requires_grad_(name not in frozen)
    inputs = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(2 * step + number))
    started.clear()
    for piece in range(2):
        before = len(started)
        if piece == 1:
            sums.arm()
        result = loss(model, inputs[piece], piece)
        in_backward = True
        result.backward()
        in_backward = False
        assert piece == 1 or not started, "reduced before the last piece"
        loss(plain, inputs[piece], piece).backward()
    sums.finish()
    assert any(during for _, during in started) and not all(during for _, during in started), started
    orders = [None, None]
    distributed.all_gather_object(orders, [numel for numel, _ in started])
    assert orders[0] == orders[1], orders
    for (name, summed), own in zip(model.named_parameters(), plain.parameters()):
        flag = torch.tensor([own.grad is not None], dtype=torch.int)
        real(flag)
        if not flag:
            assert summed.grad is None, name
            continue
        expected = torch.zeros_like(own) if own.grad is None else own.grad
        real(expected)
        assert torch.equal(summed.grad, expected), name
        assert not (frozen and name.startswith("frozen"))
"""


def test_buckets_give_the_sums_of_both_ranks_and_begin_during_backward(tmp_path: Path) -> None:
    run_two_ranks(SCRIPT, tmp_path)
