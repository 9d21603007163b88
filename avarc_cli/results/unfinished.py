"""A run folder whose run is begun, continued or finished: what is there, and what is kept of it.

What is found there, of the same request, decides; another request is an error.

    predictions.jsonl    finished, if all are of the present tokens; `parts` beside it are what a kill left.
                         Else the chunks without changed images become `parts`, and the others are computed again
    parts                continued: chunks with changed images are computed again
    parts, divided       become a journal, which is continued: the number of images changed, or this is another
      otherwise          version
    predictions.jsonl.part   the journal: its whole chunks become `parts`
    nothing              `parts` are created

Each step leaves a folder that is continued in the same way, so a kill between two of them loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from avarc_cli.names import from_json, to_json
from avarc_cli.progress import Notify
from avarc_cli.results import resume
from avarc_cli.results.folder import RunFolder
from avarc_cli.results.lines import Record, SavedRecords, to_lines
from avarc_cli.results.parts import Division, ScoredChunk, ScoredFormat, fill
from avarc_cli.results.resume import AreCurrent, Review, Tally
from avarc_cli.storage import replacing, write_bytes
from avarc_cli.work import chunks
from avarc_cli.work.chunks import CORRUPT, ChunkFolder
from avarc_cli.work.locks import ALL_CHUNKS, ChunkLock
from avarc_cli.work.shards import Shard


@dataclass(frozen=True)
class Opening:
    """Opens a run folder for one process, which holds its lock exclusively."""

    folder: RunFolder
    division: Division
    are_current: AreCurrent
    shard: Shard
    lock: ChunkLock
    say: Notify

    @property
    def parts(self) -> ChunkFolder[ScoredChunk]:
        """The finished chunks; those of other tokens count as corrupt."""
        return ChunkFolder(self.folder.parts, self.division.chunks, ScoredFormat(self.are_current))

    @property
    def mine(self) -> range:
        """The chunks of this process."""
        return self.shard.chunks(self.division.chunks.count)

    def open(self, protocol: Mapping[str, Any]) -> Tally | None:
        """Claim the chunks of the shard, and make them ready to be continued.

        Args:
            protocol: the request, for run.json.
        Returns: what is finished of them; None when the whole run is finished.
        Raises: UsageError when the folder holds another run; AvarcError when it holds a corrupt one, or another process
            computes the same chunks; OSError.
        """
        folder = self.folder
        folder.prepare()
        asked = from_json(to_json(protocol, sort_keys=True))
        recorded = folder.read_protocol() if folder.exists else None
        if recorded is None:
            folder.write_request(asked)  # first: other files make a folder without it another's
        elif why := resume.differences(recorded, asked):
            raise resume.another_run(str(folder.path), why)
        elif "options" in recorded:
            asked = {**asked, "options": recorded["options"]}  # the same request in other words: the first stay
        recorded = recorded or asked
        self.lock.claim(self.mine if self.shard.of > 1 else ALL_CHUNKS)
        there = Division.recorded(folder.parts)
        is_divided_so = there is not None and there.chunks == self.division.chunks
        if folder.finished or not is_divided_so:
            review = self._start_over(there, recorded, asked)
        else:
            review = self._continue(recorded, asked)
        if folder.finished:
            return None
        if recorded.get("tokens") != asked.get("tokens") or not self.parts.finished():
            folder.write_request(asked)
        return review.tally(review.kept & set(self.mine))

    def _continue(self, recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> Review:
        """Chunks in this division: those with changed images are deleted, to be computed again."""
        parts, review = self.parts, Review(self.division.chunks)
        # If the source has another name, other shards' predictions tell as well whether it is the same.
        same_name = resume.source(recorded) == resume.source(asked)
        mine = sorted(parts.finished() & set(self.mine)) if same_name else sorted(parts.finished())
        review.look_at(_readable(replace(parts, format=ScoredFormat()), mine), self.are_current)
        source = review.check_source(str(self.folder.path), recorded, asked)
        self._clean()
        self.folder.remove_journal()  # its predictions are among the chunks
        for number in set(mine) & set(self.mine) - review.kept:
            parts.remove(number)
        self._report(review, recorded, asked, source)
        return review

    def _start_over(self, there: Division | None, recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> Review:
        """Predictions in another form, or none: they become chunks in this division, unless they are all there are."""
        folder, review = self.folder, Review(self.division.chunks)
        found, seconds = self._find(there)
        review.look_at(found, self.are_current)
        source = review.check_source(str(folder.path), recorded, asked)
        if folder.finished and review.is_complete:
            if self.lock.is_sole_holder():
                chunks.delete(folder.parts)  # a kill may have come between the steps of `finish`
                folder.remove_journal()
                folder.remove_leftovers()
            self._report(review, recorded, asked, source)
            return review
        self.lock.claim(ALL_CHUNKS)
        self._clean()
        with self.parts.filled(self.division.to_dict()) as filled:
            for _ in fill(filled, _in_order(found), review.kept, seconds / max(1, review.count)):
                pass
        folder.reopen(self.division.chunks.items)
        folder.remove_journal()
        self.lock.release_all_but(self.mine if self.shard.of > 1 else ALL_CHUNKS)
        self._report(review, recorded, asked, source)
        return review

    def _find(self, there: Division | None) -> tuple[SavedRecords | tuple[()], float]:
        """The predictions of earlier calls that are not chunks in this division, and the seconds spent on them."""
        folder = self.folder
        if folder.finished:
            each = folder.read_metrics().get("seconds_per_image") if folder.metrics.exists() else None
            found = folder.read_predictions()
            return found, (each or 0.0) * len(found)
        if there is not None:
            self.lock.claim(ALL_CHUNKS)
            _to_journal(folder, there)
        if folder.journal.exists():
            return SavedRecords(folder.journal, cut=True), folder.read_journal_seconds()
        return (), 0.0

    def _clean(self) -> None:
        """Delete what killed processes left half-written of this process's chunks."""
        items = self.division.chunks.items_of
        images = range(items(self.mine.start).start, items(self.mine.stop - 1).stop) if self.mine else range(0)
        self.folder.remove_leftovers(images if self.shard.of > 1 else None)
        if self.folder.parts.is_dir():
            self.parts.clean(self.mine)

    def _report(
        self, review: Review, recorded: Mapping[str, Any], asked: Mapping[str, Any], source: str | None
    ) -> None:
        if not review.count:
            return
        path, say = self.folder.path, self.say
        if source is not None:
            say(f"'{path}' was begun with '{source}': these are the same images")
        if review.unknown:
            say(f"an earlier version made predictions of '{path}': changes of images since cannot be detected")
        if review.outdated:
            images = "1 image has" if review.outdated == 1 else f"{review.outdated:,} images have"
            say(f"{images} other tokens or labels than when '{path}' was made: classifying again")
        before, now = recorded.get("threads"), asked.get("threads")
        if before != now and not self.folder.finished:
            say(f"continuing with {now} threads what was begun with {before}: last digits may differ by rounding")


def _readable(parts: ChunkFolder[ScoredChunk], numbers: Iterable[int]) -> Iterator[Record]:
    """The predictions of these chunks; corrupt files are left out, since their chunks are computed again."""
    for number in numbers:
        try:
            chunk = parts.load(number)
        except CORRUPT:
            continue
        yield from chunk.records


def _to_journal(folder: RunFolder, there: Division) -> None:
    """Chunks in another division to a journal."""
    parts = ChunkFolder(folder.parts, there.chunks, ScoredFormat())
    seconds = 0.0
    with replacing(folder.journal) as temporary, temporary.open("wb") as file:
        for number in sorted(parts.finished()):
            try:
                chunk = parts.load(number)
            except CORRUPT:
                continue
            file.write(to_lines(chunk.records))
            seconds += chunk.seconds
        write_bytes(folder.journal_seconds, str(seconds).encode())
    chunks.delete(folder.parts)


def _in_order(records: SavedRecords | tuple[()]) -> Iterable[Record]:
    """Predictions in the order of their images: in a journal, those of changed images came last."""
    index = np.array([record["index"] for record in records], dtype=np.int64)
    if (index[1:] > index[:-1]).all():
        return records
    return (records[place] for place in np.argsort(index, kind="stable").tolist())
