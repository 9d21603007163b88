"""What counts as right: how the classes of a dataset and the classes of a model stand to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from avarc_cli.data.known import datasets, imagenet_ids
from avarc_cli.data.labels import LabelSpace, imagenet1k, match

NO_CLASS = -1


@dataclass(frozen=True, eq=False)
class Targets:
    """Which classes of a model count as right for the classes of a dataset.

    label: (K,) int64, the class of the model that stands for each class of the dataset; -1 where there is none;
    counts_as: (C,) int64, the class of the model that each of its classes counts as: itself, but where several answer
    for one object, as in ObjectNet, the first of them. So a prediction p is right for dataset class k when
    counts_as[p] == label[k];
    called: (id, name) of those objects in the dataset, by their class of the model.
    """

    label: np.ndarray
    counts_as: np.ndarray
    called: dict[int, tuple[str, str]] = field(default_factory=dict)

    def of(self, labels: np.ndarray) -> np.ndarray:
        """Labels of images (N,) in the dataset to those in the model, int64; -1 stays."""
        of: np.ndarray = np.append(self.label, NO_CLASS)[labels]  # the last answers for -1
        return of


def find_targets(class_names: Sequence[str], dataset: str, space: LabelSpace) -> Targets:
    """Match a dataset's classes with a model's: by id, by human name, or, for ObjectNet, by its map to ImageNet.

    Args:
        class_names: of the dataset. dataset: its name where it is known, else "". space: the model's classes.
    """
    targets = Targets(match(class_names, space), np.arange(len(space), dtype=np.int64))
    known = datasets().get(dataset)
    if known is None or not known.of_objects:
        return targets
    synsets = set(imagenet1k().ids)
    answers = {label: (name, match(ids, space)) for label, name, ids in known.spellings()}
    for k, class_name in enumerate(class_names):
        if class_name in answers:
            name, found = answers[class_name]
            found = found[found != NO_CLASS]
            targets.label[k] = found.min() if len(found) else NO_CLASS
            if len(found):
                targets.counts_as[found] = found.min()
                targets.called[int(found.min())] = (class_name, name)
        elif targets.label[k] != NO_CLASS and space.ids[targets.label[k]] in synsets:
            targets.label[k] = NO_CLASS  # an object whose name ImageNet uses for something else
    return targets


def default_candidates(dataset: str, space: LabelSpace) -> np.ndarray | None:
    """The classes of the model that an image of the dataset may be, (N,) int64, sorted; None for all.

    Those that the dataset covers, and what the model knows beyond ImageNet-1k (classes that were added).
    """
    known = datasets().get(dataset)
    if known is None:
        return None
    covered = match(imagenet_ids(known.candidates), space)
    if (covered == NO_CLASS).any():  # a model of other classes
        return None
    imagenet = match(imagenet1k().ids, space)
    beyond = np.setdiff1d(np.arange(len(space)), imagenet)
    chosen: np.ndarray = np.union1d(covered, beyond)
    return None if len(chosen) == len(space) else chosen
