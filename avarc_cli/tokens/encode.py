"""Images to a token cache, in chunks: a kill loses at most the chunk being computed, and does not change the result.

What a run finds decides what it does. Chunks are files in OUT.parts; the lock is OUT.lock (`work.locks`).

    found                      lock free, or shared with processes that compute other chunks
    nothing                    create the folder, compute the chunks of this shard
    chunks                     compute those of this shard that are missing
    partial cache              done if it has all chunks of this shard, else turn it into chunks and continue them
    complete cache             done, without the lock
    complete cache and chunks  continue chunks of this request: --overwrite was stopped
                               delete any others, which a kill left of a deletion: done

    lock held by a process     that starts or finishes               that computes the same chunks
    this is a shard            wait for it, then look again          error
    this run is undivided      error                                 error; all chunks are its own

Chunks or a cache of another request are an error, or are replaced with --overwrite. The last process to finish
assembles the chunks: to a complete cache if none is missing, else to a partial one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from avarc_cli import outputs
from avarc_cli.data.datasets import ImageSet
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.errors import AvarcError, CacheError, Interrupted, UsageError, describe_differences
from avarc_cli.outputs import check_output
from avarc_cli.progress import Notify, Progress, no_message, no_progress
from avarc_cli.storage import remove_leftovers_of
from avarc_cli.tokens.assemble import assemble, disassemble, summarize
from avarc_cli.tokens.cache import TokenCache, chunk_folder, read
from avarc_cli.tokens.changes import Changes, Recorded, find_changes, of_cache, of_chunks
from avarc_cli.tokens.encoded import EncodedChunk, EncodedFormat
from avarc_cli.tokens.header import identity
from avarc_cli.tokens.noise import check_sigma
from avarc_cli.tokens.request import Request, describe
from avarc_cli.tokens.verify import read_verified
from avarc_cli.words import are, counted
from avarc_cli.work import chunks
from avarc_cli.work.chunks import ChunkFolder, Chunks, ChunkTask, recorded_request
from avarc_cli.work.locks import ALL_CHUNKS, ChunkLock, chunk_lock, lock_file
from avarc_cli.work.run import compute, recompute_corrupt
from avarc_cli.work.shards import UNDIVIDED, Shard
from avarc_cli.work.workers import HERE, Workers, check_division

if TYPE_CHECKING:
    from avarc_cli.tokenizer import Tokenizer
    from avarc_cli.tokens.encoder import ChunkEncoder


@dataclass(frozen=True)
class EncodeResult:
    """What `encode` did."""

    path: Path
    """The cache."""
    images: int
    """Images that it holds; while other shards are at work, that this shard encoded."""
    encoded: int
    """Images that were read in this call; the others were finished before."""
    unreadable: list[tuple[str, str]]
    """(name, reason) of the images that could not be read."""
    chunks: int
    """Finished chunks."""
    all_chunks: int
    """Chunks of the complete cache."""
    already_done: bool = False
    """Whether there was nothing to do."""
    others_at_work: bool = False
    """Whether other shards are being encoded, so that there is no cache yet."""

    @property
    def complete(self) -> bool:
        """Whether the cache holds all its images."""
        return self.chunks == self.all_chunks and not self.others_at_work


def encode(
    images: ImageSet,
    tokenizer: Tokenizer,
    preprocess: Preprocess,
    out: Path,
    *,
    samples: int = 1,
    sigma: float = 0.1,
    seed: int = 0,
    latents: bool = False,
    batch_size: int | None = None,
    workers: int = 0,
    chunk_size: int | None = None,
    shard: Shard = UNDIVIDED,
    on: Workers = HERE,
    overwrite: bool = False,
    progress: Progress = no_progress,
    say: Notify = no_message,
) -> EncodeResult:
    """Tokenize images into the cache `out`, continuing what an earlier call with the same request left unfinished.

    Args:
        preprocess: how an image becomes pixels. If it makes several views of it, these are what the cache holds.
        samples: S: the image itself, and S - 1 smoothing samples: its latents plus noise, quantized again. Where tokens
            are continuous, these are draws from their distributions. Only for a single view.
        sigma, seed: standard deviation and seed of that noise; continuous tokens have a standard deviation of their
            own.
        latents: keep the latents of view 0 too, as float16; only where tokens are codes.
        batch_size: images, or views of images, that the tokenizer reads at once; None for
            `request.default_batch_size`. Work that is continued keeps the batches it began with, since they decide
            about roundings.
        workers: processes that decode images; 0 decodes in this process.
        chunk_size: images of a chunk, which is what a kill loses; None for `request.default_chunk_size`. Kept like the
            batches.
        shard: encode only this part of the chunks. All shards of one `out` may run at once, on any machines that share
            its folder. While none runs, `out` is a partial cache of what is finished.
        on: who computes the chunks: this process, processes on several devices, or a Ray cluster.
        overwrite: replace a cache or unfinished chunks of another request; encode a complete cache again.
        progress: called with images done and in all.
        say: called with messages for the user.

    Raises: UsageError for numbers out of range; CacheError when `out` or its chunks are of another request; AvarcError
        when no image is readable, `out` cannot be written, or another process computes the same chunks; Interrupted
        on Ctrl-C. Finished chunks stay in `OUT.parts`, except when no image is readable.
    """
    _check_numbers(
        samples=samples, sigma=sigma, seed=seed, batch_size=batch_size, workers=workers, chunk_size=chunk_size
    )
    check_division(shard, on, out=out, overwrite=overwrite)
    if not len(images):
        raise UsageError(f"there are no images to encode in '{images.source}'")
    check_output(out, outputs.CACHE, overwrite=True)  # of a cache, `_find_done` decides
    header = describe(images, tokenizer, preprocess, samples=samples, sigma=sigma, seed=seed, latents=latents)

    def make_encoder(request: Request, stamps_N2: np.ndarray) -> ChunkEncoder:
        decoders = workers if on.engine == "local" else 0
        from avarc_cli.tokens.encoder import ChunkEncoder  # imports torch

        return ChunkEncoder(images, preprocess, tokenizer, request.header, request.batch_size, decoders, stamps_N2)

    asked = Request.make(header, batch_size, chunk_size)
    return build(images, asked, make_encoder, out, shard=shard, on=on, overwrite=overwrite, progress=progress, say=say)


def build(
    images: ImageSet,
    asked: Request,
    make_task: Callable[[Request, np.ndarray], ChunkTask[EncodedChunk]],
    out: Path,
    *,
    shard: Shard = UNDIVIDED,
    on: Workers = HERE,
    overwrite: bool = False,
    progress: Progress = no_progress,
    say: Notify = no_message,
) -> EncodeResult:
    """Compute the chunks of a cache and write it; the other arguments, and what it returns and raises, as `encode`.

    Args:
        make_task: from the request, in the chunks and batches of what is continued, and the stamps of all images
            (`ImageSource.stamps`), to what computes the chunks. Called when there is something to compute.
    """
    stamps = images.encoded.stamps()

    def start(request: Request) -> _Run:
        task = make_task(request, stamps)
        folder = ChunkFolder(chunk_folder(out), Chunks(len(images), request.chunk_size), _format(request))
        return _Run(images, stamps, out, request, shard, folder, task, on, progress, say)

    def is_current(cache: TokenCache) -> bool:
        return _recorded(cache, asked, shard).is_current(images, stamps)

    def is_done(cache: TokenCache) -> EncodeResult:
        find_changes(images, stamps, _recorded(cache, asked, shard), out).report(out, say)
        return _result(cache)

    try:
        finished = _find_finished(out, asked, shard, overwrite)
        if finished and is_current(finished) and not chunk_folder(out).exists() and not lock_file(out).exists():
            return is_done(finished)
        with chunk_lock(out, wait=shard.of > 1) as lock:
            finished = _find_finished(out, asked, shard, overwrite)  # perhaps by the process that held the lock
            if finished and is_current(finished):
                _clean_up(finished, lock)
                return is_done(finished)
            there = finished or _read_partial(out, overwrite)
            return start(_settle_request(out, asked, there, overwrite, say)).do(lock, there)
    except KeyboardInterrupt:
        raise Interrupted("interrupted before encoding began") from None
    except OSError as error:
        fix = "free some space or name another place, and run the same command again: finished chunks are kept"
        raise AvarcError(f"cannot write '{out}'", error.strerror or str(error), fix) from error


def _check_numbers(
    *, samples: int, sigma: float, seed: int, batch_size: int | None, workers: int, chunk_size: int | None
) -> None:
    for name, number in (("samples", samples), ("batch size", batch_size), ("chunk size", chunk_size)):
        if number is not None and number < 1:
            raise UsageError(f"{name} is {number}, must be at least 1")
    if workers < 0:
        raise UsageError(f"workers is {workers}, must be at least 0")
    if not 0 <= seed < 2**64:
        raise UsageError(f"seed is {seed}, must be at least 0 and below 2**64")
    check_sigma(sigma)


def _format(request: Request) -> EncodedFormat:
    return EncodedFormat(request.header.form, request.header.latents)


def _find_finished(out: Path, asked: Request, shard: Shard, overwrite: bool) -> TokenCache | None:
    """The cache that has all chunks of the shard. Raises: CacheError when there is one of another request."""
    if overwrite or not out.exists():
        return None
    cache = read(out, allow_partial=True)
    there, here = identity(cache.header.to_dict()), identity(asked.header.to_dict())
    if differences := describe_differences(there, here):
        fix = "name another file, or add --overwrite"
        raise CacheError(f"'{out}' exists and was made by another request", differences, fix)
    recorded = recorded_request(chunk_folder(out))
    if recorded is not None and asked.continuing(recorded):
        return None  # an update or an --overwrite was stopped, or another shard is at work
    if cache.partial is not None:
        every = cache.partial.count(asked.header.images)
        if not set(shard.chunks(every)) <= set(cache.partial.chunks):
            return None
    return cache


def _result(cache: TokenCache) -> EncodeResult:
    finished = every = 1
    if cache.partial is not None:
        finished, every = len(cache.partial.chunks), cache.partial.count(cache.header.images)
    return EncodeResult(cache.path, len(cache), 0, list(cache.unreadable), finished, every, already_done=True)


def _recorded(cache: TokenCache, asked: Request, shard: Shard) -> Recorded:
    """What a cache records of the images of this shard."""
    size = asked.chunk_size if cache.partial is None else cache.partial.chunk_size
    chunks = Chunks(cache.header.images, size)
    return of_cache(cache).of_chunks(chunks, shard.chunks(chunks.count))


def _clean_up(finished: TokenCache, lock: ChunkLock) -> None:
    """Delete what a kill left between the assembly and the end of the cleaning up."""
    if finished.partial is None and lock.is_sole_holder():
        chunks.delete(chunk_folder(finished.path))
        _remove_leftovers(finished.path)


def _remove_leftovers(out: Path) -> None:
    for path in (out, chunk_folder(out)):
        remove_leftovers_of(path)


def _read_partial(out: Path, overwrite: bool) -> TokenCache | None:
    """The partial cache to continue, if there is one; verified, as its chunks have no checksums. Raises: CacheError."""
    if overwrite or not out.exists() or read(out, allow_partial=True).partial is None:
        return None
    return read_verified(out, allow_partial=True)


def _settle_request(out: Path, asked: Request, there: TokenCache | None, overwrite: bool, say: Notify) -> Request:
    """The request in the chunks and batches of the work that is continued; a complete cache does not record its own.

    Args:
        there: the cache that is continued, if there is one.
    Raises: CacheError when the unfinished work is for another request.
    """
    recorded = recorded_request(chunk_folder(out))
    if recorded is None and there is not None and there.partial is not None:
        recorded = Request.of(there).to_dict()
    if recorded is None:
        return asked
    continued = asked.continuing(recorded)
    if continued is None and not overwrite:
        raise CacheError(
            f"'{chunk_folder(out)}' holds the unfinished work of another request",
            describe_differences(identity(recorded), identity(asked.to_dict())),
            "run that request again to finish it, or delete it with --overwrite",
        )
    if continued is not None and continued.batch_size != asked.batch_size and asked.batch_chosen:
        batches = f"batches of {counted(continued.batch_size, 'image')}"
        say(f"continuing with {batches}, as it began: roundings depend on them")
    return continued or asked


@dataclass(frozen=True)
class _Run:
    """One call of `build`, once its request is settled."""

    images: ImageSet
    stamps: np.ndarray
    out: Path
    request: Request
    shard: Shard
    folder: ChunkFolder[EncodedChunk]
    task: ChunkTask[EncodedChunk]
    on: Workers
    progress: Progress
    say: Notify

    def do(self, lock: ChunkLock, there: TokenCache | None) -> EncodeResult:
        """Encode the missing chunks of the shard, and assemble all if no other shard is at work.

        Args:
            lock: held exclusively.
            there: the partial cache to continue, or the complete one some of whose images may have changed.
        """
        try:
            mine = self._open(lock, there)
            lock.release_exclusive()
            missing = sorted(set(mine) - self.folder.finished())
            encoded = compute(
                self.folder, self.task, missing, of=mine, workers=self.on, progress=self.progress, say=self.say
            )
            lock.acquire_exclusive()
            return self._close(mine, encoded, alone=lock.is_sole_holder())
        except KeyboardInterrupt:
            count = self.folder.chunks.count
            kept = f"{len(self.folder.finished()):,} of {counted(count, 'chunk')} {are(count)} kept"
            what = f"interrupted; {kept} in '{self.folder.path}'"
            raise Interrupted(what, fix="run the same command again to continue") from None

    def _open(self, lock: ChunkLock, there: TokenCache | None) -> range:
        """Claim this shard's chunks, make the folder ready, and return their numbers. Raises: AvarcError, OSError."""
        mine, folder = self.shard.chunks(self.folder.chunks.count), self.folder
        lock.claim(mine if self.shard.of > 1 else ALL_CHUNKS)
        request = recorded_request(folder.path)
        if request is not None and not self.request.continuing(request):
            request = None
        finished = sorted(folder.finished() & set(mine)) if request is not None else []
        parts = [of_chunks(folder, finished, str(request["source"]))] if request is not None else []
        parts += [of_cache(there).of_chunks(folder.chunks, mine)] if there is not None else []
        # Before anything is changed here:
        changes = find_changes(self.images, self.stamps, Recorded.join(parts), self.out)
        outdated = {row // folder.chunks.size for row in changes.changed}
        _remove_leftovers(self.out)
        if there is not None and there.partial is None:
            with folder.filled(self.request.to_dict()) as filled:
                self._take_apart(there, filled, changes, outdated)
        elif request is None:
            folder.create(self.request.to_dict())
        folder.clean(mine)
        self._update(finished, changes, outdated)
        if there is not None and there.partial is not None:
            self._take_apart(there, folder, changes, outdated)
            os.unlink(there.path)
        changes.report(self.out, self.say)
        return mine

    def _take_apart(
        self, cache: TokenCache, folder: ChunkFolder[EncodedChunk], changes: Changes, outdated: set[int]
    ) -> None:
        stamped = changes.stamp(cache.fingerprints(), cache.encoded_rows, self.stamps)
        disassemble(cache, folder, self.images, stamped, without=outdated)

    def _update(self, finished: Sequence[int], changes: Changes, outdated: set[int]) -> None:
        """Delete those of the finished chunks that have changed images, and record new stamps of the others."""
        touched = {row // self.folder.chunks.size for row in changes.touched}
        for number in finished:
            if number in outdated:
                self.folder.remove(number)
            elif number in touched:
                chunk, rows = self.folder.load(number), np.array(self.folder.chunks.items_of(number))
                stamped = changes.stamp(chunk.fingerprints, rows, self.stamps)
                self.folder.save(number, replace(chunk, fingerprints=stamped))

    def _close(self, mine: range, encoded: int, *, alone: bool) -> EncodeResult:
        """Assemble the cache, unless other shards are at work. Raises: AvarcError, OSError."""
        finished = self.folder.finished() if alone else self.folder.finished() & set(mine)
        encoded += recompute_corrupt(
            self.folder, self.task, finished, workers=self.on, progress=self.progress, say=self.say
        )
        if alone:
            done, there = assemble(self.folder, self.images, self.request, self.out), len(finished)
        else:
            done, there = summarize(self.folder, mine), len(self.folder.finished())
        every = self.folder.chunks.count
        return EncodeResult(self.out, done.images, encoded, done.unreadable, there, every, others_at_work=not alone)
