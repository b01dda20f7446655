"""A network: encoder, merge of frames, decoder and heads."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from contrails.models.outputs import Outputs
from contrails.models.relu import BeforeRelu
from contrails.models.temporal import FrameMerge
from contrails.recipe.model import ModelSection


class Network(nn.Module):
    """The modules of an smp model with further heads, and a merge of frames between encoder and decoder.

    `parts` is the smp model; for a classifier only its encoder is used. The modules keep their names in smp, so that
    weights can be loaded into models of other recipes. `aux_channels` are the channels of the decoder levels with deep
    supervision, from fine to coarse. With `gate` the mask is trained only on records with a contrail, so outside of
    training its probability is multiplied by that of the classifier.
    """

    def __init__(
        self,
        section: ModelSection,
        parts: Any,
        merge: FrameMerge | None,
        aux_channels: Sequence[int] = (),
        *,
        gate: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.merge = parts.encoder, merge
        self.gate, self.head_dropout = gate, section.head_dropout
        self.adds_relu = section.relu_features == "add"
        self.before_relu = BeforeRelu(self.encoder) if section.relu_features == "remove" else None
        width = self.encoder.out_channels[-1]
        self.classifier = _record_head(width, section.head_dropout) if section.has_classifier else None
        self.share = _record_head(width, section.head_dropout) if section.share else None
        self.decoder = parts.decoder if section.task == "segment" else None
        self.segmentation_head = _mask_head(parts.segmentation_head, section) if self.decoder is not None else None
        self.more_heads = nn.ModuleList(_mask_head(parts.segmentation_head, section) for _ in range(section.heads - 1))
        self.aux_heads = nn.ModuleList(nn.Conv2d(channels, section.logits, 1) for channels in aux_channels)
        for head in (*self.more_heads, *self.aux_heads):
            for module in head.modules():
                if isinstance(module, nn.Conv2d):
                    module.reset_parameters()

    def forward(self, inputs: torch.Tensor) -> Outputs:
        """Return logits at the size of the inputs.

        Shape:
            inputs (B, C, H, W), or (B, T, C, H, W) with frames as an axis.
        """
        size = inputs.shape[-2:]
        features, *others = self._encoded(inputs)
        classes, share = (None if head is None else head(features[-1])[:, 0] for head in (self.classifier, self.share))
        if self.decoder is None:
            assert classes is not None
            return Outputs(classes[:, None, None].expand(-1, *size), classes)
        with _outputs_of(decoder_levels(self.decoder)[: len(self.aux_heads)]) as levels:
            decoded = self.decoder(features, *others)
        decoded = functional.dropout2d(decoded, self.head_dropout, self.training)
        masks = tuple(_logit(head(decoded), size) for head in (self.segmentation_head, *self.more_heads) if head)
        aux: tuple[torch.Tensor, ...] = ()
        if self.training:
            aux = tuple(_logit(head(level), size) for head, level in zip(self.aux_heads, levels[::-1], strict=True))
        mean = masks[0] if len(masks) == 1 else torch.stack(masks).mean(0)
        if self.gate and not self.training:
            assert classes is not None
            mean = _both(mean, classes.view(-1, 1, 1))
        return Outputs(mean, classes, share, masks if len(masks) > 1 else (), aux)

    def _encoded(self, inputs: torch.Tensor) -> Sequence[Any]:
        """Return the features of the labelled frame, from fine to coarse, and the tokens for the decoder of DPT."""
        encoded: Any = self.encoder(inputs if self.merge is None else inputs.flatten(0, 1))
        features, others = (encoded[0], encoded[1:]) if isinstance(encoded, tuple) else (encoded, ())
        if self.before_relu is not None:
            features = self.before_relu.features(features)
        if self.merge is not None:
            features = self.merge(features, inputs.shape[1])
        if self.adds_relu:
            features = [features[0], *(functional.relu(feature) for feature in features[1:])]
        return features, *others

    def start_at(self, pixels: float, records: float) -> None:
        """Set the biases of the heads to the logits of `pixels` and `records`, the rates of positive ones."""
        masks = [head for head in (self.segmentation_head, *self.more_heads, *self.aux_heads) if head is not None]
        with torch.no_grad():
            for head, rate in (*((mask, pixels) for mask in masks), (self.classifier, records), (self.share, pixels)):
                if head is not None:
                    bias = [module for module in head.modules() if isinstance(module, nn.Conv2d | nn.Linear)][-1].bias
                    assert bias is not None
                    bias.zero_()[-1] = torch.logit(torch.tensor(rate, dtype=torch.float64), eps=1e-6)


def decoder_levels(decoder: nn.Module) -> list[nn.Module]:
    """Return the blocks of a U-Net's decoder except the last one, from fine to coarse."""
    blocks: Any = getattr(decoder, "blocks", ())
    if isinstance(blocks, nn.ModuleDict):  # in UNet++ the main chain is x_0_0, x_0_1, ...
        blocks = [blocks[name] for name in sorted(blocks) if name.startswith("x_0_")]
    return list(blocks)[-2::-1]


@contextmanager
def _outputs_of(modules: Sequence[nn.Module]) -> Iterator[list[torch.Tensor]]:
    """Yield a list to which the outputs of modules are added in the body, in the order in which the modules run."""
    outputs: list[torch.Tensor] = []
    with ExitStack() as stack:
        for module in modules:
            handle = module.register_forward_hook(lambda _, __, output: outputs.append(output))
            stack.callback(handle.remove)
        yield outputs


def _logit(logits: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Return one logit, float32 (B, H, W); the softmax of two is the sigmoid of their difference."""
    logits = logits.float()  # a difference, a mean of heads and a resize in half precision would round once more
    if logits.shape[-2:] != size:
        logits = functional.interpolate(logits, size, mode="bilinear")
    return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]


def _both(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the logit of the product of two probabilities given as logits."""
    log_product = functional.logsigmoid(first.float()) + functional.logsigmoid(second.float())
    # log(1 - p q) in a stable form; clamped, because the product can round to 1 in float32
    return log_product - torch.log(-torch.expm1(log_product.clamp(max=-1e-7)))


def _mask_head(head: nn.Module, section: ModelSection) -> nn.Module:
    """Return a copy of smp's head; with `head_channels`, one that upsamples and then has two convolutions."""
    head = copy.deepcopy(head)
    if not section.head_channels:
        return head
    width = next(module for module in head.modules() if isinstance(module, nn.Conv2d)).in_channels
    upsampling = [module for module in head.children() if isinstance(module, nn.Upsample)]
    return nn.Sequential(
        *upsampling,
        nn.Conv2d(width, section.head_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(section.head_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(section.head_channels, section.logits, 1),
    )


def _record_head(width: int, dropout: float) -> nn.Module:
    """Return a head on the coarsest feature with one logit per record, (B, 1)."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(width, 1))
