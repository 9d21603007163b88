"""The usual measures of class-incremental learning.

R[i, j] is the accuracy on the test images of task j after task i was learnt, among all classes known by then; task 0
is the base. With T tasks in all:

    average accuracy   ACC = 1/T sum_j R[T-1, j]                                 (arXiv:1706.08840, eq. 2)
    backward transfer  BWT = 1/(T-1) sum_{j<T-1} (R[T-1, j] - R[j, j])           (arXiv:1706.08840, eq. 3)
    forgetting         F = 1/(T-1) sum_{j<T-1} (max_{j<=l<T-1} R[l, j] - R[T-1, j])      (arXiv:1801.10112, sec. 3)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from avarc_cli.incremental.split import Split
from avarc_cli.scoring.scores import FloatN, IntN


@dataclass(frozen=True, eq=False)
class Measures:
    """Results of a protocol."""

    matrix: FloatN  # R (T, T), nan above the diagonal
    overall: float  # accuracy on all test images in the end
    per_class: dict[str, float]  # the same for each class

    @property
    def average_accuracy(self) -> float:
        """ACC: the mean over tasks of the accuracy in the end."""
        return float(self.matrix[-1].mean())

    @property
    def backward_transfer(self) -> float:
        """BWT: how much later tasks changed the accuracy on earlier ones; negative where they hurt."""
        earlier = np.arange(len(self.matrix) - 1)
        return float((self.matrix[-1, earlier] - self.matrix[earlier, earlier]).mean())

    @property
    def forgetting(self) -> float:
        """F: the mean loss from the best accuracy that each earlier task ever had."""
        best = np.nanmax(self.matrix[:-1, :-1], axis=0)
        return float((best - self.matrix[-1, :-1]).mean())

    @property
    def seen(self) -> FloatN:
        """Mean accuracy over the tasks known after each task (T,)."""
        means: FloatN = np.nanmean(self.matrix, axis=1)
        return means

    def as_dict(self) -> dict[str, object]:
        """For JSON: numbers between 0 and 1, None where a task was not known yet."""
        return {
            "matrix": [[None if np.isnan(x) else float(x) for x in row] for row in self.matrix],
            "average_accuracy": self.average_accuracy,
            "forgetting": self.forgetting,
            "backward_transfer": self.backward_transfer,
            "overall_accuracy": self.overall,
            "per_class": self.per_class,
        }


@dataclass(frozen=True)
class Results:
    """What the protocol found."""

    split: Split  # the tasks
    with_offset: Measures  # with the offsets that the class bank stores
    without_offset: Measures  # with the scores as they are
    baseline: Measures | None  # of fine-tuning all weights, where it was asked for

    def as_dict(self) -> dict[str, Any]:
        """incremental.json."""
        return {
            "tasks": [list(task) for task in self.split.tasks],
            "with_offset": self.with_offset.as_dict(),
            "without_offset": self.without_offset.as_dict(),
            "finetune": self.baseline and self.baseline.as_dict(),
        }


def row(scores_NK: FloatN, label_N: IntN, tasks: Sequence[Sequence[int]], known: int) -> FloatN:
    """Row `known` - 1 of the matrix: accuracy on each task when the first `known` tasks' classes are candidates.

    Args:
        scores_NK: score of every test image under every class. tasks: classes (columns) of each task, in order.
    Returns: (T,), nan for tasks that are not known yet.
    """
    candidates = np.array([c for task in tasks[:known] for c in task])
    predicted_N = candidates[scores_NK[:, candidates].argmax(1)]
    accuracies = [float((predicted_N == label_N)[np.isin(label_N, task)].mean()) for task in tasks[:known]]
    return np.array(accuracies + [np.nan] * (len(tasks) - known))


def measure(
    scores_TNK: Sequence[FloatN], label_N: IntN, tasks: Sequence[Sequence[int]], names: Sequence[str]
) -> Measures:
    """The measures of a protocol.

    Args:
        scores_TNK: scores of the test images after each task; the same array T times where old scores never change.
        names: of the classes, by column.
    """
    matrix = np.stack([row(scores, label_N, tasks, i + 1) for i, scores in enumerate(scores_TNK)])
    candidates = np.array([c for task in tasks for c in task])
    right_N = candidates[scores_TNK[-1][:, candidates].argmax(1)] == label_N
    per_class = {names[c]: float(right_N[label_N == c].mean()) for c in candidates.tolist()}
    return Measures(matrix, float(right_N.mean()), per_class)
