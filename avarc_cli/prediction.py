"""What the Python API says of one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from avarc_cli.results import records

if TYPE_CHECKING:
    from avarc_cli.scoring.scores import ImageScores


@dataclass(frozen=True)
class Prediction:
    """The candidates of one image, best first."""

    path: str
    """The image's name in its `ImageSet`: its path below the folder or list it came from."""

    ranking: tuple[tuple[str, float, float], ...]
    """(name, posterior probability, score in nats) of every candidate."""

    @staticmethod
    def of(path: str, scores: ImageScores, naming: records.CandidateLabels) -> Prediction:
        """The prediction that follows from an image's scores."""
        best = records.best(scores, naming, len(naming.candidates))
        return Prediction(path, tuple((each["name"], each["posterior"], each["score"]) for each in best))

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
