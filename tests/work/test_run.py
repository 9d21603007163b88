"""Work that is not about tokens: squares of numbers, in chunks, interrupted and continued."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from avarc_cli.errors import AvarcError
from avarc_cli.progress import no_progress
from avarc_cli.work import chunks
from avarc_cli.work.chunks import ChunkFolder, Chunks, from_json_array, recorded_request, to_json_array
from avarc_cli.work.run import compute, recompute_corrupt


@dataclass(frozen=True)
class Squares:
    """A result: the squares of some numbers, and a note."""

    values: np.ndarray
    note: Any


class SquaresFormat:
    def to_arrays(self, result: Squares) -> dict[str, np.ndarray]:
        return {"values": result.values, "note": to_json_array(result.note)}

    def from_arrays(self, items: range, arrays: Mapping[str, np.ndarray]) -> Squares:
        if arrays["values"].shape != (len(items),):
            raise ValueError("other numbers")
        return Squares(arrays["values"], from_json_array(arrays["note"]))


@dataclass
class Square:
    stop_at: int | None = None
    uses_gpu: bool = False

    def run(self, chunks, tick) -> Iterator[tuple[int, Squares]]:
        for number, items in chunks.items():
            if number == self.stop_at:
                raise KeyboardInterrupt
            yield number, Squares(np.array(items) ** 2, {"first": items.start, "name": "é"})
            tick(len(items))


@pytest.fixture
def folder(tmp_path) -> ChunkFolder[Squares]:
    made = ChunkFolder(tmp_path / "work.parts", Chunks(11, 4), SquaresFormat())
    made.create({"power": 2})
    return made


def run(folder, task, numbers, *, of=range(3), progress=no_progress):
    return compute(folder, task, numbers, of=of, progress=progress)


@pytest.mark.parametrize(("items", "size", "sizes"), [(11, 4, [4, 4, 3]), (8, 4, [4, 4]), (3, 4, [3]), (0, 4, [])])
def test_chunks_cover_every_item_once(items, size, sizes):
    divided = Chunks(items, size)
    assert [len(divided.items_of(number)) for number in range(divided.count)] == sizes
    assert [item for number in range(divided.count) for item in divided.items_of(number)] == list(range(items))
    assert divided.count_items(range(divided.count)) == items


def test_interrupted_work_is_continued(folder):
    seen = []
    with pytest.raises(KeyboardInterrupt):
        run(folder, Square(stop_at=1), range(3))
    assert folder.finished() == {0}
    missing = sorted(set(range(3)) - folder.finished())
    assert run(folder, Square(), missing, progress=lambda *at: seen.append(at)) == 7
    assert seen == [(4, 11), (8, 11), (11, 11)]
    results = list(folder.stream(range(3)))
    assert np.array_equal(np.concatenate([result.values for result in results]), np.arange(11) ** 2)
    assert [result.note for result in results] == [{"first": first, "name": "é"} for first in (0, 4, 8)]
    assert run(folder, Square(), []) == 0


def test_corrupt_chunks_are_computed_again(folder):
    run(folder, Square(), range(3))
    file = folder.path / "000001.npz"
    complete = file.read_bytes()
    file.write_bytes(complete[:-30])
    (folder.path / "000002.npz").write_bytes(complete)  # of another chunk
    assert folder.corrupt(range(3)) == [1, 2]
    assert recompute_corrupt(folder, Square(), range(3), progress=no_progress) == 7
    assert folder.corrupt(range(3)) == [] and file.read_bytes() == complete


def test_a_chunk_that_becomes_corrupt_in_use_is_an_error(folder):
    run(folder, Square(), range(3))
    (folder.path / "000001.npz").write_bytes(b"")
    with pytest.raises(AvarcError, match="became corrupt while it was in use"):
        list(folder.stream(range(3)))


def test_names_that_are_no_chunks_are_not_counted(folder):
    run(folder, Square(), [1])
    for name in ("000007.npz", "x.npz", "000002.npz.0123abcd.tmp", "000002.npz.tmp"):
        (folder.path / name).write_bytes(b"")
    assert folder.finished() == {1}


def test_leftovers_of_other_processes_chunks_are_kept(folder):
    names = ["000000.npz.0123abcd.tmp", "000002.npz.0123abcd.tmp", "cache.h5.0123abcd.tmp"]
    for name in names:
        (folder.path / name).write_bytes(b"half")
    folder.clean(range(2))
    assert sorted(path.name for path in folder.path.iterdir()) == [names[1], "request.json"]


def test_the_request_is_recorded_and_another_one_deletes_the_chunks(folder, tmp_path):
    run(folder, Square(), range(3))
    assert recorded_request(folder.path) == {"power": 2}
    folder.create({"power": 3})
    assert recorded_request(folder.path) == {"power": 3} and folder.finished() == set()
    (folder.path / "request.json").write_text("[]")
    assert recorded_request(folder.path) is None
    chunks.delete(folder.path)
    assert not list(tmp_path.iterdir()) and recorded_request(folder.path) is None
    chunks.delete(folder.path)
