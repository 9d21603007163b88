"""Many pictures of classes: drawn in chunks, by one or several processes, into a folder of PNG files (`pictures`).

A chunk is one batch, so a picture is the same however the work is divided. The process that draws a picture writes its
file; the result of a chunk is the digests of its files, by which pictures that were lost or changed are found.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from avarc_cli.data.labels import resolve_classes
from avarc_cli.errors import AvarcError, Interrupted, UsageError, first_line, lacks_memory
from avarc_cli.loaded import LoadedModel
from avarc_cli.names import to_json
from avarc_cli.pictures import FORMAT, Layout, PictureFolder
from avarc_cli.progress import Notify, Progress, no_message, no_progress
from avarc_cli.sampling import Sampling, draw
from avarc_cli.storage import remove_leftovers, remove_leftovers_of, write_bytes
from avarc_cli.words import are, counted
from avarc_cli.work import chunks
from avarc_cli.work.chunks import ChunkFolder, Chunks, TaskLoader, Tick
from avarc_cli.work.locks import ALL_CHUNKS, ChunkLock, chunk_lock
from avarc_cli.work.run import compute, recompute_corrupt
from avarc_cli.work.shards import UNDIVIDED, Shard
from avarc_cli.work.workers import HERE, Workers, check_division

BATCH = 8
"""Pictures that are drawn at once; a choice without measurement."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What `sample_folder` did."""

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


def sample_folder(
    model: LoadedModel,
    classes: Sequence[str],
    out: Path,
    count: int,
    sampling: Sampling | None = None,
    *,
    batch_size: int = BATCH,
    shard: Shard = UNDIVIDED,
    workers: Workers = HERE,
    overwrite: bool = False,
    progress: Progress = no_progress,
    say: Notify = no_message,
) -> Drawn:
    """Draw pictures of classes into the folder `out`, continuing what an earlier call with the same request began.

    Args:
        classes, count, sampling: as in `sampling.sample`. Pictures have the same random streams.
        batch_size: pictures that are drawn at once, which decides about roundings.
        shard: draw only this part of the chunks. All shards of one `out` may run at once.
        workers: who draws.
        overwrite: replace the pictures of another request. Only files that belong to it are deleted.
        progress: called with (pictures done, pictures in all).
        say: called with messages for the user.
    Raises: UsageError for unknown classes, and when `out` holds anything else; AvarcError when another process draws
        the same pictures, or there is not enough memory; Interrupted on Ctrl-C.
    """
    check_division(shard, workers, out=out, overwrite=overwrite)
    ids = tuple(dict.fromkeys(i for spec in classes for i in resolve_classes(spec, model.classes)))
    how = sampling or Sampling()
    layout = Layout(tuple(model.classes.ids[i] for i in ids), count)
    folder = PictureFolder.at(out)
    drawer = Drawer(model, ids, layout, how, folder.path.absolute())
    request = _request(drawer, batch_size)
    work = _Work(folder, drawer, request, batch_size, shard, workers, overwrite, progress, say)
    try:
        work.folder.check()
        with chunk_lock(folder.path, wait=shard.of > 1) as lock:
            return work.do(lock)
    except OSError as error:
        fix = "free some space or name another place, and run the same command again: finished pictures are kept"
        raise AvarcError(f"cannot write '{out}'", error.strerror or str(error), fix) from error


def _request(drawer: Drawer, batch_size: int) -> dict[str, Any]:
    """What the pictures depend on, as JSON types."""
    model, how = drawer.model, drawer.how
    protocol = model.protocol()
    guidance = model.likelihood.default_guidance if how.guidance is None else how.guidance
    return {
        "format": FORMAT,
        "classes": list(drawer.layout.ids),
        "class_numbers": list(drawer.class_ids),
        "count": drawer.layout.count,
        "sampling": {"guidance": float(guidance), "top_k": how.top_k, "top_p": float(how.top_p), "seed": how.seed},
        "batch_size": batch_size,
        "model": model.sha256,
        "tokenizer": model.tokenizer.sha256,
        "device": torch.device(model.device).type,  # another kind has other random numbers
    } | {
        name: protocol[name]
        for name in ("bank", "captions", "precision", "kernels", "lora", "stated", "inferred")
        if name in protocol
    }


@dataclass(frozen=True)
class Drawer:
    """Draws chunks of pictures (`work.chunks.ChunkTask`), and writes their files.

    The result of a chunk is the sha256 of each of them, (n, 32) uint8.
    """

    model: LoadedModel
    class_ids: tuple[int, ...]
    layout: Layout
    how: Sampling
    out: Path
    """Absolute."""

    @property
    def uses_gpu(self) -> bool:
        """Whether the model is on a GPU."""
        return torch.device(self.model.device).type == "cuda"

    def loader(self) -> TaskLoader[np.ndarray]:
        """Makes this task in another process, with a model of its own."""
        return partial(_on_device, self.model.loader(), self.class_ids, self.layout, self.how, self.out)

    def run(self, chunks: Mapping[int, range], tick: Tick) -> Iterator[tuple[int, np.ndarray]]:
        """Number and result of each of these chunks.

        Raises: AvarcError when there is not enough memory for a batch; OSError.
        """
        for number, items in chunks.items():
            yield number, self._draw(items)
            tick(len(items))

    def _draw(self, items: range) -> np.ndarray:
        places = [self.layout.place(item) for item in items]
        ids, numbers = [self.class_ids[place] for place, _ in places], [number for _, number in places]
        try:
            pictures = draw(self.model, ids, numbers, self.how)
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error):
                raise
            what = f"not enough memory to draw {counted(len(items), 'picture')} at once"
            raise AvarcError(what, first_line(error), "use a smaller --batch-size, in another folder") from error
        digests = []
        for item, pixels in zip(items, pictures, strict=True):
            path, data = self.out / self.layout.file(item), _png(pixels)
            path.parent.mkdir(exist_ok=True)
            write_bytes(path, data)
            digests.append(_digest(data))
        return np.stack(digests)


def _on_device(
    load: Callable[[str], LoadedModel],
    class_ids: tuple[int, ...],
    layout: Layout,
    how: Sampling,
    out: Path,
    device: str,
) -> Drawer:
    return Drawer(load(device), class_ids, layout, how, out)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _digest(data: bytes) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(data).digest(), dtype=np.uint8)


@dataclass(frozen=True)
class _DigestsFormat:
    """The files of chunks (`work.chunks.ChunkFormat`); one whose pictures are gone or changed counts as corrupt."""

    layout: Layout
    out: Path

    def to_arrays(self, result: np.ndarray) -> dict[str, np.ndarray]:
        return {"sha256": result}

    def from_arrays(self, items: range, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        found = np.stack([_digest((self.out / self.layout.file(item)).read_bytes()) for item in items])
        if not np.array_equal(found, arrays["sha256"]):
            raise ValueError("its pictures have changed")
        return found


@dataclass(frozen=True)
class _Work:
    """One call of `sample_folder`."""

    folder: PictureFolder
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
        layout, out = self.drawer.layout, self.drawer.out
        return ChunkFolder(self.folder.parts, Chunks(len(layout), self.batch_size), _DigestsFormat(layout, out))

    def do(self, lock: ChunkLock) -> Drawn:
        """Draw the missing pictures of the shard, and complete the folder if no other shard is at work."""
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
            raise Interrupted(f"{what} in '{self.folder.path}'", fix="run the same command again to continue") from None

    def _open(self, lock: ChunkLock, parts: ChunkFolder[np.ndarray], mine: range) -> bool:
        """Claim the shard's chunks and make everything ready. Returns: whether there is something to do."""
        folder = self.folder
        folder.check()
        lock.claim(mine if self.shard.of > 1 else ALL_CHUNKS)
        if self.overwrite and not folder.holds(self.request):
            folder.remove()
        folder.check_same(self.request)
        if folder.recorded() is not None:
            self._check_complete()
            if lock.is_sole_holder():
                chunks.delete(folder.parts)
            return False
        folder.path.mkdir(exist_ok=True)
        if folder.unfinished() is None:
            remove_leftovers_of(folder.parts)
            parts.create(self.request)
        parts.clean(mine)
        if mine:
            items = range(parts.chunks.items_of(mine[0]).start, parts.chunks.items_of(mine[-1]).stop)
            self.drawer.layout.remove_leftovers(folder.path, items)
        return True

    def _check_complete(self) -> None:
        """Raises: UsageError when pictures of the complete folder were taken away."""
        missing = list(self.folder.missing(self.drawer.layout))
        if missing:
            what = f"'{self.folder.path}' was complete, and {counted(len(missing), 'picture')} {are(len(missing))} gone"
            raise UsageError(what, f"such as '{missing[0]}'", "add --overwrite to draw all of them again")

    def _close(self, lock: ChunkLock, parts: ChunkFolder[np.ndarray]) -> Drawn:
        """Complete the folder, unless chunks are missing or other shards are at work."""
        alone, finished = lock.is_sole_holder(), parts.finished()
        if not alone or len(finished) < parts.chunks.count:
            return self._drawn(len(finished), others_at_work=not alone)
        recompute_corrupt(parts, self.drawer, finished, workers=self.workers, progress=no_progress, say=self.say)
        write_bytes(self.folder.record, to_json(self.request, indent=1, sort_keys=True).encode())
        chunks.delete(self.folder.parts)
        remove_leftovers(self.folder.path, lambda name: name == self.folder.record.name)
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
