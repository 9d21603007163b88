"""Which images to explain, and which classes to compare."""

from __future__ import annotations

from dataclasses import dataclass

from avarc_cli.errors import UsageError
from avarc_cli.explain.predictions import check_subset


@dataclass(frozen=True, kw_only=True)
class ExplainOptions:
    """Which images to explain, and which classes to compare.

    Raises: UsageError for values that no image set could make sense of.
    """

    target: str = "prediction"
    """The class to explain: "prediction", "label", or a class by id or name."""

    contrast: str = "rival"
    """The class to compare it with: "rival" (the strongest other class), "label", "prediction", or a class."""

    rows: str | None = None
    """Classify only these images, counted from 0: "3,10-12". None for all."""

    only: str | None = None
    """Explain only images that are "wrong", "right" or "unsure". None for all."""

    limit: int | None = None
    """Explain at most this many images. None for all."""

    max_images: int | None = None
    """Refuse to explain more images than this, before anything is classified. None for no bound."""

    keep_order: bool = False
    """Explain images in their own order instead of those with the highest negative log-likelihood first."""

    def __post_init__(self) -> None:
        check_subset(self.only)
        if self.limit is not None:
            self.count(self.limit)

    def count(self, images: int) -> int:
        """How many of `images` images to explain at most. Raises: UsageError below 1, or above `max_images`."""
        wanted = images if self.limit is None else self.limit
        if wanted < 1:
            raise UsageError(f"{wanted} images were asked for, must be at least 1")
        if self.max_images is not None and wanted > self.max_images:
            what = f"{wanted} images are too many for one file of this kind"
            fix = "name fewer images (--rows, --limit), or write pages: an .html file holds the most"
            raise UsageError(what, f"at most {self.max_images} fit", fix)
        return wanted


DEFAULTS = ExplainOptions()
