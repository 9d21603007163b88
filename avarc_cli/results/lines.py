"""The lines of predictions.jsonl. A file may hold millions of them: they are read one at a time."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias, overload

from avarc_cli.errors import AvarcError
from avarc_cli.names import from_json, to_json
from avarc_cli.results.validate import AGAIN, check_record

Record: TypeAlias = "dict[str, Any]"
"""A prediction, as `records.line` makes it."""


def to_lines(records: Iterable[Record]) -> bytes:
    """The lines of these predictions."""
    return "".join(to_json(record) + "\n" for record in records).encode()


def from_lines(lines: Iterable[bytes], where: str) -> Iterator[Record]:
    """The predictions of these lines, each checked. Raises: AvarcError naming `where` for one that is corrupt."""
    for number, line in enumerate(lines, start=1):
        yield _parse(line, where, number)


class SavedRecords(Sequence[Record]):
    """The predictions in a file, of which only where each line begins is in memory.

    A corrupt line is an error (AvarcError) when it is read.
    """

    def __init__(self, path: Path, *, cut: bool = False) -> None:
        """Find the lines. Raises: OSError.

        Args:
            cut: the file is one that a kill may have cut off: what follows the last line end does not count.
        """
        self._path = path
        self._starts = array("q")
        place = 0
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n") or not cut:
                    self._starts.append(place)
                place += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Record]:
        with self._path.open("rb") as file:
            yield from from_lines((line for _, line in zip(self._starts, file, strict=False)), str(self._path))

    @overload
    def __getitem__(self, place: int) -> Record: ...

    @overload
    def __getitem__(self, place: slice) -> list[Record]: ...

    def __getitem__(self, place: int | slice) -> Record | list[Record]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        number = range(len(self))[place]  # negative ones count from the end; raises IndexError
        with self._path.open("rb") as file:
            file.seek(self._starts[number])
            return _parse(file.readline(), str(self._path), number + 1)


def _parse(line: bytes, where: str, number: int) -> Record:
    try:
        record: Record = from_json(line)
    except ValueError as error:
        raise AvarcError(f"'{where}' is corrupt", str(error), AGAIN) from None
    check_record(record, f"{where}, line {number}")
    return record
