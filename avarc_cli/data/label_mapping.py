"""Which classes of a model count as right for the classes of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from avarc_cli.data.known import datasets, imagenet_ids
from avarc_cli.data.labels import UNKNOWN, LabelSpace, imagenet1k, match


@dataclass(frozen=True, eq=False)
class LabelMapping:
    """Maps the K classes of a dataset to the C classes of a model.

    A predicted class p is right for dataset class k if counts_as[p] == label[k].
    """

    label: np.ndarray
    """(K,) int64: the model's class for each class of the dataset, or UNKNOWN."""

    counts_as: np.ndarray
    """(C,) int64: the class that each class of the model counts as. That is the class itself, unless several are
    accepted for one object, as in ObjectNet: then it is the smallest of them."""

    display_names: dict[int, tuple[str, str]] = field(default_factory=dict)
    """The dataset's own (id, name) for the model's classes that stand for an object."""

    def to_model(self, labels: np.ndarray) -> np.ndarray:
        """Convert labels of images, (N,), from the dataset's classes to the model's, int64. UNKNOWN stays UNKNOWN."""
        converted: np.ndarray = np.append(self.label, UNKNOWN)[labels]  # the last entry is for -1
        return converted


def map_labels(class_names: Sequence[str], dataset: str, space: LabelSpace) -> LabelMapping:
    """Match the classes of a dataset with those of a model: by id, by human name, or by ObjectNet's map to ImageNet.

    Args:
        class_names: (K,) classes of the dataset.
        dataset: its name if it is a known dataset, else "".
        space: the model's classes.
    """
    mapping = LabelMapping(match(class_names, space), np.arange(len(space), dtype=np.int64))
    known = datasets().get(dataset)
    if known is None or not known.has_own_classes:
        return mapping
    synsets = set(imagenet1k().ids)
    accepted = {label: (name, match(ids, space)) for label, name, ids in known.spellings()}
    for k, class_name in enumerate(class_names):
        name, found = accepted.get(class_name, ("", np.empty(0, dtype=np.int64)))
        found = found[found != UNKNOWN]
        if len(found):
            mapping.label[k] = found.min()
            mapping.counts_as[found] = found.min()
            mapping.display_names[int(found.min())] = (class_name, name)
        elif mapping.label[k] != UNKNOWN and space.ids[mapping.label[k]] in synsets:
            mapping.label[k] = UNKNOWN  # an object that has the same name as a different class of ImageNet
    return mapping


def default_candidates(dataset: str, space: LabelSpace) -> np.ndarray | None:
    """The model's classes to choose from for images of a dataset, (N,) int64, sorted; None for all.

    These are the classes that the dataset covers, and those that the model has in addition to ImageNet-1k's, from a
    class bank.
    """
    known = datasets().get(dataset)
    if known is None:
        return None
    covered = match(imagenet_ids(known.candidates), space)
    if (covered == UNKNOWN).any():  # not a model of ImageNet
        return None
    imagenet = match(imagenet1k().ids, space)
    added = np.setdiff1d(np.arange(len(space)), imagenet)
    chosen: np.ndarray = np.union1d(covered, added)
    return None if len(chosen) == len(space) else chosen
