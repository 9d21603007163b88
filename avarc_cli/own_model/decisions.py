"""What is trained, for how long: chosen once, from the images, the machine and the time that the user gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from avarc_cli.own_model.request import AUTO, Request
from avarc_cli.own_model.sizes import Sizes, sizes
from avarc_cli.own_model.speed import Speed
from avarc_cli.own_model.survey import SIDES, Survey

TOKENIZER_SHARE, GENERATOR_SHARE = 0.25, 0.63  # of the time; the rest is for encoding, tuning and measuring
TOKENIZER_EPOCHS, GENERATOR_EPOCHS = 60, 160  # beyond which training gains nothing; the digits' models had 40 and 133
FEWEST_TOKENIZER, FEWEST_GENERATOR = 1200, 2000  # steps, where few images make short epochs
LEAST_TOKENIZER, LEAST_GENERATOR = 300, 1500  # steps that a model of larger images must be able to make
LEAST = 10  # steps, whatever the time
LARGER = 3.0  # how much longer a step takes at twice the side, at least
MOST_ON_CPU = 64  # pixels a side


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """What is done."""

    sizes: Sizes
    augment: str
    """A mode of `train.images.Augment`."""
    tokenizer_steps: int
    generator_steps: int
    seconds: float
    """That training takes, from the measured speed."""
    speed: Speed

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Decisions:
        """Raises: TypeError, KeyError for what `to_dict` did not write."""
        return cls(**{**values, "sizes": Sizes(**values["sizes"]), "speed": Speed(**values["speed"])})

    @property
    def is_short(self) -> bool:
        """Whether the time is less than a model needs to be good."""
        return self.tokenizer_steps < LEAST_TOKENIZER or self.generator_steps < LEAST_GENERATOR


def choose_augmentation(survey: Survey, asked: str) -> str:
    """How images are changed at random: small objects are turned and moved, others cropped."""
    if asked != AUTO:
        return asked
    return "affine" if survey.is_object else "crop"


def decide(
    survey: Survey, request: Request, images: int, measure: Callable[[Sizes], Speed], *, large: bool
) -> Decisions:
    """Choose sizes and steps: the largest images that the model can be trained on well in the time.

    Args:
        images: that are trained on. measure: trains a few steps of these sizes. large: for a GPU.
    Raises: UsageError for an image size that no model is made for; as `measure`.
    """
    augment = choose_augmentation(survey, request.augment)
    asked = request.image_size
    candidates = [asked] if asked else [side for side in SIDES if side <= survey.needed] or [SIDES[0]]
    if not (asked or large):
        candidates = [side for side in candidates if side <= MOST_ON_CPU]
    best: Decisions | None = None
    for side in candidates:
        if best is not None and _with(best.sizes, best.speed, augment, request, images, slower=LARGER).is_short:
            break
        chosen = sizes(side, large=large)
        decisions = _with(chosen, measure(chosen), augment, request, images)
        if best is not None and decisions.is_short:
            break
        best = decisions
    assert best is not None
    return best


def _with(
    chosen: Sizes, speed: Speed, augment: str, request: Request, images: int, *, slower: float = 1.0
) -> Decisions:
    """The steps for these sizes.

    Args:
        slower: factor of the tokenizer's time; the generator has about as many tokens at every size.
    """
    seconds = 60 * request.minutes
    per_step = Speed(speed.tokenizer * slower, speed.generator)
    most = max(FEWEST_TOKENIZER, round(TOKENIZER_EPOCHS * images / chosen.tokenizer_batch))
    tokenizer = max(LEAST, min(most, int(TOKENIZER_SHARE * seconds / per_step.tokenizer)))
    left = (TOKENIZER_SHARE + GENERATOR_SHARE) * seconds - tokenizer * per_step.tokenizer
    most = max(FEWEST_GENERATOR, round(GENERATOR_EPOCHS * images / chosen.generator_batch))
    generator = max(LEAST, min(most, int(left / per_step.generator)))
    return Decisions(
        sizes=chosen,
        augment=augment,
        tokenizer_steps=tokenizer,
        generator_steps=generator,
        seconds=tokenizer * per_step.tokenizer + generator * per_step.generator,
        speed=speed,
    )
