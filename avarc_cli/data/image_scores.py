"""Aesthetic scores of images, from a table beside them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avarc_cli.data.labels import compose
from avarc_cli.errors import UsageError, shorten_list
from avarc_cli.settings import MAX_SCORE, check_file

COLUMNS = ("image", "score")
FORM = "write a table in UTF-8 that begins with the line image,score"


@dataclass(frozen=True)
class ImageScores:
    """What a table says."""

    source: str
    by_image: Mapping[str, float]

    def of(self, images: Sequence[str], source: str) -> np.ndarray:
        """The scores of images, (N,) float32. Raises: UsageError for images that the table does not have.

        Args:
            images: their names below `source`.
        """
        names = [compose(name) for name in images]
        if missing := [name for name in names if name not in self.by_image]:
            raise UsageError(
                f"images without an aesthetic score: {shorten_list(missing)}",
                f"'{self.source}' has those of {shorten_list(list(self.by_image))}",
                f"name images by their paths below {source}",
            )
        return np.array([self.by_image[name] for name in names], dtype=np.float32)


def read(path: Path) -> ImageScores:
    """The scores of a CSV file with the columns `image` and `score`.

    Raises: UsageError for a file that is not there or no such table, an image that occurs twice, and numbers out of
        range.
    """
    check_file(path, "--aesthetic-scores")
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8-sig"), newline=""), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise UsageError(f"cannot read '{path}'", str(problem), FORM) from None
    if not rows or not all(set(COLUMNS) <= row.keys() for row in rows):
        has = shorten_list([str(name) for name in rows[0]]) if rows else "none"
        raise UsageError(f"'{path}' has no scores of images", f"its columns are {has}", FORM)
    scores: dict[str, float] = {}
    for line, row in enumerate(rows, start=2):
        image = compose(row["image"] or "")
        if image in scores:
            raise UsageError(f"'{path}' has '{image}' twice", f"the second time in row {line}", "leave out one of them")
        scores[image] = _number(row["score"], f"row {line} of '{path}'")
    return ImageScores(str(path), scores)


def _number(text: str | None, place: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not 0 <= value <= MAX_SCORE:
        raise UsageError(f"{place} has the score '{text}'", f"it is a number from 0 to {MAX_SCORE:g}")
    return value
