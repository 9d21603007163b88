"""A finished run, read from its folder: protocol, predictions, and saved likelihoods.

Shapes: N images, K candidates, L tokens.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from avarc_cli import strict_json
from avarc_cli.data.labels import LabelSpace, resolve_classes
from avarc_cli.errors import AvarcError, UsageError
from avarc_cli.layout import TokenLayout
from avarc_cli.results.folder import RunFolder
from avarc_cli.results.validate import AGAIN, check_protocol, check_stages
from avarc_cli.scoring.combining import LOG_MEAN_EXP
from avarc_cli.scoring.plan import STAGE
from avarc_cli.settings import is_cascade
from avarc_cli.words import counted
from avarc_cli.zip_check import open_npz


@dataclass(frozen=True)
class SavedRun:
    """A finished run. Open one with `open_run`."""

    path: Path
    """The run folder."""

    protocol: dict[str, Any]
    """run.json."""

    records: Sequence[dict[str, Any]]
    """Lines of predictions.jsonl, in the order of the images; each is read when it is used."""

    likelihoods: Path | None = None
    """Another run folder that has the likelihoods; None where they are this run's own, if it saved any."""

    def recorded(self, *fields: str) -> Any:
        """A field of run.json, or one inside another. Raises: AvarcError when the run does not record it."""
        value: Any = self.protocol
        for field in fields:
            if not isinstance(value, dict) or field not in value:
                raise AvarcError(
                    f"'{self.path / 'run.json'}' has no {'.'.join(fields)}",
                    "another version of avarc made the run, or the file was changed",
                    "classify again into another folder",
                )
            value = value[field]
        return value

    @property
    def candidates(self) -> npt.NDArray[np.int64]:
        """Class ids of the candidates (K,)."""
        return np.array(self.recorded("candidates"), dtype=np.int64)

    @property
    def sequence_length(self) -> int:
        """L, tokens per image."""
        return int(self.recorded("tokens", "length"))

    @property
    def layout(self) -> TokenLayout | None:
        """Where the tokens lie; None for runs of old versions, which do not record it.

        Raises: AvarcError when the record is corrupt.
        """
        tokens = self.protocol["tokens"]
        try:
            layout = TokenLayout.from_dict(tokens["layout"]) if "layout" in tokens else None
            if layout is not None and layout.num_tokens != tokens.get("length", layout.num_tokens):
                raise ValueError(f"a layout of {layout.num_tokens} tokens, {tokens['length']} in all")
            return layout
        except (KeyError, TypeError, ValueError) as error:
            raise AvarcError(f"'{self.path / 'run.json'}' is corrupt", f"tokens: {error}", AGAIN) from None

    @property
    def classes(self) -> LabelSpace:
        """The candidates, each at the position of its class id; any other position i is named "class i"."""
        candidates = self.candidates.tolist()
        ids = [f"class {i}" for i in range(max(candidates) + 1)]
        names = ids.copy()
        columns = zip(candidates, self.recorded("candidate_ids"), self.recorded("candidate_names"), strict=True)
        for class_id, own_id, name in columns:
            ids[class_id], names[class_id] = own_id, name
        return LabelSpace(f"the run '{self.path}'", tuple(ids), tuple(names))

    def columns(self, classes: str | None) -> npt.NDArray[np.int64]:
        """Positions of these classes among the candidates, int64; all of them for None.

        Args:
            classes: as in data.labels.resolve_classes.
        Raises: UsageError for a class that is not a candidate of the run.
        """
        candidates = self.candidates.tolist()
        if classes is None:
            return np.arange(len(candidates))
        space = self.classes
        chosen = resolve_classes(classes, space)
        if absent := [space.ids[c] for c in chosen if c not in candidates]:
            raise UsageError(
                f"not candidates of this run: {', '.join(absent[:4])}",
                f"it has {counted(len(candidates), 'candidate')}",
                "to score other classes, export from the token cache",
            )
        return np.array([candidates.index(c) for c in chosen], dtype=np.int64)

    def scored(self, index: int) -> npt.NDArray[np.int64]:
        """Class ids of the candidates whose likelihoods were saved for this image (n,): all of them, unless a plan
        dropped some before all tokens were scored.

        Raises: as `saved_tokens`.
        """
        return self.saved_tokens(index)[0] if self._npz(index).exists() else self.candidates

    def log_likelihood(self, index: int) -> npt.NDArray[np.float64]:
        """log p(x | y) of one image under its candidates (`scored`), in nats, (n,) float64.

        Raises: UsageError when the run did not save it; AvarcError for a corrupt file.
        """
        if self._npz(index).exists() and not self.is_mean:
            sums: npt.NDArray[np.float64] = self.token_log_prob(index).sum(axis=1, dtype=np.float64)
            return sums
        path = (self.likelihoods or self.path) / "json" / f"{index}.json"
        if self.likelihoods is None and self.in_two_precisions:
            raise UsageError(
                f"'{self.path}' holds no likelihoods in one precision",
                f"it was classified with --precision {self.protocol['precision']}",
                "classify with --precision fp32, or export from the token cache",
            )
        if not path.exists():
            option = "--save-json" if self.is_mean else "--save-json or --save-likelihood"
            raise self._not_saved("the likelihoods", option)
        stages = _read(path, lambda: check_stages(strict_json.parse(path.read_text()), len(self.candidates)))
        if len(stages) > 1 or self.drops_candidates:  # an image with one stage may have been decided early
            raise UsageError(
                f"'{self.path}' holds no likelihoods of whole images",
                f"its plan {self.protocol['plan']} drops candidates before they are fully scored",
                "classify with --plan exhaustive, or export from the token cache",
            )
        return np.array(stages[0]["log_likelihood"], dtype=np.float64)

    def token_log_prob(self, index: int) -> npt.NDArray[np.float32]:
        """log p of each token of one image under its candidates (`scored`), in nats, (n, L) float32.

        Raises: as `saved_tokens`.
        """
        return self.saved_tokens(index)[1]

    def saved_tokens(self, index: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Class ids of candidates (n,), and log p of each token of one image under them, in nats, (n, L).

        Raises: UsageError when the run did not save it; AvarcError for a corrupt file.
        """
        path = self._npz(index)
        if not path.exists():
            raise self._not_saved("token log-probabilities", "--save-likelihood")

        def read() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
            with open_npz(path) as file:
                array, classes = file["log_likelihood"], file["candidates"]
            if array.shape != (len(classes), self.sequence_length) or array.dtype != np.float32:
                raise ValueError(f"it holds {array.dtype} of shape {array.shape}")
            if classes.dtype != np.int64 or classes.ndim != 1 or not self._may_be_saved(classes.tolist()):
                raise ValueError("its candidates are not those of the run")
            return classes, array

        saved: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]] = _read(path, read)
        return saved

    def saves(self, *, per_token: bool) -> bool:
        """Whether the run saved what an export reads: the log-probabilities of tokens, or sums over all of them."""
        whole = not self.drops_candidates and not self.in_two_precisions
        sums = whole and not per_token and (self.path / "json").is_dir()
        tokens = per_token or not self.is_mean
        return sums or (tokens and (self.path / "likelihood").is_dir())

    @property
    def in_two_precisions(self) -> bool:
        """Whether a cascade of precisions made the run: its scores are not all comparable."""
        return is_cascade(self.protocol.get("precision", ""))

    @property
    def is_mean(self) -> bool:
        """Whether a whole image's likelihood is a mean over samples, or of probabilities over orders: the saved
        log-probabilities of tokens, the image's own and means over orders, do not add up to it."""
        stage = STAGE.fullmatch(str(self.protocol["plan"]).strip())
        samples = stage[6] if stage else None
        return int(samples or 1) > 1 or self.protocol.get("combine") == LOG_MEAN_EXP

    @property
    def drops_candidates(self) -> bool:
        """Whether candidates were dropped before all tokens were scored; then each image has `scored` of its own."""
        return "," in str(self.protocol["plan"])

    def _may_be_saved(self, class_ids: list[int]) -> bool:
        """Whether these can be the candidates of an image: in the run's order, and all of them if none was dropped."""
        there: list[int] = self.candidates.tolist()
        if not self.drops_candidates:
            return class_ids == there
        left = set(class_ids)
        return class_ids == [class_id for class_id in there if class_id in left]

    def _npz(self, index: int) -> Path:
        return (self.likelihoods or self.path) / "likelihood" / f"{index}.npz"

    def _not_saved(self, what: str, option: str) -> UsageError:
        tokens = self.path / "tokens.h5"
        cache = f"'{tokens}'" if tokens.exists() else "its token cache"
        return UsageError(
            f"'{self.path}' did not save {what}",
            f"it was classified without {option}",
            f"classify again into another folder with {option}, or export from {cache}, which scores again",
        )


def open_run(path: Path) -> SavedRun:
    """Read a run folder.

    Raises: UsageError as `check_finished`; AvarcError when it is corrupt.
    """
    check_finished(path)
    folder = RunFolder(path)
    protocol = folder.read_protocol()
    check_protocol(protocol, f"{path / 'run.json'}")
    run = SavedRun(path, protocol, folder.read_predictions())
    _check_classes(run)
    return run


def _check_classes(run: SavedRun) -> None:
    """Raises: AvarcError when a prediction is a class that was no candidate."""
    candidates = set(run.protocol["candidates"])
    for number, record in enumerate(run.records, start=1):
        if unknown := {record["prediction"], *(best["class"] for best in record["best"])} - candidates:
            why = f"class {unknown.pop()} in line {number} is none of the {len(candidates)} candidates"
            raise AvarcError(f"'{run.path / 'predictions.jsonl'}' is corrupt", why, AGAIN)


def check_finished(path: Path) -> None:
    """Raises: UsageError when this is not a run, or not a finished one."""
    if not (path / "run.json").is_file():
        raise UsageError(f"'{path}' is not a run", "it has no run.json", "name a folder that avarc classify --out made")
    if not RunFolder(path).finished:
        raise UsageError(
            f"the run in '{path}' is not finished", "it was interrupted", "repeat its command to finish it"
        )


def _read(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise AvarcError(f"'{path}' is corrupt", str(error), AGAIN) from None
