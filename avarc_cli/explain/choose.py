"""Which images to explain, and which classes to compare: what the user wrote, applied to what the model said."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from avarc_cli.data.labels import LabelSpace, resolve_classes
from avarc_cli.errors import UsageError
from avarc_cli.results.records import UNKNOWN, Image, Naming
from avarc_cli.scoring.scores import ImageScores
from avarc_cli.tokens.cache import TokenCache

ONLY = ("wrong", "right", "unsure")
UNSURE = 0.9  # posterior probability of the prediction below which an image counts as unsure
SMALLEST = 5e-324  # a probability that was rounded to 0 still has a logarithm


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the model said about one image.

    order: class ids, best first; posterior: theirs (of a saved run, the best few only). label_name: "" where the label
    is unknown; label: its class id, the best one where several count as right, UNKNOWN where it is none of the
    model's; label_rank: its place in the order.
    """

    row: int
    path: str
    order: tuple[int, ...]
    posterior: tuple[float, ...]
    label_name: str = ""
    label: int = UNKNOWN
    label_rank: int | None = None

    @property
    def surprise(self) -> float:
        """-log p(label | x) in nats; without a label among the candidates, -log p(prediction | x)."""
        rank = self.label_rank or 0
        return -math.log(max(self.posterior[rank], SMALLEST) if rank < len(self.posterior) else SMALLEST)

    def fits(self, only: str | None) -> bool:
        """Whether the image is wrong, right or unsure, as asked."""
        if only == "unsure":
            return self.posterior[0] < UNSURE
        if only is None or not self.label_name:
            return only is None
        return (self.label_rank == 0) == (only == "right")


def verdicts(scored: Sequence[tuple[Image, ImageScores]], naming: Naming, rows: Sequence[int]) -> list[Verdict]:
    """A run's results with the classes in order. rows: which row of the whole cache each image of the run is."""
    return [_verdict(image, scores, naming, rows[image.index]) for image, scores in scored]


def _verdict(image: Image, scores: ImageScores, naming: Naming, row: int) -> Verdict:
    order = naming.candidates[scores.order]
    known = image.label != UNKNOWN
    right = np.flatnonzero(naming.right(image.label)[scores.order]) if known else np.empty(0, np.int64)
    label = UNKNOWN
    if len(right):
        label = int(order[right[0]])
    elif known and naming.targets is None:
        label = image.label  # one of the model's classes, though no candidate
    return Verdict(
        row=row,
        path=image.path,
        order=tuple(order.tolist()),
        posterior=tuple(scores.posterior[scores.order].tolist()),
        label_name=naming.label(image.label)[1] if known else "",
        label=label,
        label_rank=int(right[0]) if len(right) else None,
    )


def select(every: Sequence[Verdict], only: str | None, limit: int, *, sort: bool) -> list[Verdict]:
    """The images to explain, the most surprising first where `sort` says so.

    Raises: UsageError for an unknown `only`, or when no image fits.
    """
    check_only(only)
    if only in ("wrong", "right") and not any(v.label_name for v in every):
        why = "no image has a label among the model's classes"
        raise UsageError(f"cannot tell which images are {only}", why, "use --only unsure, or images in class folders")
    fitting = [v for v in every if v.fits(only)]
    if not fitting:
        why = f"the model is sure (at least {UNSURE:.0%}) of all" if only == "unsure" else f"none of them is {only}"
        raise UsageError(f"none of {len(every)} images to explain", why, "leave out --only")
    return (sorted(fitting, key=lambda v: -v.surprise) if sort else fitting)[:limit]


def check_only(only: str | None) -> None:
    """Raises UsageError for what is not in ONLY."""
    if only is not None and only not in ONLY:
        raise UsageError(f"cannot show only '{only}' images", f"there are {', '.join(ONLY)}")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The class to explain and the one to compare it with: a class id, or a role that depends on the image.

    subject: "prediction", "label" or an id; rival: "rival" (the strongest other class), "label", "prediction" or an id.
    """

    subject: int | str = "prediction"
    rival: int | str = "rival"

    def of(self, verdict: Verdict) -> tuple[int, int | None]:
        """Subject and rival of one image; a rival that turns out to be the subject gives way to the strongest other.

        Raises: UsageError when the label is asked for and not known.
        """
        subject, rival = self._id(self.subject, verdict), self._id(self.rival, verdict)
        if rival is None or rival == subject:
            rival = next((c for c in verdict.order if c != subject), None)
        assert subject is not None, "a subject is never 'rival'"
        return subject, rival

    def _id(self, wanted: int | str, verdict: Verdict) -> int | None:
        if isinstance(wanted, int):
            return wanted
        if wanted == "label" and verdict.label == UNKNOWN:
            raise UsageError(
                f"nobody told the label of '{verdict.path}'",
                "its folder is not named like a class of the model, or it has none",
                "name the class in place of the word label",
            )
        return {"prediction": verdict.order[0], "label": verdict.label}.get(wanted)


def parse_comparison(subject: str, rival: str, classes: LabelSpace) -> Comparison:
    """What --class and --vs say. Raises UsageError for a class the model does not have (with the closest names)."""
    parsed = Comparison(
        subject=subject if subject in ("prediction", "label") else _class_id(subject, classes),
        rival=rival if rival in ("rival", "label", "prediction") else _class_id(rival, classes),
    )
    if parsed.subject == parsed.rival and isinstance(parsed.subject, int):
        raise UsageError(f"cannot compare '{subject}' with itself", fix="name another class: --vs CLASS")
    return parsed


def parse_rows(text: str, count: int) -> list[int]:
    """'3,10-12' as rows of a cache, in this order. Raises UsageError for what is no list of rows, or out of range."""
    rows: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not found:
            raise UsageError(f"cannot read --rows '{text}'", "rows are counted from 0", "write --rows 3,10-12")
        first, last = int(found[1]), int(found[2] or found[1])
        if not first <= last < count:
            raise UsageError(f"there is no row {part.strip()}", f"there are {count} images, rows 0 to {count - 1}")
        rows += range(first, last + 1)
    return list(dict.fromkeys(rows))


@dataclass(frozen=True, eq=False)
class Rows(TokenCache):
    """A token cache of which only some rows are looked at; made by `take`."""

    whole: TokenCache | None = None
    chosen: np.ndarray | None = None

    def tokens(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """As of the whole cache, for rows among the chosen ones."""
        assert self.whole is not None and self.chosen is not None, "made by take()"
        return self.whole.tokens(self.chosen[np.asarray(rows, dtype=np.int64)])


def take(cache: TokenCache, rows: Sequence[int]) -> Rows:
    """The cache as if it held these rows only, in this order."""
    chosen = np.array(rows, dtype=np.int64)
    same = {f.name: getattr(cache, f.name) for f in dataclasses.fields(TokenCache)}
    part = same | {"labels": cache.labels[chosen], "paths": tuple(cache.paths[r] for r in rows)}
    return Rows(**part, whole=cache, chosen=chosen)


def _class_id(name: str, classes: LabelSpace) -> int:
    ids = resolve_classes(name, classes)
    if len(ids) != 1:
        raise UsageError(f"'{name}' names {len(ids)} classes", "one is compared at a time", "name one class")
    return ids[0]
