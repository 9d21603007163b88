"""The run folder: the request (run.json), and the files of a finished run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from avarc_cli.data.preprocess import current_description
from avarc_cli.errors import AvarcError, UsageError
from avarc_cli.names import from_json, to_json
from avarc_cli.results import made_here, resume
from avarc_cli.results.lines import SavedRecords, to_lines
from avarc_cli.results.metrics import Totals
from avarc_cli.results.parts import ScoredChunk
from avarc_cli.results.prediction_files import csv_file
from avarc_cli.results.validate import check_protocol
from avarc_cli.storage import remove_leftovers, remove_leftovers_of, replacing, write_bytes
from avarc_cli.work import chunks
from avarc_cli.work.locks import only_writer

PARTS = "parts"
JOURNAL, SECONDS = "predictions.jsonl.part", "seconds.part"  # of unfinished runs of earlier versions
OF_IMAGES = {
    "json": ".json",
    "likelihood": ".npz",
    "segments": ".npz",
    "ranking": ".npz",
}  # folders of files of single images
OF_ONE_IMAGE = re.compile(r"\d+\.(json|npz|npy)")  # a file in one of them


class RunFolder:
    """A run on disk. While it is not finished, its predictions are in `parts` (`results.parts`)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.predictions = path / "predictions.jsonl"
        self.table = path / "predictions.csv"
        self.metrics = path / "metrics.json"
        self.parts = path / PARTS
        self.journal = path / JOURNAL
        self.journal_seconds = path / SECONDS

    @property
    def files(self) -> tuple[Path, ...]:
        """Of a finished run, but for those of single images."""
        return self.path / "run.json", self.predictions, self.table, self.metrics

    def write_request(self, asked: Mapping[str, Any]) -> None:
        """Write run.json."""
        write_bytes(self.path / "run.json", to_json(asked, indent=1, sort_keys=True).encode())

    def has_another(self, asked: Mapping[str, Any]) -> bool:
        """Whether the folder holds a run of another request, or of images that were called otherwise."""
        return self.exists and not resume.is_same(self.read_protocol(), from_json(to_json(asked)))

    def replace(self, asked: Mapping[str, Any]) -> None:
        """Delete the predictions of a run of another request, and begin this one. Raises: as `clear` and `lock`."""
        with self.lock():
            self.clear()
            self.write_request(asked)

    def lock(self) -> AbstractContextManager[None]:
        """Keep other processes from writing to the run. Raises AvarcError when one is."""
        self.prepare()
        return only_writer(self.lock_name)

    @property
    def lock_name(self) -> Path:
        """What is locked (`work.locks`) while the run is written."""
        return self.path / "run"

    def prepare(self) -> None:
        """Make the folder if needed. Raises: as `check_contents`."""
        self.check_contents()
        self.path.mkdir(parents=True, exist_ok=True)

    def check_contents(self) -> None:
        """Raises: UsageError when there is anything but a folder, or it holds anything but a run and its tokens."""
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise UsageError(f"cannot write a run to '{self.path}'", "it is not a folder", "name another --out")
        ours = ("tokens.h5", "run.json.", "run.lock")  # what a kill before the first prediction may leave
        others = [entry.name for entry in self.path.iterdir() if not entry.name.startswith(ours)]
        if others and not self.exists:  # in this order: another shard may begin the run meanwhile, with run.json
            raise UsageError(f"'{self.path}' is not empty, and not a run", "it has no run.json", "name another folder")

    def recorded(self, field: str) -> Any:
        """A field of run.json; None when there is no run yet."""
        run_file = self.path / "run.json"
        return _read_object(run_file).get(field) if run_file.exists() else None

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / "run.json").is_file()

    @property
    def finished(self) -> bool:
        """Whether the run is complete: predictions.jsonl is the last file to be written."""
        return self.predictions.exists()

    def read_protocol(self) -> dict[str, Any]:
        """run.json, as this version writes it."""
        return _upgraded(_read_object(self.path / "run.json"))

    def read_predictions(self) -> SavedRecords:
        """The lines of a finished run's predictions.jsonl."""
        return SavedRecords(self.predictions)

    def read_metrics(self) -> dict[str, Any]:
        """metrics.json of a finished run."""
        return _read_object(self.metrics)

    def write(self, name: str, data: bytes) -> None:
        """Write a file of one image; `name` is relative to the folder."""
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        write_bytes(path, data)

    def finish(self, results: Iterable[ScoredChunk], candidates: int, about: Mapping[str, Any]) -> dict[str, Any]:
        """Write predictions.csv, metrics.json, and last predictions.jsonl; one chunk is in memory at a time.

        Args:
            results: all chunks, in order. candidates, about: as `parts.Division`.
        Returns: the metrics.
        """
        totals, seconds = Totals(), 0.0
        with replacing(self.predictions) as temporary:
            with temporary.open("wb") as file, csv_file(self.table) as add_to_table:
                for chunk in results:
                    file.write(to_lines(chunk.records))
                    add_to_table(chunk.records)
                    seconds += chunk.seconds
                    for record in chunk.records:
                        totals.add(record)
            metrics = totals.metrics(seconds=seconds, candidates=candidates) | dict(about)
            write_bytes(self.metrics, to_json(metrics, indent=1).encode())
        made_here.remember(self.path / "run.json")
        return metrics

    def reopen(self, images: int) -> None:
        """Delete the predictions of a run that is no longer finished, and files of images beyond these."""
        self._remove_files_of_images(lambda index: index >= images)
        for file in (self.predictions, self.metrics, self.table):  # predictions first: a kill repeats this
            file.unlink(missing_ok=True)

    def remove_journal(self) -> None:
        """Delete the unfinished predictions of an earlier version."""
        for file in (self.journal, self.journal_seconds):
            file.unlink(missing_ok=True)

    def read_journal_seconds(self) -> float:
        """Seconds that an earlier version spent on the predictions of its journal. Raises: AvarcError."""
        try:
            return float(self.journal_seconds.read_text()) if self.journal_seconds.exists() else 0.0
        except ValueError:
            fix = "delete it: only the time spent on the finished images is lost"
            raise AvarcError(f"'{self.journal_seconds}' is corrupt", "it is not a number of seconds", fix) from None

    def clear(self) -> None:
        """Delete the predictions of a run, so that another can begin. Only run.json, which that replaces, is left.

        Raises: as `check_own`; OSError.
        """
        self.check_own()
        self.remove_leftovers()
        for file in (self.predictions, self.metrics, self.table):
            file.unlink(missing_ok=True)  # first: a killed deletion leaves no prediction without its image's files
        self.remove_journal()
        chunks.delete(self.parts)
        self._remove_files_of_images(lambda index: True)

    def check_own(self) -> None:
        """Raises: UsageError when there is a run.json that avarc did not write, or that is corrupt."""
        try:
            if self.exists:
                check_protocol(self.read_protocol(), str(self.path / "run.json"))
        except AvarcError as error:
            fix = "name another folder, or delete this one"
            raise UsageError(f"'{self.path}' may not be a run of avarc's", error.why, fix) from None

    def remove(self) -> None:
        """Delete the files of the run, and the folder unless it holds anything else. Raises: as `clear`."""
        if not self.exists:
            return
        self.clear()
        (self.path / "run.json").unlink()  # last: until then, a killed deletion is repeated
        _remove_if_empty(self.path)

    def _remove_files_of_images(self, are_unused: Callable[[int], bool]) -> None:
        for folder in (self.path / name for name in OF_IMAGES):
            for file in folder.glob("*"):
                if OF_ONE_IMAGE.fullmatch(file.name) and are_unused(int(file.stem)):
                    file.unlink()
            _remove_if_empty(folder)

    def remove_leftovers(self, images: range | None = None) -> None:
        """Delete half-written files of killed processes.

        Args:
            images: whose files no other process may be writing; None where no other process writes to the run at all.
        """
        remove_leftovers_of(self.parts)
        written = {"run.json", self.metrics.name, self.table.name, self.predictions.name, JOURNAL, SECONDS}
        remove_leftovers(self.path, written.__contains__)
        for name in OF_IMAGES:
            remove_leftovers(self.path / name, lambda file: images is None or _index(file) in images)


def _index(file: str) -> int:
    """The image whose file has this name; -1 for any other file."""
    return int(Path(file).stem) if OF_ONE_IMAGE.fullmatch(file) else -1


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _upgraded(protocol: dict[str, Any]) -> dict[str, Any]:
    """A protocol of this or an earlier version, as this one writes it.

    Tokens had the sides of scales in place of a layout, and preprocessing did not say how images are decoded.
    """
    tokens = protocol.get("tokens")
    if not isinstance(tokens, dict):
        return protocol
    if isinstance(tokens.get("preprocess"), str):
        tokens = tokens | {"preprocess": current_description(tokens["preprocess"])}
    if "patch_nums" not in tokens:
        return protocol | {"tokens": tokens}
    sides = tokens["patch_nums"]
    grids = [[side, side] for side in sides] if isinstance(sides, list) else sides
    current = {name: value for name, value in tokens.items() if name != "patch_nums"} | {"layout": {"grids": grids}}
    return protocol | {"tokens": current}


def _read_object(path: Path) -> dict[str, Any]:
    try:
        there = from_json(path.read_bytes())
        if not isinstance(there, dict):
            raise ValueError("it is not a JSON object")
        return there
    except (OSError, ValueError) as error:
        raise AvarcError(f"cannot read '{path}'", str(error), "name another folder, or delete this one") from None
