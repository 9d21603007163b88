"""The run folder: the request (run.json), a journal of predictions that survives a kill, and the final files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from avarc_cli.errors import AvarcError, UsageError, describe_differences
from avarc_cli.names import from_json, to_json
from avarc_cli.results.validate import AGAIN, check_record
from avarc_cli.storage import move_into_place, remove_leftovers, write_bytes
from avarc_cli.work.locks import only_writer

JOURNAL = "predictions.jsonl.part"
SECONDS = "seconds.part"
OF_IMAGES = ("json", "likelihood", "segments")  # folders of files of single images
OF_ONE_IMAGE = re.compile(r"\d+\.(json|npz|npy)")  # a file in one of them


class RunFolder:
    """A run on disk: open it, append groups of predictions in order, finish it.

    The journal is append-only; a line that a kill cut off is scored again. Files of single images are written before
    their line, so a line in the journal means that all files of its image exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal = path / JOURNAL
        self.predictions = path / "predictions.jsonl"
        self.metrics = path / "metrics.json"
        self._seconds_file = path / SECONDS
        self.seconds = 0.0

    def open(self, asked: Mapping[str, Any], *, images: int, group: int) -> list[dict[str, Any]]:
        """Start or resume the run, and return the records that it has already.

        Only complete groups count, so that a resumed run divides the rest into the same groups as an uninterrupted one.

        Args:
            asked: the request, for run.json. images: of the run. group: images that are scored together.
        Raises: UsageError when the folder holds another run; AvarcError when it holds a corrupt one.
        """
        self.prepare()
        run_file = self.path / "run.json"
        text = to_json(asked, indent=1, sort_keys=True)
        if run_file.exists():
            self._compare(self.read_protocol(), from_json(text))
        else:
            write_bytes(run_file, text.encode())
        self._remove_leftovers()
        if self.predictions.exists():
            self._seconds_file.unlink(missing_ok=True)  # a kill may have come between the two steps of `finish`
            return _parse(self.predictions)
        if not self.journal.exists():
            return []
        if self._seconds_file.exists():
            self.seconds = _read_seconds(self._seconds_file)
        self._cut_unfinished_group(images, group)
        return _parse(self.journal)

    def lock(self) -> AbstractContextManager[None]:
        """Keep other processes from writing to the run. Raises AvarcError when one is."""
        self.prepare()
        return only_writer(self.path / "run")

    def prepare(self) -> None:
        """Make the folder if needed. Raises UsageError when it holds anything but a run and its tokens."""
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"cannot write a run to '{self.path}'", "it is not a folder", "name another --out")
        self.path.mkdir(parents=True, exist_ok=True)
        known = (self.path / "run.json").exists()
        ours = ("tokens.h5", "run.json.", "run.lock")  # what a kill before the first prediction may leave
        if not known and any(not entry.name.startswith(ours) for entry in self.path.iterdir()):
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

    def read_predictions(self) -> list[dict[str, Any]]:
        """The lines of a finished run's predictions.jsonl."""
        return _parse(self.predictions)

    def read_metrics(self) -> dict[str, Any]:
        """metrics.json of a finished run."""
        return _read_object(self.metrics)

    def write(self, name: str, data: bytes) -> None:
        """Write a file of one image; `name` is relative to the folder."""
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        write_bytes(path, data)

    def append(self, records: list[dict[str, Any]], seconds: float) -> None:
        """Add the records of a group to the journal, and wait until they are on disk."""
        self.seconds += seconds
        write_bytes(self._seconds_file, str(self.seconds).encode())
        with self.journal.open("ab") as file:
            file.write("".join(to_json(r) + "\n" for r in records).encode())
            file.flush()
            os.fsync(file.fileno())

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Write metrics.json, then rename the journal to predictions.jsonl."""
        write_bytes(self.metrics, to_json(metrics, indent=1).encode())
        move_into_place(self.journal, self.predictions)
        self._seconds_file.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the files of the run, and the folder unless it holds anything else. Raises: OSError."""
        if not self.exists:
            return
        self._remove_leftovers()
        for folder in (self.path / name for name in OF_IMAGES):
            for file in folder.glob("*"):
                if OF_ONE_IMAGE.fullmatch(file.name):
                    file.unlink()
            _remove_if_empty(folder)
        # run.json last: until then, a killed deletion is repeated.
        for file in (self.predictions, self.journal, self._seconds_file, self.metrics, self.path / "run.json"):
            file.unlink(missing_ok=True)
        _remove_if_empty(self.path)

    def _remove_leftovers(self) -> None:
        """Delete half-written files of killed processes; the caller holds the lock."""
        remove_leftovers(self.path, {"run.json", self.metrics.name, SECONDS}.__contains__)
        for name in OF_IMAGES:
            remove_leftovers(self.path / name)

    def _compare(self, recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
        if differences := describe_differences(recorded, asked):
            raise UsageError(
                f"'{self.path}' holds another run",
                differences,
                "repeat that run's options to continue it, or name another --out",
            )

    def _cut_unfinished_group(self, images: int, group: int) -> None:
        lines = self.journal.read_bytes().split(b"\n")[:-1]  # what follows the last line end was cut off by a kill
        complete = len(lines) if len(lines) == images else len(lines) // group * group
        with self.journal.open("r+b") as file:
            file.truncate(sum(len(line) + 1 for line in lines[:complete]))


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _parse(path: Path) -> list[dict[str, Any]]:
    try:
        records = [from_json(line) for line in path.read_bytes().splitlines()]
    except ValueError as error:
        raise AvarcError(f"'{path}' is corrupt", str(error), AGAIN) from None
    for number, record in enumerate(records, start=1):
        check_record(record, f"{path}, line {number}")
    return records


def _read_seconds(path: Path) -> float:
    try:
        return float(path.read_text())
    except ValueError:
        fix = "delete it: only the time spent on the finished images is lost"
        raise AvarcError(f"'{path}' is corrupt", "it is not a number of seconds", fix) from None


def _upgraded(protocol: dict[str, Any]) -> dict[str, Any]:
    """A protocol of this or an earlier version, whose tokens had the sides of scales in place of a layout."""
    tokens = protocol.get("tokens")
    if not isinstance(tokens, dict) or "patch_nums" not in tokens:
        return protocol
    sides = tokens["patch_nums"]
    grids = [[side, side] for side in sides] if isinstance(sides, list) else sides
    current = {name: value for name, value in tokens.items() if name != "patch_nums"} | {"layout": {"grids": grids}}
    return protocol | {"tokens": current}


def _read_object(path: Path) -> dict[str, Any]:
    try:
        there = from_json(path.read_bytes())
        if not isinstance(there, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError) as error:
        raise AvarcError(f"cannot read '{path}'", str(error), "name another folder, or delete this one") from None
    return there
