"""Each term once or more, and the masks that losses are tried on."""

import torch

from contrails.losses.total import Loss
from contrails.recipe.loss import LossSection

TERMS: dict[str, dict[str, object]] = {
    "bce": {"name": "bce"},
    "bce weighted": {"name": "bce", "pos_weight": 4.0, "smoothing": 0.1},
    "softmax": {"name": "softmax_ce"},
    "focal": {"name": "focal"},
    "focal 0.5": {"name": "focal", "gamma": 0.5},
    "quality focal": {"name": "quality_focal"},
    "hinge": {"name": "hinge"},
    "mse": {"name": "mse"},
    "symmetric": {"name": "symmetric_ce"},
    "ohem": {"name": "ohem", "min_keep": 5},
    "dice record": {"name": "dice", "over": "record"},
    "dice batch": {"name": "dice", "over": "batch"},
    "dice global": {"name": "dice", "over": "global"},
    "log dice": {"name": "log_dice", "gamma": 0.3},
    "jaccard": {"name": "jaccard"},
    "tversky": {"name": "tversky"},
    "lovasz record": {"name": "lovasz_hinge"},
    "lovasz batch": {"name": "lovasz_hinge", "over": "batch"},
    "lovasz symmetric": {"name": "lovasz_hinge", "symmetric": True},
    "boundary": {"name": "boundary", "reach_px": 4},
    "boundary f1": {"name": "boundary_f1"},
}


def loss_of(*terms: dict[str, object], **options: object) -> Loss:
    return Loss(LossSection.model_validate({"terms": terms, **options}), lambda: 0.01)


def value(
    term: dict[str, object], logits: torch.Tensor, target: torch.Tensor, valid: torch.Tensor | None = None
) -> torch.Tensor:
    """Return one term's loss; all pixels count where nothing is said."""
    total, _ = loss_of(term)(logits, target, torch.ones_like(target).bool() if valid is None else valid)
    assert isinstance(total, torch.Tensor)
    return total


def random_masks(seed: int = 0, share: float = 0.3, size: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and hard targets, float32 (3, size, size)."""
    random = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, size, size, generator=random)
    return logits, (torch.rand(3, size, size, generator=random) < share).float()
