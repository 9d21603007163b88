"""The run folder: the request (run.json), a journal of predictions that survives a kill, and the final files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from avarc_cli.data.preprocess import current_description
from avarc_cli.errors import AvarcError, UsageError
from avarc_cli.names import from_json, to_json
from avarc_cli.progress import Notify, no_message
from avarc_cli.results import made_here, resume
from avarc_cli.results.prediction_files import csv_file
from avarc_cli.results.resume import AreCurrent, Kept, Record
from avarc_cli.results.validate import AGAIN, check_protocol, check_record
from avarc_cli.storage import move_into_place, remove_leftovers, write_bytes
from avarc_cli.work.locks import only_writer

JOURNAL = "predictions.jsonl.part"
SECONDS = "seconds.part"
OF_IMAGES = ("json", "likelihood", "segments")  # folders of files of single images
OF_ONE_IMAGE = re.compile(r"\d+\.(json|npz|npy)")  # a file in one of them


class RunFolder:
    """A run on disk: open it, append groups of predictions in order, finish it.

    The journal is append-only; a line that a kill cut off is scored again. Files of single images are written before
    their line, so a line in the journal means that all files of its image exist. Where images changed, their groups are
    dropped from it and come last.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal = path / JOURNAL
        self.predictions = path / "predictions.jsonl"
        self.table = path / "predictions.csv"
        self.metrics = path / "metrics.json"
        self._seconds_file = path / SECONDS
        self.seconds = 0.0
        self._in_order = True  # the lines of the journal

    def open(
        self,
        asked: Mapping[str, Any],
        *,
        images: int,
        group: int,
        are_current: AreCurrent = lambda records: [True] * len(records),
        say: Notify = no_message,
    ) -> list[Record]:
        """Start or resume the run, and return the records that it has already.

        Only complete groups count, so that a resumed run divides the rest into the same groups as an uninterrupted one.
        A finished run with predictions of other tokens than the present ones is no longer finished.

        Args:
            asked: the request, for run.json. images: of the run. group: images that are scored together.
            are_current: which records are still of the run's tokens.
            say: called with messages for the user.
        Raises: UsageError when the folder holds another run; AvarcError when it holds a corrupt one.
        """
        self.prepare()
        asked = from_json(to_json(asked, sort_keys=True))
        recorded = self.read_protocol() if self.exists else None
        if recorded is not None and (why := resume.differences(recorded, asked)):
            raise resume.another_run(str(self.path), why)
        if recorded is not None and "options" in recorded:
            asked = {**asked, "options": recorded["options"]}  # the same request in other words: the first stay
        there = self._read_records()
        kept = Kept.of(there, are_current, images, group)
        source = kept.check_source(str(self.path), recorded, asked) if recorded is not None and there else None
        self._remove_leftovers()
        finished = self.finished and len(kept.records) == len(there) == images
        if finished:
            self.journal.unlink(missing_ok=True)  # a kill may have come between the steps of `finish`
            self._seconds_file.unlink(missing_ok=True)
        elif self.finished or len(kept.records) < len(there) or self._is_cut():
            self._reopen(kept.records, len(there), images)
        elif self._seconds_file.exists():
            self.seconds = _read_seconds(self._seconds_file)
        has_other_tokens = recorded is not None and recorded.get("tokens") != asked.get("tokens")
        if recorded is None or (not finished and (not kept.records or has_other_tokens)):
            self._write_request(asked)
        self._in_order = [record["index"] for record in kept.records] == list(range(len(kept.records)))
        if recorded is not None and there:
            self._report(kept, recorded, asked, source, say)
        return kept.records

    def _write_request(self, asked: Mapping[str, Any]) -> None:
        write_bytes(self.path / "run.json", to_json(asked, indent=1, sort_keys=True).encode())

    def _read_records(self) -> list[Record]:
        if self.finished:
            return _parse(self.predictions)
        if not self.journal.exists():
            return []
        return _parse(self.journal, cut=True)

    def _is_cut(self) -> bool:
        """Whether a kill left the last line of the journal without its end."""
        if not self.journal.exists():
            return False
        with self.journal.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            return file.read() not in {b"", b"\n"}

    def _reopen(self, kept: list[Record], of: int, images: int) -> None:
        """Keep some of `of` predictions, of a finished run too; the others, and files of no image, are gone."""
        if self.finished:
            each = self.read_metrics().get("seconds_per_image") if self.metrics.exists() else None
            self.seconds = (each or 0.0) * len(kept)
        elif self._seconds_file.exists():
            self.seconds = _read_seconds(self._seconds_file)
        write_bytes(self._seconds_file, str(self.seconds).encode())
        write_bytes(self.journal, _lines(kept))
        self.predictions.unlink(missing_ok=True)  # after the journal: a kill in between repeats this
        self.metrics.unlink(missing_ok=True)
        self.table.unlink(missing_ok=True)
        self._remove_files_of_images(lambda index: index >= images)

    def _report(
        self, kept: Kept, recorded: Mapping[str, Any], asked: Mapping[str, Any], source: str | None, say: Notify
    ) -> None:
        if source is not None:
            say(f"'{self.path}' was begun with '{source}': these are the same images")
        if kept.unknown:
            say(f"an earlier version made predictions of '{self.path}': changes of images since cannot be detected")
        if kept.outdated:
            images = "1 image has" if kept.outdated == 1 else f"{kept.outdated:,} images have"
            say(f"{images} other tokens than when '{self.path}' was made: classifying again")
        before, now = recorded.get("threads"), asked.get("threads")
        if before != now and not self.finished:
            say(f"continuing with {now} threads what was begun with {before}: last digits may differ by rounding")

    def has_another(self, asked: Mapping[str, Any]) -> bool:
        """Whether the folder holds a run of another request, or of images that were called otherwise."""
        return self.exists and not resume.is_same(self.read_protocol(), from_json(to_json(asked)))

    def replace(self, asked: Mapping[str, Any]) -> None:
        """Delete the predictions of a run of another request, and begin this one. Raises: as `clear` and `lock`."""
        with self.lock():
            self.clear()
            self._write_request(asked)

    def lock(self) -> AbstractContextManager[None]:
        """Keep other processes from writing to the run. Raises AvarcError when one is."""
        self.prepare()
        return only_writer(self.path / "run")

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

    def read_predictions(self) -> list[Record]:
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

    def append(self, records: list[Record], seconds: float) -> None:
        """Add the records of a group to the journal, and wait until they are on disk."""
        self.seconds += seconds
        write_bytes(self._seconds_file, str(self.seconds).encode())
        with self.journal.open("ab") as file:
            file.write(_lines(records))
            file.flush()
            os.fsync(file.fileno())

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Write metrics.json, predictions.csv, and last predictions.jsonl, both in the order of the images."""
        write_bytes(self.metrics, to_json(metrics, indent=1).encode())
        with csv_file(self.table) as add:
            add(sorted(_parse(self.journal), key=lambda record: int(record["index"])))
        if self._in_order:
            move_into_place(self.journal, self.predictions)
        else:
            write_bytes(self.predictions, _lines(sorted(_parse(self.journal), key=lambda record: int(record["index"]))))
            self.journal.unlink()
        self._seconds_file.unlink(missing_ok=True)
        made_here.remember(self.path / "run.json")

    def clear(self) -> None:
        """Delete the predictions of a run, so that another can begin. Only run.json, which that replaces, is left.

        Raises: as `check_own`; OSError.
        """
        self.check_own()
        self._remove_leftovers()
        for file in (self.predictions, self.journal, self._seconds_file, self.metrics, self.table):
            file.unlink(missing_ok=True)  # first: a killed deletion leaves no prediction without its image's files
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

    def _remove_leftovers(self) -> None:
        """Delete half-written files of killed processes; the caller holds the lock."""
        written = {"run.json", self.metrics.name, self.table.name, self.predictions.name, JOURNAL, SECONDS}
        remove_leftovers(self.path, written.__contains__)
        for name in OF_IMAGES:
            remove_leftovers(self.path / name)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _parse(path: Path, *, cut: bool = False) -> list[Record]:
    """The lines of a file of predictions; cut: what follows the last line end was cut off by a kill."""
    lines = path.read_bytes().split(b"\n")[:-1] if cut else path.read_bytes().splitlines()
    try:
        records = [from_json(line) for line in lines]
    except ValueError as error:
        raise AvarcError(f"'{path}' is corrupt", str(error), AGAIN) from None
    for number, record in enumerate(records, start=1):
        check_record(record, f"{path}, line {number}")
    return records


def _lines(records: Iterable[Record]) -> bytes:
    return "".join(to_json(record) + "\n" for record in records).encode()


def _read_seconds(path: Path) -> float:
    try:
        return float(path.read_text())
    except ValueError:
        fix = "delete it: only the time spent on the finished images is lost"
        raise AvarcError(f"'{path}' is corrupt", "it is not a number of seconds", fix) from None


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
