"""Batch norm with the statistics of all ranks, which are those of the whole piece of a step.

torch's SyncBatchNorm needs CUDA; this works over gloo too. Each rank sends its mean and its sum of squared deviations,
and every rank merges them in the order of the ranks, so that the bits do not depend on how the group sums.
"""

from typing import Any

import torch
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from contrails.errors import RecipeError


class RankBatchNorm(_BatchNorm):
    """A batch norm over all ranks during training, with the parameters, buffers and names of the one it replaces.

    Statistics are float32. In evaluation mode, and with `alone`, it uses no other rank.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        """Take over the parameters and buffers of a norm, and the activation inside a norm of timm."""
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.drop, self.act = getattr(norm, "drop", nn.Identity()), getattr(norm, "act", nn.Identity())
        self.alone = False
        self.train(norm.training)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Normalise each channel.

        Shape:
            inputs and result (B, C, ...), of any float type.
        """
        together = self.training and not self.alone
        result = self._over_ranks(inputs) if together else super().forward(inputs)
        activated: torch.Tensor = self.act(self.drop(result))
        return activated

    def _over_ranks(self, inputs: torch.Tensor) -> torch.Tensor:
        result, mean, variance, count = _Normalise.apply(inputs, self.weight, self.bias, self.eps)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            factor = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
            unbiased = variance * (count / (count - 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), factor)
        normalised: torch.Tensor = result
        return normalised

    def _check_input_dim(self, inputs: torch.Tensor) -> None:
        """Accept every number of axes: the replaced norm is of one, two or three dimensions."""


def join_batch_norms(model: nn.Module) -> None:
    """Replace each batch norm of a model, in place; frozen ones and other norms stay.

    Raises:
        RecipeError: the model has no batch norm.
    """
    if not _replaced(model):
        raise RecipeError(
            "train.sync_batch_norm = true: expected a model with batch norm, found none in this one (encoder and "
            "decoder have other norms, or frozen ones); leave the key out"
        )


def leave_ranks(model: nn.Module) -> None:
    """Let the batch norms of a model use this rank alone, for passes that the other ranks do not make."""
    for module in model.modules():
        if isinstance(module, RankBatchNorm):
            module.alone = True


def _replaced(module: nn.Module) -> bool:
    found = False
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, RankBatchNorm(child))
            found = True
        else:
            found = _replaced(child) or found
    return found


class _Normalise(torch.autograd.Function):
    """Batch norm over the ranks; returns the result, and the mean, variance and count of values of a channel."""

    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        values = inputs.float()
        variance, mean = torch.var_mean(values, _over(values), correction=0)
        own_count = values.numel() // values.shape[1]
        of_ranks = _gathered(torch.cat([mean, variance, mean.new_full((1,), own_count)]))
        means, variances = of_ranks[:, :-1].chunk(2, dim=1)
        counts = of_ranks[:, -1:]
        count = counts.sum()
        # Chan, Golub & LeVeque 1983: no difference of large squares, which E[x^2] - E[x]^2 is
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean).square())).sum(0) / count
        scale = torch.rsqrt(variance + eps)
        result = (values - _spread(mean, values)) * _spread(scale if weight is None else scale * weight, values)
        if bias is not None:
            result = result + _spread(bias, values)
        ctx.save_for_backward(inputs, weight, mean, scale, count)
        ctx.has_bias = bias is not None
        ctx.mark_non_differentiable(mean, variance, count)
        return result.to(inputs.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, weight, mean, scale, count = ctx.saved_tensors
        slope, axes = gradient.float(), _over(inputs)
        normal = (inputs.float() - _spread(mean, inputs)) * _spread(scale, inputs)
        of_bias, of_weight = slope.sum(axes), (slope * normal).sum(axes)
        total_bias, total_weight = (_gathered(torch.cat([of_bias, of_weight])).sum(0) / count).chunk(2)
        of_inputs = slope - _spread(total_bias, slope) - normal * _spread(total_weight, slope)
        of_inputs = of_inputs * _spread(scale if weight is None else scale * weight, slope)
        # those of the parameters stay the rank's own: they are summed over the ranks with all other gradients
        own = (None if weight is None else of_weight, of_bias if ctx.has_bias else None)
        return of_inputs.to(inputs.dtype), *own, None


def _gathered(own: torch.Tensor) -> torch.Tensor:
    """Return a vector of each rank, (ranks, N), in the order of the ranks."""
    rows = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(rows, own.contiguous())
    return torch.stack(rows)


def _over(values: torch.Tensor) -> list[int]:
    """Return the axes of a tensor (B, C, ...) that a channel's statistics are taken over."""
    return [0, *range(2, values.ndim)]


def _spread(of_channels: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return a vector (C,) in a shape that broadcasts to `values`, (B, C, ...)."""
    return of_channels.view(1, -1, *[1] * (values.ndim - 2))
