"""Which class to explain, and which class to compare it with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from avarc_cli.data.labels import UNKNOWN, LabelSpace, resolve_classes
from avarc_cli.errors import UsageError
from avarc_cli.explain.explanation import MAX_LINES
from avarc_cli.explain.predictions import ImagePrediction

TARGET_ROLES = ("prediction", "label")
CONTRAST_ROLES = ("rival", *TARGET_ROLES)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The two classes, each as a class id or as a role that depends on the image."""

    target: int | str = "prediction"
    """The class to explain: "prediction", "label", or an id."""

    contrast: int | str = "rival"
    """The class to compare it with: "rival" (the strongest other class), "label", "prediction", or an id."""

    def of(self, prediction: ImagePrediction) -> tuple[int, int | None]:
        """Target and contrast class of one image; a contrast that is the target itself becomes the strongest other.

        Raises: UsageError when a role is "label" and the label is unknown.
        """
        target, contrast = _resolve(self.target, prediction), _resolve(self.contrast, prediction)
        if contrast is None or contrast == target:
            contrast = next((c for c in prediction.class_ids if c != target), None)
        assert target is not None, "a target is never the 'rival'"
        return target, contrast


def _resolve(wanted: int | str, prediction: ImagePrediction) -> int | None:
    if isinstance(wanted, int):
        return wanted
    if wanted == "label" and prediction.label == UNKNOWN:
        raise UsageError(
            f"the label of '{prediction.path}' is unknown",
            "its folder is not named like one of the candidate classes, or it has none",
            "name the class instead of the word label",
        )
    return {"prediction": prediction.class_ids[0], "label": prediction.label}.get(wanted)


def parse_comparison(target: str, contrast: str, classes: LabelSpace) -> Comparison:
    """What --class and --vs say: roles, or names of classes.

    Raises: UsageError for a class the model does not have (with the closest names).
    """
    parsed = Comparison(
        target=target if target in TARGET_ROLES else _class_id(target, classes),
        contrast=contrast if contrast in CONTRAST_ROLES else _class_id(contrast, classes),
    )
    if parsed.target == parsed.contrast and isinstance(parsed.target, int):
        raise UsageError(f"cannot compare '{target}' with itself", fix="name another class: --vs CLASS")
    return parsed


def _class_id(name: str, classes: LabelSpace) -> int:
    ids = resolve_classes(name, classes)
    if len(ids) != 1:
        raise UsageError(f"'{name}' names {len(ids)} classes", "classes are compared one at a time", "name one class")
    return ids[0]


def classes_to_score(prediction: ImagePrediction, target: int, contrast: int | None) -> Sequence[int]:
    """Ids of the classes that an explanation needs, best first: the best few, target, contrast and label."""
    wanted = {*prediction.class_ids[:MAX_LINES], target, contrast, prediction.label} - {None, UNKNOWN}
    ranked = [c for c in prediction.class_ids if c in wanted]
    return ranked + sorted(c for c in wanted if c not in ranked and c is not None)
