"""What the user asks for. There is no torch here: a wrong value is an error before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from avarc_cli.errors import UsageError
from avarc_cli.own_model import hold_out
from avarc_cli.own_model.sizes import sizes
from avarc_cli.settings import check_augmentation

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asks for."""

    minutes: float = 15.0
    """Time that training may take."""
    hold_out: float = 0.1
    """Fraction of the images of each class that is not trained on."""
    image_size: int | None = None
    """Side of the images in pixels; None to choose it."""
    augment: str = AUTO
    """A mode of `train.images.Augment`, or auto."""
    flip: bool = False
    """Mirror half of the images."""
    seed: int = 0
    """Of the split, of the order of the images and of the first weights."""

    def __post_init__(self) -> None:
        """Raises: UsageError."""
        if not 0 < self.minutes < 1e6:
            raise UsageError(f"cannot train for {self.minutes:g} minutes", "it is a positive number", "--time 15")
        hold_out.check(self.hold_out)
        if self.augment != AUTO:
            check_augmentation(self.augment)
        if self.image_size is not None:
            sizes(self.image_size, large=False)
