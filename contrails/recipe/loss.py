"""The loss in a recipe: a weighted list of terms, each with its own options.

    [[loss.terms]]
    name = "bce"
    [[loss.terms]]
    name = "dice"
    weight = 0.2
    over = "batch"

A term without options is given by its name: `terms = ["bce", "dice"]`. Formulas and sources are in the docstrings of
`contrails.losses`.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from contrails.recipe.base import Section

Over = Literal["record", "batch", "global"]


class Term(Section):
    """Keys that all terms have."""

    name: str = Field(description="name of the loss")
    weight: float = Field(1.0, gt=0, description="weight of the term in the sum")
    head: int | None = Field(None, ge=0, description="number of the head that it acts on; empty: the mean of the heads")


class BceTerm(Term):
    """Binary cross entropy."""

    name: Literal["bce"] = Field("bce", description="binary cross entropy")
    pos_weight: float | Literal["balanced"] = Field(
        1.0, description='weight of positive pixels; "balanced": 1 / their fraction of the training split'
    )
    smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing s: the target becomes t (1 - s) + s / 2")

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if self.pos_weight != "balanced" and self.pos_weight <= 0:
            raise ValueError(f'pos_weight = {self.pos_weight}, expected a number above 0, or "balanced"')
        return self


class SoftmaxCeTerm(Term):
    """Softmax cross entropy."""

    name: Literal["softmax_ce"] = Field("softmax_ce", description="cross entropy of the softmax of two logits")
    smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing s: the target becomes t (1 - s) + s / 2")


class FocalTerm(Term):
    """Focal loss."""

    name: Literal["focal"] = Field("focal", description="focal loss")
    gamma: float = Field(2.0, ge=0, description="exponent that lowers the weight of easy pixels; 0: none")
    alpha: float = Field(0.25, gt=0, lt=1, description="weight of positive pixels; negative ones have 1 - alpha")


class QualityFocalTerm(Term):
    """Quality focal loss."""

    name: Literal["quality_focal"] = Field("quality_focal", description="focal loss whose minimum is the soft target")
    beta: float = Field(2.0, ge=1, description="exponent that lowers the weight of nearly correct pixels")


class HingeTerm(Term):
    """Hinge loss."""

    name: Literal["hinge"] = Field("hinge", description="mean hinge loss of the pixels")


class MseTerm(Term):
    """Mean squared error."""

    name: Literal["mse"] = Field("mse", description="mean squared error of the probability")


class SymmetricCeTerm(Term):
    """Symmetric cross entropy."""

    name: Literal["symmetric_ce"] = Field("symmetric_ce", description="cross entropy plus the reverse one")
    alpha: float = Field(0.1, ge=0, description="factor of the cross entropy")
    beta: float = Field(1.0, gt=0, description="factor of the reverse cross entropy")
    log_zero: float = Field(-4.0, lt=0, description="value of the logarithm of 0 in the reverse cross entropy")


class OhemTerm(Term):
    """Online hard example mining per class."""

    name: Literal["ohem"] = Field("ohem", description="binary cross entropy of the hard pixels of each class")
    threshold: float = Field(
        0.7, gt=0, lt=1, description="a pixel is hard if the probability of its true class is below this"
    )
    min_keep: int = Field(1000, ge=1, description="use at least this many pixels per class, the hardest ones")


class RegionTerm(Term):
    """Keys that all region losses have."""

    over: Over = Field(
        "batch", description="pixels summed before the ratio: of a record, a batch, or (global) also of earlier steps"
    )
    smooth: float = Field(
        1.0, gt=0, description="number of pixels added to numerator and denominator, for regions that are empty"
    )


class DiceTerm(RegionTerm):
    """Dice loss."""

    name: Literal["dice"] = Field("dice", description="1 - Dice")


class LogDiceTerm(RegionTerm):
    """Logarithm of Dice."""

    name: Literal["log_dice"] = Field("log_dice", description="(-log Dice) ^ gamma")
    gamma: float = Field(1.0, gt=0, description="exponent; below 1 the gradient is larger when Dice is high")


class JaccardTerm(RegionTerm):
    """Jaccard loss."""

    name: Literal["jaccard"] = Field("jaccard", description="1 - intersection over union")


class TverskyTerm(RegionTerm):
    """Tversky loss."""

    name: Literal["tversky"] = Field("tversky", description="1 - Tversky index")
    alpha: float = Field(0.3, ge=0, description="weight of false positives")
    beta: float = Field(0.7, ge=0, description="weight of false negatives")


class LovaszHingeTerm(Term):
    """Lovász hinge."""

    name: Literal["lovasz_hinge"] = Field("lovasz_hinge", description="convex surrogate of the Jaccard loss")
    over: Literal["record", "batch"] = Field(
        "record", description="pixels that are ranked together: of a record or a batch"
    )
    symmetric: bool = Field(False, description="mean over both classes, with elu + 1 instead of relu")


class BoundaryTerm(Term):
    """Boundary loss."""

    name: Literal["boundary"] = Field("boundary", description="error of the probability times distance to the outline")
    reach_px: int = Field(16, ge=1, le=64, description="distance at which the weight stops growing, in pixels")


class BoundaryF1Term(Term):
    """Boundary F1 loss."""

    name: Literal["boundary_f1"] = Field("boundary_f1", description="1 - F1 of the outlines")
    tolerance_px: int = Field(2, ge=1, le=16, description="largest distance of matching outlines, in pixels")


AnyTerm = (
    BceTerm
    | SoftmaxCeTerm
    | FocalTerm
    | QualityFocalTerm
    | HingeTerm
    | MseTerm
    | SymmetricCeTerm
    | OhemTerm
    | DiceTerm
    | LogDiceTerm
    | JaccardTerm
    | TverskyTerm
    | LovaszHingeTerm
    | BoundaryTerm
    | BoundaryF1Term
)


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class LossSection(Section):
    """The function that is minimised: the weighted sum of the terms."""

    target: Literal["soft", "hard"] = Field(
        "soft", description="soft: fraction of the annotators; hard: 1 where more than half of them marked the pixel"
    )
    normalise: bool = Field(False, description="scale each term to the magnitude of the first one in every step")
    terms: tuple[Annotated[AnyTerm, Field(discriminator="name"), BeforeValidator(_named)], ...] = Field(
        (BceTerm(),), description="losses on the mask, each with its weight and options"
    )
    classes: float | None = Field(None, gt=0, description="weight of the classifier's cross entropy; empty: 1")
    share: float | None = Field(None, gt=0, description="weight of the cross entropy of the covered fraction; empty: 1")
    aux: float | None = Field(
        None, gt=0, description="weight of the cross entropy of deep supervision, halved per level; empty: 0.4"
    )
    gate: bool = Field(
        False,
        description="train the mask only on records with a contrail; the classifier predicts whether there is one",
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not self.terms:
            raise ValueError('terms: expected at least one, such as ["bce"], found none')
        if self.normalise and len(self.terms) < 2:
            raise ValueError("normalise needs at least two terms, found one; leave it out, or add a term")
        return self
