"""The images and classes that several finished runs have in common.

Shapes: N images of a run, M common images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from avarc_cli.data.known import SYNSET
from avarc_cli.data.labels import UNKNOWN, normalize
from avarc_cli.errors import UsageError
from avarc_cli.results.read_run import SavedRun
from avarc_cli.scoring.plan import read_stages
from avarc_cli.words import are, counted

NOT_COUNTED = -1
"""In place of 0 (wrong) and 1 (right) for an image whose class is unknown, or is no candidate."""


class Classes:
    """The classes of several runs. Each has one number, however the runs number it."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.names: list[str] = []
        self._by_id: dict[str, int] = {}

    def unite(self, classes: Sequence[tuple[str, str]]) -> list[int]:
        """The number of each of a run's classes; classes of no earlier run get new ones.

        A class is the same as one of an earlier run with the same id, or else the same name, unless that is the name of
        several classes in either, or both ids are synsets.

        Args:
            classes: (id, name) of each. Ids are synsets, or names; they are unique within a run.
        """
        own = Counter(normalize(name) for _, name in classes)
        taken = {self._by_id[class_id] for class_id, _ in classes if class_id in self._by_id}
        known = Counter(map(normalize, self.names))
        by_name = {
            normalize(name): number
            for number, name in enumerate(self.names)
            if known[normalize(name)] == 1 and number not in taken
        }
        numbers = []
        for class_id, name in classes:
            number = self._by_id.get(class_id)
            if number is None and own[normalize(name)] == 1:
                number = by_name.get(normalize(name))
            if number is None or (self.ids[number] != class_id and _are_synsets(class_id, self.ids[number])):
                number = len(self.names)
                self.ids.append(class_id)
                self.names.append(name)
            self._by_id[class_id] = number
            numbers.append(number)
        return numbers


def _are_synsets(*ids: str) -> bool:
    return all(SYNSET.fullmatch(class_id) for class_id in ids)


@dataclass(frozen=True, kw_only=True, eq=False)
class RunImages:
    """What a comparison needs of a run, image by image."""

    run: SavedRun
    candidates: frozenset[int]
    """Numbers in `Classes`."""

    paths: list[str]
    """Of the N images."""

    prediction: np.ndarray
    """(N,) int64, number in `Classes`."""

    label: np.ndarray
    """(N,) int64, number in `Classes`; UNKNOWN."""

    right: np.ndarray
    """(N,) int8: 1 right, 0 wrong, NOT_COUNTED."""

    posterior: np.ndarray
    """(N,) float64, of the prediction."""

    tokens_scored: np.ndarray
    """(N,) int64."""

    near_tie: np.ndarray
    """(N,) bool."""

    digests: list[str | None]
    """Of the tokens of the N images."""

    def take(self, rows: np.ndarray) -> RunImages:
        """These images, in this order."""
        chosen = rows.tolist()
        return replace(
            self,
            paths=[self.paths[row] for row in chosen],
            prediction=self.prediction[rows],
            label=self.label[rows],
            right=self.right[rows],
            posterior=self.posterior[rows],
            tokens_scored=self.tokens_scored[rows],
            near_tie=self.near_tie[rows],
            digests=[self.digests[row] for row in chosen],
        )

    def keys(self) -> list[tuple[str, int]]:
        """What each image is found by in another run: its path, and how many images before it have the same path."""
        seen: Counter[str] = Counter()
        keys = []
        for path in self.paths:
            keys.append((path, seen[path]))
            seen[path] += 1
        return keys


@dataclass(frozen=True, kw_only=True, eq=False)
class CommonImages:
    """Several runs on the same M images, in the order of the first run."""

    runs: list[RunImages]
    classes: Classes
    """Candidates and labels."""

    left_out: list[str] = field(default_factory=list)
    """For each reason, how many images are left out, in words."""


def common_images(saved: Sequence[SavedRun]) -> CommonImages:
    """Find the images that all of these runs classified.

    Images are the same if they have the same path below the source of their run. Those that turn out to be different
    are left out: their tokens differ although both runs made them in the same way, or their labels do.

    Raises: UsageError when there is none.
    """
    classes = Classes()
    runs = [_read(run, classes) for run in saved]
    rows = _same_paths(runs)
    left_out = [
        f"{counted(len(run.paths) - len(own), 'image')} of '{run.run.path}' {are(len(run.paths) - len(own))} not in "
        f"{'the other run' if len(runs) == 2 else 'every other run'}"
        for run, own in zip(runs, rows, strict=True)
        if len(own) < len(run.paths)
    ]
    if not len(rows[0]):
        names = " and ".join(f"'{run.paths[0]}'" if run.paths else "no image" for run in runs[:2])
        raise UsageError(
            "the runs have no image in common",
            f"their images have other paths, such as {names}",
            "compare runs over the same images; paths count from the folder that was classified",
        )
    common = [run.take(own) for run, own in zip(runs, rows, strict=True)]
    keep = np.ones(len(rows[0]), dtype=bool)
    for is_other, what in (
        (_other_tokens(common), "other tokens, although they were encoded in the same way"),
        (_other_labels(common), "another label"),
    ):
        keep &= ~is_other
        if number := int(is_other.sum()):
            left_out.append(f"{counted(number, 'image')} of the same path {'has' if number == 1 else 'have'} {what}")
    if not keep.any():
        raise UsageError("the runs are of different images", "; ".join(left_out), "compare runs over the same images")
    common = [run.take(np.flatnonzero(keep)) for run in common]
    return CommonImages(runs=common, classes=classes, left_out=left_out)


def _read(run: SavedRun, classes: Classes) -> RunImages:
    """One pass over the records."""
    candidate_ids, candidate_names = run.recorded("candidate_ids"), run.recorded("candidate_names")
    numbers = classes.unite(list(zip(candidate_ids, candidate_names, strict=True)))
    number_of = dict(zip(run.candidates.tolist(), numbers, strict=True))
    paths: list[str] = []
    digests: list[str | None] = []
    label_ids: list[str | None] = []
    label_names: dict[str, str] = {}
    rows: list[tuple[int, int, float, int, bool]] = []
    for record in run.records:
        paths.append(record["path"])
        digests.append(_text(record.get("tokens_digest")))
        label_id = record["label_id"]
        label_ids.append(label_id)
        if label_id is not None:
            label_names[label_id] = record["label_name"] or label_id
        rank = record["label_rank"]
        right = NOT_COUNTED if rank is None else int(rank == 0)
        rows.append(
            (number_of[record["prediction"]], right, record["posterior"], record["tokens_scored"], record["near_tie"])
        )
    predictions, is_right, posterior, tokens, near_tie = zip(*rows, strict=True) if rows else ((),) * 5
    label_numbers = dict(zip(label_names, classes.unite(list(label_names.items())), strict=True))
    return RunImages(
        run=run,
        candidates=frozenset(numbers),
        paths=paths,
        prediction=np.array(predictions, dtype=np.int64),
        label=np.array([UNKNOWN if i is None else label_numbers[i] for i in label_ids], dtype=np.int64),
        right=np.array(is_right, dtype=np.int8),
        posterior=np.array(posterior, dtype=np.float64),
        tokens_scored=np.array(tokens, dtype=np.int64),
        near_tie=np.array(near_tie, dtype=bool),
        digests=digests,
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _same_paths(runs: Sequence[RunImages]) -> list[np.ndarray]:
    """Of each run, the rows of the images that all have, in the order of the first."""
    row_of = [{key: row for row, key in enumerate(run.keys())} for run in runs]
    keys = [key for key in row_of[0] if all(key in rows for rows in row_of[1:])]
    return [np.array([rows[key] for key in keys], dtype=np.int64) for rows in row_of]


def _other_tokens(runs: Sequence[RunImages]) -> np.ndarray:
    """Which images are known to be different ones, (M,) bool."""
    other = np.zeros(len(runs[0].paths), dtype=bool)
    first = runs[0]
    for run in runs[1:]:
        if _making(run.run) == _making(first.run):
            pairs = zip(first.digests, run.digests, strict=True)
            other |= np.array([None not in (a, b) and a != b for a, b in pairs], dtype=bool)
    return other


def _making(run: SavedRun) -> tuple[Any, ...]:
    """What tokens that a run's digests are of depend on, apart from the image."""
    tokens, tokenizer = run.protocol["tokens"], run.protocol.get("tokenizer")
    sha256 = tokenizer.get("sha256") if isinstance(tokenizer, dict) else None
    samples = max(stage.samples for stage in read_stages(run.protocol["plan"], len(run.candidates)))
    noise = (tokens.get("sigma"), tokens.get("seed")) if samples > 1 else ()
    return (sha256, tokens["preprocess"], tokens.get("precision"), tokens.get("views"), samples, *noise)


def _other_labels(runs: Sequence[RunImages]) -> np.ndarray:
    """Which images have different labels, (M,) bool. Labels that a run does not know differ from none."""
    label = np.stack([run.label for run in runs])
    highest = label.max(axis=0)
    different: np.ndarray = ((label != UNKNOWN) & (label != highest)).any(axis=0)
    return different
