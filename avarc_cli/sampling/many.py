"""Many pictures of classes: drawn in chunks, by one or several processes, into a folder of PNG files or an array.

The process that draws a picture writes its file (`folder`). The pixels of an array are kept in the files of chunks,
and assembled when all are there (`array`).
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avarc_cli import product_library
from avarc_cli.data.labels import resolve_all
from avarc_cli.errors import AvarcError, Interrupted, UsageError
from avarc_cli.loaded import LoadedModel
from avarc_cli.loading import multiplying_by
from avarc_cli.names import to_json
from avarc_cli.progress import Notify, Progress, no_message, no_progress
from avarc_cli.sampling.array import MEMBER, SHAPE, PictureArray, header, place_of
from avarc_cli.sampling.chunks import Drawer, Files, Keeping, Pixels
from avarc_cli.sampling.folder import FORMAT, Layout, PicturePlace
from avarc_cli.sampling.pictures import Sampling
from avarc_cli.settings import LIBRARIES
from avarc_cli.storage import remove_leftovers, remove_leftovers_of, replacing, write_bytes
from avarc_cli.words import are, counted
from avarc_cli.work import chunks
from avarc_cli.work.chunks import ChunkFolder, Chunks
from avarc_cli.work.locks import ALL_CHUNKS, ChunkLock, chunk_lock
from avarc_cli.work.run import compute, recompute_corrupt
from avarc_cli.work.shards import UNDIVIDED, Shard
from avarc_cli.work.workers import HERE, Workers, check_division

BATCH = 8
"""Pictures that are drawn at once; a choice without measurement."""

PRODUCTS = "products"
"""The field of a request with the library of float32 products."""

MOST = 10_000_000
"""Pictures of one folder or array: each process keeps a list of all chunks in memory."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What `sample_many` did."""

    class_ids: tuple[int, ...]
    """The classes, in the order they were asked for, without repetitions."""

    names: tuple[str, ...]
    """What they are called."""

    chunks: int
    """Finished chunks."""

    all_chunks: int
    """Chunks of the folder."""

    others_at_work: bool = False
    """Whether other shards are drawing, so that the folder is not complete."""

    already_done: bool = False
    """Whether there was nothing to do."""

    @property
    def complete(self) -> bool:
        """Whether all pictures are there."""
        return self.chunks == self.all_chunks and not self.others_at_work


def sample_many(
    model: LoadedModel,
    classes: Sequence[str],
    out: Path,
    count: int,
    sampling: Sampling | None = None,
    *,
    flat: bool = False,
    batch_size: int = BATCH,
    shard: Shard = UNDIVIDED,
    workers: Workers = HERE,
    overwrite: bool = False,
    progress: Progress = no_progress,
    say: Notify = no_message,
) -> Drawn:
    """Draw pictures of classes, continuing what an earlier call with the same request began.

    Args:
        out: a folder, for PNG files, or FILE.npz for an array of all (`array`).
        classes, count, sampling: as in `sampling.sample`. Pictures have the same random streams.
        flat: number the files of a folder through, instead of a folder for each class.
        batch_size: pictures that are drawn at once, which decides about roundings.
        shard: draw only this part of the chunks. All shards of one `out` may run at once.
        workers: who draws.
        overwrite: replace the pictures of another request. Only files that belong to it are deleted.
        progress: called with (pictures done, pictures in all).
        say: called with messages for the user.
    Raises: UsageError for unknown classes, for more than MOST pictures, for what the model cannot do, and when `out`
        holds anything else; AvarcError when another process draws the same pictures, or there is not enough memory;
        Interrupted on Ctrl-C.
    """
    check_division(shard, workers, out=out, overwrite=overwrite)
    how = sampling or Sampling()
    how.check(model)
    ids = resolve_all(classes, model.classes)
    layout, place = Layout(tuple(model.classes.ids[i] for i in ids), count, flat), place_of(out)
    if len(layout) > MOST:
        why = f"one folder or array has at most {MOST:,}"
        raise UsageError(f"{counted(len(layout), 'picture')} were asked for", why, "draw fewer, or several folders")
    as_array = isinstance(place, PictureArray)
    keeping: Keeping = Pixels(how.side(model)) if as_array else Files(layout, place.path.absolute())
    try:
        place.check()
        with chunk_lock(place.path, wait=shard.of > 1) as lock:
            begun = {} if overwrite else next(iter(place.requests()), {})
            if begun.get(PRODUCTS) in LIBRARIES:
                model = multiplying_by(model, begun[PRODUCTS])
            drawer = Drawer(model, ids, layout, how, keeping)
            request = _request(drawer, batch_size, as_array=as_array)
            if begun and PRODUCTS not in begun:  # an earlier version began them
                del request[PRODUCTS]
            return _Work(place, drawer, request, batch_size, shard, workers, overwrite, progress, say).do(lock)
    except OSError as error:
        fix = "free some space or name another place, and run the same command again: finished pictures are kept"
        raise AvarcError(f"cannot write '{out}'", error.strerror or str(error), fix) from error


def _request(drawer: Drawer, batch_size: int, *, as_array: bool) -> dict[str, Any]:
    """What the pictures depend on, as JSON types."""
    model, layout = drawer.model, drawer.layout
    protocol = model.protocol()
    request = {
        "format": FORMAT,
        "classes": list(layout.ids),
        "class_numbers": list(drawer.class_ids),
        "count": layout.count,
        "sampling": drawer.how.protocol(model),
        "batch_size": batch_size,
        "model": model.sha256,
        "tokenizer": model.tokenizer.sha256,
        "device": torch.device(model.device).type,  # another kind has other random numbers
        PRODUCTS: product_library.recorded(model.arithmetic),
    } | {
        name: protocol[name]
        for name in ("bank", "captions", "precision", "kernels", "lora", "stated", "inferred")
        if name in protocol
    }
    if as_array:
        request[SHAPE] = [len(layout), *[drawer.how.side(model)] * 2, 3]
    return request | ({"flat": True} if layout.flat else {})


@dataclass(frozen=True)
class _Work:
    """One call of `sample_many`."""

    place: PicturePlace
    drawer: Drawer
    request: Mapping[str, Any]
    batch_size: int
    shard: Shard
    workers: Workers
    overwrite: bool
    progress: Progress
    say: Notify

    @property
    def _parts(self) -> ChunkFolder[np.ndarray]:
        return ChunkFolder(self.place.parts, Chunks(len(self.drawer.layout), self.batch_size), self.drawer.keeping)

    def do(self, lock: ChunkLock) -> Drawn:
        """Draw the missing pictures of the shard, and complete them if no other shard is at work."""
        parts = self._parts
        mine = self.shard.chunks(parts.chunks.count)
        try:
            if not self._open(lock, parts, mine):
                return self._drawn(parts.chunks.count, already_done=True)
            lock.release_exclusive()
            missing = set(mine) - parts.finished()
            compute(parts, self.drawer, missing, of=mine, workers=self.workers, progress=self.progress, say=self.say)
            lock.acquire_exclusive()
            return self._close(lock, parts)
        except KeyboardInterrupt:
            done = parts.chunks.count_items(parts.finished())
            what = f"interrupted; {done:,} of {counted(parts.chunks.items, 'picture')} {are(done)} kept"
            raise Interrupted(f"{what} in '{self.place.path}'", fix="run the same command again to continue") from None

    def _open(self, lock: ChunkLock, parts: ChunkFolder[np.ndarray], mine: range) -> bool:
        """Claim the shard's chunks and make everything ready. Returns: whether there is something to do."""
        place, layout = self.place, self.drawer.layout
        place.check()
        lock.claim(mine if self.shard.of > 1 else ALL_CHUNKS)
        if self.overwrite and not place.holds(self.request):
            place.remove()
        place.check_same(self.request)
        if place.recorded() is not None:
            place.check_complete(layout)
            if lock.is_sole_holder():
                chunks.delete(place.parts)
            return False
        items = [parts.chunks.items_of(number) for number in mine]
        place.prepare(layout, range(items[0].start, items[-1].stop) if items else range(0))
        if place.unfinished() is None:
            remove_leftovers_of(place.parts)
            parts.create(self.request)
        parts.clean(mine)
        return True

    def _close(self, lock: ChunkLock, parts: ChunkFolder[np.ndarray]) -> Drawn:
        """Complete the pictures, unless chunks are missing or other shards are at work."""
        alone, finished, place = lock.is_sole_holder(), parts.finished(), self.place
        if not alone or len(finished) < parts.chunks.count:
            return self._drawn(len(finished), others_at_work=not alone)
        recompute_corrupt(parts, self.drawer, finished, workers=self.workers, progress=no_progress, say=self.say)
        write_bytes(place.record, to_json(self.request, indent=1, sort_keys=True).encode())
        if isinstance(place, PictureArray):
            _assemble(place.path, tuple(self.request[SHAPE]), parts.stream(range(parts.chunks.count)))
        chunks.delete(place.parts)
        remove_leftovers(place.record.parent, lambda name: name in {place.record.name, place.path.name})
        return self._drawn(parts.chunks.count)

    def _drawn(self, finished: int, *, others_at_work: bool = False, already_done: bool = False) -> Drawn:
        ids = self.drawer.class_ids
        return Drawn(
            class_ids=ids,
            names=tuple(self.drawer.model.classes.names[i] for i in ids),
            chunks=finished,
            all_chunks=self._parts.chunks.count,
            others_at_work=others_at_work,
            already_done=already_done,
        )


def _assemble(path: Path, shape: tuple[int, ...], pictures: Iterator[np.ndarray]) -> None:
    """Write the array, a chunk at a time. The same pictures give the same bytes. Raises: OSError; AvarcError."""
    with (
        replacing(path) as temporary,
        zipfile.ZipFile(temporary, "w") as archive,
        archive.open(zipfile.ZipInfo(MEMBER), "w", force_zip64=True) as member,
    ):
        member.write(header(shape))
        for pixels in pictures:
            member.write(np.ascontiguousarray(pixels).tobytes())
