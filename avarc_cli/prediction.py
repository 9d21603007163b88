"""What the Python API says of images: predictions and log-likelihoods, also as plain values, tables and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from avarc_cli import page
from avarc_cli.frames import frame
from avarc_cli.results import records
from avarc_cli.words import counted, percent

if TYPE_CHECKING:
    from pandas import DataFrame

    from avarc_cli.scoring.scores import ImageScores, StageScores

SHOWN = 5  # classes of an image in a notebook
ROWS_SHOWN = 50  # images in a notebook


@dataclass(frozen=True)
class Stage:
    """What one stage of a plan did with one image."""

    tokens: int
    """Tokens of the image that each candidate was scored on, those of earlier stages included."""

    samples: int
    """Samples of the image that scores were averaged over."""

    ranking: tuple[tuple[str, float], ...]
    """(name, score in nats, prior included) of the candidates that took part, best first."""

    kept: tuple[str, ...]
    """Names of the candidates that the stage did not drop, best first."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        ranking = [{"name": name, "score": score} for name, score in self.ranking]
        return {"tokens": self.tokens, "samples": self.samples, "ranking": ranking, "kept": list(self.kept)}


@dataclass(frozen=True)
class Prediction:
    """The candidates of one image, best first."""

    path: str
    """The image's name in its `ImageSet`: its path below the folder or list it came from; "image 0" in memory."""

    ranking: tuple[tuple[str, float, float], ...]
    """(name, posterior probability, score in nats) of every candidate."""

    ids: tuple[str, ...] = ()
    """Of these classes: synsets, where the model's classes are ImageNet's."""

    stages: tuple[Stage, ...] = ()
    """How the plan came to it; one stage if it is exhaustive."""

    tokens_scored: int = 0
    """Token log-probabilities that were computed for the image."""

    @staticmethod
    def of(path: str, scores: ImageScores, naming: records.CandidateLabels) -> Prediction:
        """The prediction that follows from an image's scores."""
        best = records.best(scores, naming, len(naming.candidates))
        return Prediction(
            path,
            tuple((each["name"], each["posterior"], each["score"]) for each in best),
            tuple(each["id"] for each in best),
            tuple(_stage(each, naming) for each in scores.stages),
            scores.tokens_scored,
        )

    @property
    def name(self) -> str:
        """The predicted class."""
        return self.ranking[0][0]

    @property
    def probability(self) -> float:
        """The predicted class's posterior probability among the candidates."""
        return self.ranking[0][1]

    def top(self, k: int) -> list[tuple[str, float]]:
        """The best k classes with their posterior probabilities."""
        return [(name, probability) for name, probability, _ in self.ranking[:k]]

    def __repr__(self) -> str:
        return f"<Prediction {self.path}: {self.name}, {percent(self.probability)}>"

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON types."""
        return {
            "path": self.path,
            "name": self.name,
            "id": self.ids[0],
            "probability": self.probability,
            "tokens_scored": self.tokens_scored,
            "ranking": self._rows(),
            "stages": [stage.to_dict() for stage in self.stages],
        }

    def to_pandas(self) -> DataFrame:
        """A table with a row for each candidate, best first: id, name, probability, score.

        Raises: UsageError without pandas.
        """
        return frame(self._rows())

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {"id": class_id, "name": name, "probability": probability, "score": score}
            for class_id, (name, probability, score) in zip(self.ids, self.ranking, strict=True)
        ]

    def _repr_html_(self) -> str:
        """The best classes, in a notebook."""
        rows = [[name, percent(p), f"{score:.2f}"] for name, p, score in self.ranking[:SHOWN]]
        columns = ["class", "probability", "score (nats)"]
        return _table(columns, rows, numbers=(1, 2), caption=f"{self.path}: {self.name}")


class Predictions(list[Prediction]):
    """One prediction for each image, in order."""

    def to_dict(self) -> list[dict[str, Any]]:
        """Each prediction as `Prediction.to_dict`."""
        return [each.to_dict() for each in self]

    def to_pandas(self) -> DataFrame:
        """A table with a row for each image: path, id, name, probability, score, tokens_scored.

        Raises: UsageError without pandas.
        """
        columns = ("path", "id", "name", "probability", "score", "tokens_scored")
        rows = [(e.path, e.ids[0], e.name, e.probability, e.ranking[0][2], e.tokens_scored) for e in self]
        return frame(rows, columns=list(columns))

    def _repr_html_(self) -> str:
        """The first images, in a notebook."""
        rows = [[each.path, each.name, percent(each.probability)] for each in self[:ROWS_SHOWN]]
        return _table(["image", "class", "probability"], rows, numbers=(2,), caption=_of(len(rows), len(self)))


@dataclass(frozen=True, eq=False)
class LogLikelihoods:
    """log p(image | class) of N images under K classes, in nats."""

    paths: tuple[str, ...]
    """(N,) names of the images, as in `Prediction`."""

    names: tuple[str, ...]
    """(K,) names of the classes, in the order of the model's class ids."""

    ids: tuple[str, ...]
    """(K,) ids of the classes."""

    values: npt.NDArray[np.float64]
    """(N, K)."""

    def __repr__(self) -> str:
        return f"<LogLikelihoods {counted(len(self.paths), 'image')} under {counted(len(self.ids), 'class')}>"

    def to_dict(self) -> list[dict[str, Any]]:
        """For each image its path, and the log-likelihoods by class id."""
        rows = self.values.tolist()
        return [
            {"path": path, "log_likelihood": dict(zip(self.ids, row, strict=True))}
            for path, row in zip(self.paths, rows, strict=True)
        ]

    def to_pandas(self) -> DataFrame:
        """A table with a row for each image, named after its path, and a column for each class, named after its id.

        Raises: UsageError without pandas.
        """
        return frame(self.values, index=list(self.paths), columns=list(self.ids))

    def _repr_html_(self) -> str:
        """The first images and their best classes, in a notebook."""
        rows = []
        for path, row in zip(self.paths[:ROWS_SHOWN], self.values, strict=False):
            best = [f"{self.names[k]} {row[k]:.2f}" for k in np.argsort(-row)[:SHOWN]]
            rows.append([path, ", ".join(best)])
        return _table(["image", "best classes (nats)"], rows, caption=_of(len(rows), len(self.paths)))


def _stage(stage: StageScores, naming: records.CandidateLabels) -> Stage:
    names, order = naming.classes.names, np.argsort(-stage.scores, kind="stable")
    ranked = stage.candidates[order]
    called = [names[naming.candidates[position]] for position in ranked]
    ranking = tuple(zip(called, stage.scores[order].tolist(), strict=True))
    kept = np.isin(ranked, stage.survivors)
    return Stage(stage.tokens, stage.samples, ranking, tuple(n for n, k in zip(called, kept, strict=True) if k))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = (), caption: str) -> str:
    """numbers: positions of right-aligned columns."""
    return page.render("notebook_table.html", columns=columns, rows=rows, numbers=numbers, caption=caption)


def _of(shown: int, every: int) -> str:
    return counted(every, "image") if shown == every else f"the first {shown} of {counted(every, 'image')}"
