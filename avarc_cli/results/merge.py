"""Shards of one run that were classified into folders of their own, joined to a finished run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avarc_cli.errors import AvarcError, UsageError, describe_differences
from avarc_cli.progress import Progress, no_progress
from avarc_cli.results import resume
from avarc_cli.results.folder import OF_IMAGES, RunFolder
from avarc_cli.results.parts import Division, ScoredChunk, ScoredFormat
from avarc_cli.storage import write_bytes
from avarc_cli.words import counted
from avarc_cli.work.chunks import CORRUPT, ChunkFolder

SAVED = {"json": "save_json", "likelihood": "save_likelihood"}
"""Folder of files of single images -> the field of run.json that says whether there are any."""


@dataclass(frozen=True)
class _Shard:
    """An unfinished run folder."""

    folder: RunFolder
    protocol: dict[str, Any]
    division: Division

    @property
    def parts(self) -> ChunkFolder[ScoredChunk]:
        return ChunkFolder(self.folder.parts, self.division.chunks, ScoredFormat())


def merge_runs(sources: Sequence[Path], out: Path, *, progress: Progress = no_progress) -> dict[str, Any]:
    """Join the finished chunks of run folders to a finished run in the folder `out`; the sources stay.

    The files have the bytes of a run that was not divided, but for the time that metrics.json records.

    Args:
        out: a new folder, or one in which the same call was interrupted.
        progress: called with images done and in all.
    Returns: metrics.json.
    Raises: UsageError for fewer than two sources, for one that is no unfinished run, for runs of different requests,
        and where chunks are missing or in two sources; AvarcError for a corrupt source.
    """
    if len(sources) < 2 or len({os.path.realpath(source) for source in (*sources, out)}) <= len(sources):
        why = "it takes two or more different runs, and another folder for --out"
        raise UsageError("there is nothing to join", why, "name the folders of all shards, and a new one for --out")
    shards = [_open(source) for source in sources]
    for shard in shards[1:]:
        _check_same(shards[0], shard)
    owner = _owners(shards)
    first, target = shards[0], RunFolder(out)
    target.check_contents()
    if target.finished or target.parts.exists() or target.journal.exists() or target.has_another(first.protocol):
        raise UsageError(f"'{out}' holds a run already", fix="name another --out")
    with target.lock():
        target.remove_leftovers()
        write_bytes(target.path / "run.json", (owner[0].folder.path / "run.json").read_bytes())
        division = first.division
        metrics = target.finish(_results(owner, target, progress), division.candidates, division.about)
    return metrics


def _open(source: Path) -> _Shard:
    folder = RunFolder(source)
    if not folder.exists:
        fix = "name folders that avarc classify --shard --out made"
        raise UsageError(f"'{source}' is not a run", "it has no run.json", fix)
    protocol, division = folder.read_protocol(), Division.recorded(folder.parts)
    if folder.finished:
        raise UsageError(f"'{source}' is a finished run", "shards of a run are joined", "name unfinished ones")
    if division is None:
        fix = "run the shard's command again with this version"
        raise UsageError(f"'{source}' has no finished chunks", f"there is no '{folder.parts / 'request.json'}'", fix)
    return _Shard(folder, protocol, division)


def _check_same(first: _Shard, other: _Shard) -> None:
    """Raises: UsageError with both values unless these are shards of one run."""
    there, here = ({"source": resume.source(each.protocol)} | each.division.to_dict() for each in (first, other))
    differences = resume.differences(first.protocol, other.protocol) or describe_differences(there, here)
    if differences:
        folders = f"'{first.folder.path}' (there) and '{other.folder.path}' (here)"
        raise UsageError(f"{folders} do not go together", differences, "join shards of one run")


def _owners(shards: Sequence[_Shard]) -> list[_Shard]:
    """Which shard has which chunk. Raises: UsageError unless each chunk is in one of them."""
    owner: dict[int, _Shard] = {}
    for shard in shards:
        for number in sorted(shard.parts.finished()):
            if number in owner:
                why = f"chunk {number} is in '{owner[number].folder.path}' and in '{shard.folder.path}'"
                raise UsageError("the shards overlap", why, "name each shard once")
            owner[number] = shard
    count = shards[0].division.chunks.count
    missing = sorted(set(range(count)) - owner.keys())
    if missing:
        why = f"in none of them: {len(missing):,} of {counted(count, 'chunk')}, the first is chunk {missing[0]}"
        raise UsageError("a shard is missing, or not finished", why, "name the folders of all shards")
    return [owner[number] for number in range(count)]


def _results(owner: Sequence[_Shard], target: RunFolder, progress: Progress) -> Iterator[ScoredChunk]:
    """The chunks in order; before each one, the files of its images are copied."""
    chunks = owner[0].division.chunks
    progress(0, chunks.items)
    for number, shard in enumerate(owner):
        try:
            chunk = shard.parts.load(number)
        except CORRUPT as error:
            what = f"chunk {number} in '{shard.folder.parts}' is corrupt"
            raise AvarcError(what, str(error), "run the shard's command again, which repairs it") from error
        for index in chunks.items_of(number):
            _copy_files(shard, number, index, target)
        yield chunk
        progress(chunks.items_of(number).stop)


def _copy_files(shard: _Shard, number: int, index: int, target: RunFolder) -> None:
    """Copy the files of an image, which is one of chunk `number`."""
    for kind, suffix in OF_IMAGES.items():
        name = f"{kind}/{index}{suffix}"
        file = shard.folder.path / name
        if file.exists():
            target.write(name, file.read_bytes())
        elif kind in SAVED and shard.protocol.get(SAVED[kind]):
            fix = f"delete '{shard.folder.parts / f'{number:06d}.npz'}' and run the shard's command again"
            raise AvarcError(f"'{file}' is missing", "the run saves one for each image", fix)
