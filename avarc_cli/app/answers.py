"""What the page is given: results as JSON types, pictures as data."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from PIL import Image

from avarc_cli import page
from avarc_cli.classifier import Classifier
from avarc_cli.data.labels import LabelSpace
from avarc_cli.errors import AvarcError
from avarc_cli.explain.explained_image import ExplainedImage
from avarc_cli.explain.explanation import limit_of
from avarc_cli.explain.palette import paint
from avarc_cli.prediction import Prediction

SHOWN = 8  # classes with their probabilities, and candidates of a stage
QUOTED_PATH = re.compile(r"'~?/(?:[^']*/)?([^'/]+)/?'")  # folders may have spaces
PATH = re.compile(r"(?<![\w.:/])~?/(?:[^\s'\"/]+/)+([^\s'\"/]*)")


def staged_plan(segments: int, candidates: int) -> str:
    """A plan that lets candidates drop out in three stages; exhaustive where there are too few of them, or segments."""
    if segments < 3 or candidates < 4:
        return "exhaustive"
    first, second = math.ceil(0.6 * segments), math.ceil(0.8 * segments)
    if not first < second < segments:
        first, second = segments - 2, segments - 1
    return f"{first}:{max(3, min(10, candidates // 3))},{second}:2,{segments}:1"


def classes(space: LabelSpace) -> list[dict[str, str]]:
    """The classes to choose from."""
    return [{"id": class_id, "name": name} for class_id, name in zip(space.ids, space.names, strict=True)]


def prediction(classifier: Classifier, found: Prediction) -> dict[str, Any]:
    """A prediction, with the stages that led to it."""
    likeliest = sorted(found.ranking, key=lambda each: -each[1])[:SHOWN]  # dropped ones may be above survivors
    stages = []
    for stage in found.stages:
        ranked = [name for name, _ in stage.ranking]
        stages.append(
            {
                "tokens": stage.tokens,
                "candidates": len(ranked),
                "kept": list(stage.kept[:SHOWN]),
                "dropped": [name for name in ranked if name not in stage.kept][:SHOWN],
                "kept_count": len(stage.kept),
            }
        )
    return {
        "model": classifier.model.name,
        "name": found.name,
        "id": found.ids[0],
        "rival": found.ids[1] if len(found.ids) > 1 else None,
        "ranking": [{"name": name, "probability": p} for name, p, _ in likeliest],
        "stages": stages,
        "tokens_scored": found.tokens_scored,
        "tokens_in_all": len(found.ranking) * classifier.model.likelihood.segment_ends[-1],
    }


def maps(explained: ExplainedImage) -> dict[str, Any]:
    """The picture and its maps: of the first scale, of the first two, and so on, all in the same colors."""
    grids = len(explained.explanation.layout.grids)
    parts = [explained.scales(1, last) for last in range(1, grids + 1)] if grids > 1 else [explained]
    cells = [part.map for part in parts]
    limit = limit_of(cells)
    pixels = explained.explanation.pixels
    return {
        "name": explained.name,
        "contrast": explained.contrast,
        "ratio": explained.log_likelihood_ratio,
        "picture": None if pixels is None else page.picture(pixels).source,
        "maps": [{"picture": page.picture(paint(each, limit)).source, "sum": float(each.sum())} for each in cells],
        "limit": limit,
    }


def pictures(images: list[Image.Image]) -> list[str]:
    """Images as data."""
    return [page.picture(np.asarray(image)).source for image in images]


def problem(error: AvarcError) -> dict[str, str]:
    """A message without the paths of this machine, and without advice that is for the command line."""
    return {"what": without_paths(error.what), "why": without_paths(error.why)}


def without_paths(text: str) -> str:
    """The text with the names of files in place of their paths."""
    return PATH.sub(r"\1", QUOTED_PATH.sub(r"'\1'", text))
