"""What the model predicted for each image, and which images to explain."""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from avarc_cli.data.labels import UNKNOWN
from avarc_cli.errors import UsageError
from avarc_cli.results.read_run import SavedRun
from avarc_cli.results.records import RANKING, read_ranking
from avarc_cli.words import are, counted

if TYPE_CHECKING:
    from avarc_cli.results.folder import RunFolder
    from avarc_cli.results.run import RunResult

SUBSETS = ("wrong", "right", "unsure")
UNSURE = 0.9  # posterior probability of the prediction below which an image counts as unsure
SMALLEST = 5e-324  # a probability that was rounded to 0 still has a logarithm


@dataclass(frozen=True, kw_only=True)
class ImagePrediction:
    """The classes of one image, by id."""

    row: int
    """Of the image in its token cache."""

    path: str
    """Name of the image below its source."""

    class_ids: tuple[int, ...]
    """Best first; of a saved run, the best few only."""

    posterior: tuple[float, ...]
    """p(class | x) of these classes."""

    label_name: str = ""
    """Name of the true class, "" when unknown."""

    label: int = UNKNOWN
    """The true class, the best one where several count as correct; UNKNOWN when it is not a candidate."""

    label_rank: int | None = None
    """Position of the label among all candidates, best first."""

    @property
    def negative_log_likelihood(self) -> float:
        """-log p(label | x) in nats; when the label is not a candidate, -log p(prediction | x)."""
        rank = self.label_rank or 0
        return -math.log(max(self.posterior[rank], SMALLEST) if rank < len(self.posterior) else SMALLEST)

    def matches(self, only: str | None) -> bool:
        """Whether the image belongs to the subset ("wrong", "right" or "unsure"); every image does to None."""
        if only == "unsure":
            return self.posterior[0] < UNSURE
        if only is None or not self.label_name:
            return only is None
        return (self.label_rank == 0) == (only == "right")


def of_result(result: RunResult, candidates_N: np.ndarray, rows: Sequence[int]) -> list[ImagePrediction]:
    """The predictions of a run that kept its scores.

    Args:
        candidates_N: class ids of the run's candidates. rows: of each image of the run in the token cache.
    """
    known, predictions = set(candidates_N.tolist()), []
    for record, (image, scores) in zip(result.records, result.scores, strict=True):
        class_ids = tuple(candidates_N[scores.order].tolist())
        posterior = tuple(scores.posterior[scores.order].tolist())
        predictions.append(_prediction(record, rows[image.index], class_ids, posterior, known))
    return predictions


def of_folder(
    folder: RunFolder, result: RunResult, candidates_N: np.ndarray, rows: Sequence[int]
) -> Iterator[ImagePrediction]:
    """The predictions of a run that saved its rankings, one at a time; otherwise as `of_result`.

    Raises: AvarcError for a corrupt file.
    """
    known = set(candidates_N.tolist())
    for record in result.records:
        file = folder.path / RANKING.format(record["index"])
        order_N, posterior_N = read_ranking(file, len(candidates_N))
        class_ids = tuple(candidates_N[order_N].tolist())
        yield _prediction(record, rows[record["index"]], class_ids, tuple(posterior_N.tolist()), known)


def of_saved_run(run: SavedRun) -> list[ImagePrediction]:
    """The predictions of a finished run, as far as its records hold them."""
    candidates = set(run.candidates.tolist())
    return [
        _prediction(
            record,
            record["index"],
            tuple(best["class"] for best in record["best"]),
            tuple(best["posterior"] for best in record["best"]),
            candidates,
        )
        for record in run.records
    ]


def _prediction(
    record: Mapping[str, Any],
    row: int,
    class_ids: tuple[int, ...],
    posterior: tuple[float, ...],
    candidates: Collection[int],
) -> ImagePrediction:
    """record: a line of predictions.jsonl. class_ids, posterior: of all classes that are known, best first."""
    rank, label = record["label_rank"], UNKNOWN
    if rank is not None:  # where several classes count as correct, the best of them
        label = class_ids[rank] if rank < len(class_ids) else record["label"]
    return ImagePrediction(
        row=row,
        path=record["path"],
        class_ids=class_ids,
        posterior=posterior,
        label_name=str(record.get("label_name") or record["label_id"] or ""),
        label=label if label in candidates else UNKNOWN,
        label_rank=rank,
    )


def select(
    predictions: Iterable[ImagePrediction], only: str | None, limit: int | None, *, sort: bool
) -> list[ImagePrediction]:
    """The images to explain. No others are kept in memory.

    Args:
        predictions: of all images.
        only: "wrong", "right", "unsure", or None for all.
        limit: number of images, None for all. sort: take those with the highest negative log-likelihood first.
    Raises: UsageError for an unknown `only`, or when no image matches.
    """
    check_subset(only)
    images, labelled = 0, False

    def matching() -> Iterator[ImagePrediction]:
        nonlocal images, labelled
        for prediction in predictions:
            images += 1
            labelled = labelled or bool(prediction.label_name)
            if prediction.matches(only):
                yield prediction

    if sort and limit is not None:
        chosen = heapq.nsmallest(limit, matching(), key=_most_surprising_first)
    else:
        chosen = list(islice(sorted(matching(), key=_most_surprising_first) if sort else matching(), limit))
    if chosen:
        return chosen
    if only in ("wrong", "right") and not labelled:
        why = "no image has a label among the model's classes"
        raise UsageError(f"cannot tell which images are {only}", why, "use --only unsure, or images in class folders")
    why = f"the model is sure (at least {UNSURE:.0%}) of all" if only == "unsure" else f"none of them is {only}"
    raise UsageError(f"none of {counted(images, 'image')} to explain", why, "leave out --only")


def _most_surprising_first(prediction: ImagePrediction) -> float:
    return -prediction.negative_log_likelihood


def check_subset(only: str | None) -> None:
    """Raises UsageError for a subset that is not in SUBSETS."""
    if only is not None and only not in SUBSETS:
        raise UsageError(f"cannot show only '{only}' images", f"there are {', '.join(SUBSETS)}")


def parse_rows(text: str, count: int) -> list[int]:
    """'3,10-12' as rows of a cache of `count` images, in this order, each once.

    Raises: UsageError for anything else, or rows out of range.
    """
    rows: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*([0-9]{1,9})\s*(?:-\s*([0-9]{1,9})\s*)?", part)
        if not found:
            raise UsageError(f"cannot read --rows '{text}'", "rows are counted from 0", "write --rows 3,10-12")
        first, last = int(found[1]), int(found[2] or found[1])
        if not first <= last < count:
            raise UsageError(
                f"there is no row {part.strip()}",
                f"there {are(count)} {counted(count, 'image')}, rows 0 to {count - 1}",
            )
        rows += range(first, last + 1)
    return list(dict.fromkeys(rows))
