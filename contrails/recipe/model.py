"""The model in a recipe: architecture and encoder by their names in smp, heads, and how frames are merged."""

from typing import Literal, Self

from pydantic import Field, model_validator

from contrails.recipe.base import Section


class TemporalSection(Section):
    """How a model merges the frames of `data.frames`."""

    merge: Literal["channels", "conv3d", "gru", "lstm", "panels", "volume"] = Field(
        "channels",
        description="frames as channels; features merged by Conv3d, ConvGRU or ConvLSTM; frames as panels of one "
        "image; or volume, for the encoder cnn3d",
    )
    levels: tuple[int, ...] = Field((), description="feature levels to merge, 1 is the finest; empty: all")
    layers: int = Field(2, ge=1, le=4, description="Conv3d layers per level; the last one spans all frames")
    own: bool = Field(True, description="concatenate the labelled frame's own feature with the merged feature")

    @property
    def merges_features(self) -> bool:
        """Whether the encoder runs on every frame and its features are merged."""
        return self.merge in ("conv3d", "gru", "lstm")

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.levels and not self.merges_features:
            raise ValueError(f"levels = {list(self.levels)} needs merge = 'conv3d', 'gru' or 'lstm'")
        if any(level < 1 for level in self.levels) or len(set(self.levels)) < len(self.levels):
            raise ValueError(f"levels = {list(self.levels)}: expected different numbers from 1 on")
        return self


Options = dict[str, bool | int | float | str | tuple[int, ...]]
"""Keyword arguments for smp or timm; `contrails.models.names` checks them."""


class ModelSection(Section):
    """The network, with the names of segmentation-models-pytorch (smp)."""

    task: Literal["segment", "classify"] = Field(
        "segment", description="segment: predict a mask; classify: only whether the record has a contrail"
    )
    architecture: str = Field("Unet", description="smp architecture, such as Unet or FPN")
    encoder: str = Field("resnet18", description="smp encoder, tu-NAME for a timm one, or cnn3d")
    encoder_depth: int = Field(5, ge=3, le=5, description="number of encoder stages used")
    decoder_channels: tuple[int, ...] = Field(
        (), description="one number per stage, or a single one, by architecture; empty: 256, 128, ... or smp's"
    )
    encoder_options: Options = Field({}, description="keyword arguments of a timm encoder, as drop_path_rate = 0.1")
    decoder_options: Options = Field(
        {}, description="keyword arguments of the architecture, such as decoder_attention_type = 'scse'"
    )
    pretrained: str | None = Field(
        None, description="weights of the encoder: default, a name such as imagenet, or a file; empty: random weights"
    )
    stem_stride: Literal[1, 2] | None = Field(
        None, description="stride of the encoder's first convolution; empty: its usual stride"
    )
    activation: Literal["relu", "leaky_relu", "silu", "gelu", "mish"] = Field(
        "relu", description="activation of the decoder"
    )
    norm: Literal["batch", "group"] = Field("batch", description="norm of the layers that are not pretrained")
    encoder_norm: Literal["own", "group", "frozen"] = Field(
        "own", description="norm of the encoder: its own, group norm, or batch norm with frozen statistics and scales"
    )
    relu_features: Literal["own", "add", "remove"] = Field(
        "own",
        description="features for the decoder: as the encoder returns them, with a ReLU added, or before the last ReLU",
    )
    skip_dropout: float = Field(
        0.0, ge=0, lt=1, description="probability of Dropout2d after a skip connection is merged"
    )
    head_dropout: float = Field(
        0.0, ge=0, lt=1, description="probability of dropout before the last layer of each head"
    )
    align_corners: bool | None = Field(
        None, description="align_corners of bilinear upsampling in decoder and head; empty: the default of smp"
    )
    head_channels: int = Field(
        0, ge=0, description="channels of one more convolution after the last upsampling; 0: no such convolution"
    )
    logits: Literal[1, 2] = Field(1, description="one logit, or two whose softmax is the probability")
    heads: int = Field(1, ge=1, le=8, description="number of mask heads, whose mean is the mask; a loss can act on one")
    deep_supervision: int = Field(0, ge=0, le=4, description="number of coarser decoder levels with their own mask")
    classifier: bool = Field(False, description="add a head that predicts whether the record has a contrail")
    share: bool = Field(False, description="add a head that predicts the fraction of the record that is covered")
    head_bias: Literal["zero", "rate"] = Field(
        "zero", description="initial bias of the heads: 0, or the logit of the rate of positives"
    )
    temporal: TemporalSection = TemporalSection()

    @property
    def has_classifier(self) -> bool:
        return self.classifier or self.task == "classify"

    @model_validator(mode="after")
    def _possible(self) -> Self:
        deepest = max(self.temporal.levels, default=0)
        if deepest > self.encoder_depth:
            raise ValueError(
                f"temporal.levels: expected at most encoder_depth = {self.encoder_depth}, found {deepest}; lower "
                "the levels or raise encoder_depth"
            )
        if (self.encoder == "cnn3d") != (self.temporal.merge == "volume"):
            raise ValueError("encoder = 'cnn3d' and temporal.merge = 'volume' need each other; set both or neither")
        if self.deep_supervision >= self.encoder_depth:
            raise ValueError(
                f"deep_supervision = {self.deep_supervision}: expected less than encoder_depth = {self.encoder_depth}"
            )
        if self.task == "classify" and (self.heads > 1 or self.deep_supervision or self.share or self.logits > 1):
            raise ValueError("task = 'classify' has no mask: leave out heads, logits, deep_supervision and share")
        return self
