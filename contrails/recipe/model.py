"""The model in a recipe: smp's words for architecture and encoder, heads of our own, and how frames are merged."""

from typing import Literal, Self

from pydantic import Field, model_validator

from contrails.recipe.base import Section


class TemporalSection(Section):
    """How a model makes one of several frames; those of `data.frames`, in their order."""

    merge: Literal["channels", "conv3d", "gru", "lstm", "panels", "volume"] = Field(
        "channels",
        description="as channels, features merged by Conv3d, ConvGRU or ConvLSTM, panels of one picture, or by cnn3d",
    )
    levels: tuple[int, ...] = Field((), description="feature levels that are merged, 1 the finest; empty: all")
    layers: int = Field(2, ge=1, le=4, description="Conv3d layers a level; the last one spans all frames")
    own: bool = Field(True, description="the labelled frame's own feature stands beside what is merged")

    @property
    def merges_features(self) -> bool:
        """Whether one encoder sees every frame, and its features are merged."""
        return self.merge in ("conv3d", "gru", "lstm")

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.levels and not self.merges_features:
            raise ValueError(f"levels = {list(self.levels)} needs merge = 'conv3d', 'gru' or 'lstm'")
        if any(level < 1 for level in self.levels) or len(set(self.levels)) < len(self.levels):
            raise ValueError(f"levels = {list(self.levels)}: expected numbers from 1 on, each once")
        return self


Options = dict[str, bool | int | float | str | tuple[int, ...]]
"""Keywords for another library; `contrails.models.names` checks them."""


class ModelSection(Section):
    """Which network, in the words of segmentation-models-pytorch."""

    task: Literal["segment", "classify"] = Field(
        "segment", description="a mask, or only whether the record has a contrail (encoder and classifier alone)"
    )
    architecture: str = Field("Unet", description="smp architecture, such as Unet or FPN")
    encoder: str = Field("resnet18", description="smp encoder, tu-NAME for a timm one, or cnn3d")
    encoder_depth: int = Field(5, ge=3, le=5, description="number of encoder stages used")
    decoder_channels: tuple[int, ...] = Field(
        (), description="one for each stage, or a single one, as the architecture has it; empty: 256, 128, ... or smp's"
    )
    encoder_options: Options = Field({}, description="keywords of a timm encoder, such as drop_path_rate = 0.1")
    decoder_options: Options = Field(
        {}, description="keywords of the architecture, such as decoder_attention_type = 'scse'"
    )
    pretrained: str | None = Field(
        None, description="weights of the encoder: default, a name such as imagenet, or a file; empty: random ones"
    )
    stem_stride: Literal[1, 2] | None = Field(
        None, description="stride of the encoder's first convolution; empty: its own"
    )
    activation: Literal["relu", "leaky_relu", "silu", "gelu", "mish"] = Field(
        "relu", description="activation of the decoder"
    )
    norm: Literal["batch", "group"] = Field("batch", description="norm of all that is not pretrained: the decoder")
    encoder_norm: Literal["own", "group", "frozen"] = Field(
        "own", description="the encoder's own norms, group norms, or batch norms that keep what the weights came with"
    )
    relu_features: Literal["own", "add", "remove"] = Field(
        "own",
        description="ReLU on the features that a decoder gets: as the encoder has it, one added, or the last removed",
    )
    skip_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout2d after a skip connection is merged")
    head_dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the last layer of each head")
    align_corners: bool | None = Field(None, description="of bilinear upsampling in decoder and head; empty: smp's")
    head_channels: int = Field(0, ge=0, description="of one more convolution after the last upsampling; 0: none")
    logits: Literal[1, 2] = Field(1, description="one logit, or two whose softmax is the probability")
    heads: int = Field(1, ge=1, le=8, description="heads on one mask, which is their mean; a loss can see each")
    deep_supervision: int = Field(0, ge=0, le=4, description="coarser decoder levels that get a mask of their own")
    classifier: bool = Field(False, description="a head that says whether the record has a contrail")
    share: bool = Field(False, description="a head that predicts the share of the record that is covered")
    head_bias: Literal["zero", "rate"] = Field("zero", description="where heads start: 0, or the rate of positives")
    temporal: TemporalSection = TemporalSection()

    @property
    def has_classifier(self) -> bool:
        return self.classifier or self.task == "classify"

    @model_validator(mode="after")
    def _possible(self) -> Self:
        deepest = max(self.temporal.levels, default=0)
        if deepest > self.encoder_depth:
            raise ValueError(f"temporal.levels has {deepest}, expected at most encoder_depth = {self.encoder_depth}")
        if (self.encoder == "cnn3d") != (self.temporal.merge == "volume"):
            raise ValueError("encoder = 'cnn3d' and temporal.merge = 'volume' need each other")
        if self.deep_supervision >= self.encoder_depth:
            raise ValueError(
                f"deep_supervision = {self.deep_supervision}: expected less than encoder_depth = {self.encoder_depth}"
            )
        if self.task == "classify" and (self.heads > 1 or self.deep_supervision or self.share or self.logits > 1):
            raise ValueError("task = 'classify' has no mask: leave out heads, logits, deep_supervision and share")
        return self
