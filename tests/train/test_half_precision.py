"""Training in bf16 and fp16: only the network computes in half precision, and what must be float32 is."""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from conftest import TINY_MODEL, MakeRecipe
from in_half import HALVES, InHalf, in_half, tensors
from torch import nn
from torch.utils._pytree import tree_map

from contrails.dataset.store import Dataset
from contrails.inputs.batches import Batch, source_of
from contrails.inputs.composites import Channel, Composite
from contrails.inputs.sampling import Sampler
from contrails.losses.total import Loss
from contrails.models.build import build_model
from contrails.models.outputs import Outputs
from contrails.models.segmenter import Segmenter
from contrails.recipe.augment import TEMPORAL, AugmentSection, Kind
from contrails.recipe.loss import AnyTerm, LossSection
from contrails.train.evaluate import evaluate
from contrails.train.objective import Objective
from contrails.train.saved.state import new_state

CPU = torch.device("cpu")
HEADS: dict[str, Any] = {"classifier": True, "share": True, "deep_supervision": 1, "heads": 2, "logits": 2}

every_kind = pytest.mark.parametrize("term", [kind.model_fields["name"].default for kind in get_args(AnyTerm)])


def small_batch(size: int = 32) -> Batch:
    random = torch.Generator().manual_seed(1)
    target = (torch.rand(3, size, size, generator=random) < 0.2).float() * 0.75
    valid = torch.rand(3, size, size, generator=random) < 0.9
    weights = torch.tensor([1.0, 0.5, 1.0])
    return Batch(np.arange(3), torch.randn(3, 3, size, size, generator=random), target * valid, valid, 1.0, weights)


def small_model(recipe_with: MakeRecipe, **model: Any) -> Segmenter:
    torch.manual_seed(0)
    return build_model(recipe_with(model=TINY_MODEL | model, data={"size": 48}), 3)


@pytest.mark.parametrize("model", [{}, HEADS, {"heads": 3}, {"deep_supervision": 1, "classifier": True}])
@in_half
def test_the_objective_begins_in_float32(recipe_with: MakeRecipe, model: dict[str, Any], dtype: torch.dtype) -> None:
    batch, network = small_batch(), small_model(recipe_with, **model)
    with torch.autocast("cpu", dtype):
        outputs = network(batch.inputs)
    assert {output.dtype for output in tensors(outputs)} == {torch.float32}
    leaves = tree_map(lambda value: None if value is None else value.detach().requires_grad_(), outputs)
    with InHalf() as noted:
        total, _ = Objective(recipe_with(model=TINY_MODEL | model))(leaves, batch)
        total.backward()
    assert noted.seen == []


@in_half
def test_what_follows_the_last_convolution_is_not_rounded_again(recipe_with: MakeRecipe, dtype: torch.dtype) -> None:
    """The difference of two logits, the mean of heads and the resize to the label: none of them in half precision."""
    network, seen = small_model(recipe_with, **HEADS).eval(), []
    for head in (network.model.segmentation_head, *network.model.more_heads):
        head.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad(), torch.autocast("cpu", dtype):
        outputs = network(small_batch().inputs)
    assert [raw.dtype for raw in seen] == [dtype] * 2
    masks = [(raw.float()[:, 1] - raw.float()[:, 0]) for raw in seen]
    resized = nn.functional.interpolate(torch.stack(masks).mean(0)[:, None], (32, 32), mode="bilinear")[:, 0]
    assert torch.equal(outputs.mask, resized)


@every_kind
def test_loss_and_gradient_in_bf16_are_close_to_those_in_fp32(recipe_with: MakeRecipe, term: str) -> None:
    network, batch = small_model(recipe_with), small_batch()
    last = network.model.segmentation_head[0].weight
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            mask = network(batch.inputs).mask
        total, _ = Loss(LossSection.model_validate({"terms": [term]}))(mask, batch.target, batch.valid, batch.weights)
        found.append((total.detach(), torch.autograd.grad(total, last)[0]))
    (exact, gradient), (total, other) = found
    assert total.item() == pytest.approx(exact.item(), rel=0.02)
    assert (other - gradient).norm() <= 0.1 * gradient.norm()


@in_half
def test_inputs_are_the_same_bits_with_and_without_autocast(
    framed: Dataset, recipe_with: MakeRecipe, dtype: torch.dtype
) -> None:
    kinds = [name for name, kind in AugmentSection() if isinstance(kind, Kind) and name not in TEMPORAL]
    augment = {name: {"probability": 0.7} for name in kinds}
    recipe = recipe_with(augment=augment, train={"batch_size": 4}, data={"frames": [4]})
    # a temperature of 280 K would be rounded to 2 K in bf16
    composite = Composite((Channel({"b14": 1.0}), Channel({"b14": 1.0, "b15": -1.0})), per_image=False)
    runs = []
    for per_image in (False, True):
        source = source_of(framed, recipe, Composite(composite.channels, per_image), CPU)
        for precision in (None, dtype):
            with torch.autocast("cpu", precision, enabled=precision is not None), InHalf() as noted:
                selections = Sampler(framed, recipe, np.arange(9), "0").selections(0, 1)
                batches = source.batches(selections)
                runs.append([next(batches) for _ in range(4)])
                batches.close()  # type: ignore[attr-defined]
            assert noted.seen == []
    for plain, other in ((runs[0], runs[1]), (runs[2], runs[3])):
        for one, two in zip(plain, other, strict=True):
            assert one.inputs.dtype == torch.float32
            assert torch.equal(one.inputs, two.inputs)
            assert torch.equal(one.target, two.target)


@in_half
def test_scores_of_validation_are_float32(framed: Dataset, recipe_with: MakeRecipe, dtype: torch.dtype) -> None:
    """A network without products has the same output, and so the same loss and histogram, under autocast."""

    class Mean(nn.Module):
        def forward(self, inputs: torch.Tensor) -> Outputs:
            return Outputs(inputs.mean(1) - 0.3)

    source = source_of(framed, recipe_with(data={"frames": [4]}), Composite((Channel({"b14": 0.01}, -2.5),)), CPU)
    results = []
    for precision in (None, dtype):
        with torch.autocast("cpu", precision, enabled=precision is not None), InHalf() as noted:
            results.append(evaluate(Mean(), source, np.arange(9), 4))
        assert noted.seen == []
    assert results[0].loss == results[1].loss
    assert np.array_equal(results[0].histogram.positive, results[1].histogram.positive)
    assert np.array_equal(results[0].histogram.negative, results[1].histogram.negative)


@in_half
def test_weights_gradients_and_averages_are_float32(recipe_with: MakeRecipe, dtype: torch.dtype) -> None:
    train = {"precision": "bf16" if dtype == torch.bfloat16 else "fp16", "ema_decay": 0.9, "swa_epochs": 1}
    network, batch = small_model(recipe_with), small_batch()
    recipe = recipe_with(model=TINY_MODEL, train=train)
    state = new_state(network, Objective(recipe), recipe.train, CPU)
    with torch.autocast("cpu", dtype):
        outputs = network(batch.inputs)
    state.scaler.scale(state.loss(outputs, batch)[0]).backward()
    with InHalf() as noted:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        for average in (state.ema, state.swa):
            assert average is not None
            average.update(0.1)
    assert noted.seen == []
    assert not {tensor.dtype for tensor in tensors(state.state_dict())} & set(HALVES)
