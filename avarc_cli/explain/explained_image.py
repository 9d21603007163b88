"""An explanation as a notebook shows it, and as a program saves it.

Shapes: R x C cells of the map, H pixels a side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from avarc_cli.errors import UsageError
from avarc_cli.explain.explanation import Explanation, limit_of, signed
from avarc_cli.explain.figure import draw
from avarc_cli.explain.maps import Float, Weighting
from avarc_cli.explain.palette import paint
from avarc_cli.explain.write import KINDS, write_explanations
from avarc_cli.frames import frame
from avarc_cli.outputs import reserved

if TYPE_CHECKING:
    from pandas import DataFrame

SIDE = 256  # pixels of an overlay


@dataclass(frozen=True)
class ExplainedImage:
    """One image's evidence for a class against another one, with the weights by which scales become one map."""

    explanation: Explanation
    """Log-probabilities of every token under a few classes."""

    weighting: Weighting = Weighting()  # noqa: RUF009  # frozen
    """How the scales become one map."""

    @property
    def name(self) -> str:
        """The class that is explained."""
        return self.explanation.names[self.explanation.target]

    @property
    def contrast(self) -> str:
        """The class that it is compared with, or "unconditional" where there is no other."""
        return self.explanation.baseline_name

    @property
    def log_likelihood_ratio(self) -> float:
        """log p(image | class) - log p(image | contrast class), nats."""
        return float(self._ratio.sum())

    @property
    def map(self) -> Float:
        """Evidence for the class against the contrast class, (R, C), nats per cell."""
        return self.explanation.panels(self.weighting)[-1].cells

    @property
    def _ratio(self) -> Float:
        return self.explanation.log_ratio(self.explanation.target, self.explanation.contrast)

    def scales(self, first: int, last: int) -> ExplainedImage:
        """The same with these scales only, counted from 1. Raises: UsageError where the model has no such scales."""
        weighting = replace(self.weighting, scales=(first, last))
        weighting.of_grids(self.explanation.layout)
        return replace(self, weighting=weighting)

    def overlay(self, opacity: float = 0.6, side: int = SIDE) -> Image.Image:
        """The map over the image: orange for the class, purple against it.

        Args:
            opacity: of the map, from 0 to 1. side: of the picture, in pixels.
        Raises: UsageError for an opacity out of range.
        """
        if not 0 <= opacity <= 1:
            raise UsageError(f"opacity {opacity:g}", "it is from 0 to 1")
        cells = self.map
        colors = Image.fromarray(paint(cells, limit_of([cells]))).resize((side, side), Image.Resampling.NEAREST)
        pixels = self.explanation.pixels
        if pixels is None:
            return colors
        how = Image.Resampling.NEAREST if len(pixels) < side else Image.Resampling.LANCZOS
        return Image.blend(Image.fromarray(pixels).resize((side, side), how), colors, opacity)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a picture (.png, .svg) or a page (.html), as `avarc explain` does.

        Raises: UsageError for another suffix, and a file that exists, unless `overwrite`.
        """
        out = Path(path)
        with reserved(out, *KINDS, overwrite=overwrite):
            title = f"Why {self.name}?"
            write_explanations([self.explanation], self.weighting, out, title=title, about=self.explanation.path)

    def __repr__(self) -> str:
        ratio = signed(self.log_likelihood_ratio)
        return f"<ExplainedImage {self.explanation.path}: {self.name} against {self.contrast}, {ratio} nats>"

    def to_dict(self) -> dict[str, Any]:
        """Classes, ratio and map, as JSON types."""
        return {
            "path": self.explanation.path,
            "name": self.name,
            "contrast": self.contrast,
            "log_likelihood_ratio": self.log_likelihood_ratio,
            "map": np.asarray(self.map).tolist(),
        }

    def to_pandas(self) -> DataFrame:
        """A table with a row for each token, in order: scale, counted from 1, row and column in its grid, and evidence.

        Evidence is for the class against the contrast class, in nats. It adds up to `log_likelihood_ratio`, whatever
        the weights. Tokens without a position have no other column.
        Raises: UsageError without pandas.
        """
        places: list[dict[str, int]] = [
            {"scale": scale, "row": row, "column": column}
            for scale, (rows, columns) in enumerate(self.explanation.layout.grids, start=1)
            for row in range(rows)
            for column in range(columns)
        ]
        ratios = self._ratio.tolist()
        return frame(
            [{**place, "evidence": ratio} for place, ratio in zip(places or [{}] * len(ratios), ratios, strict=True)]
        )

    def _repr_png_(self) -> bytes:
        """The picture that `avarc explain` draws, in a notebook."""
        return draw([self.explanation], self.weighting, "png")
