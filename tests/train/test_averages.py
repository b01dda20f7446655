"""Averages against torch's AveragedModel."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from contrails.train.saved.averages import Average


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))


def train_a_little(network: nn.Module, step: int) -> None:
    torch.manual_seed(step)
    network(torch.randn(4, 2, 8, 8))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))


def test_the_mean_is_that_of_torch() -> None:
    network = model()
    ours, theirs = Average(network), AveragedModel(network, use_buffers=True)
    for step in range(5):
        train_a_little(network, step)
        ours.update_mean()
        theirs.update_parameters(network)
    expected = theirs.module.state_dict()
    for name, tensor in ours.tensors.items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor, expected[name], atol=1e-6), name
    assert ours.count == 5


def test_the_exponential_one_fades_and_starts_fast() -> None:
    network = model()
    average = Average(network)
    name = "0.weight"
    expected = average.tensors[name].clone()
    for step in range(30):
        train_a_little(network, step)
        average.update_exponential(0.9)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * network.state_dict()[name]
    assert torch.allclose(average.tensors[name], expected, atol=1e-5)
    assert average.tensors["1.num_batches_tracked"] == 30


def test_a_restored_average_goes_on_as_the_first() -> None:
    network = model()
    one, other = Average(network), Average(network)
    train_a_little(network, 1)
    one.update_mean()
    other.load_state_dict(one.state_dict())
    train_a_little(network, 2)
    one.update_mean()
    other.update_mean()
    assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())
    assert other.count == 2
