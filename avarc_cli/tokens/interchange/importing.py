"""The tokens of other programs to a token cache, in chunks, as `tokens.encode` has them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from avarc_cli import outputs
from avarc_cli.data.image_source import DIGEST_SIZE
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.errors import CacheError, UsageError, describe_differences
from avarc_cli.progress import Notify, Progress, ProgressBar, StartProgress, no_message, silent
from avarc_cli.tokens.cache import chunk_folder, read
from avarc_cli.tokens.encode import EncodeResult, build
from avarc_cli.tokens.encoded import EncodedChunk
from avarc_cli.tokens.fingerprints import Fingerprints
from avarc_cli.tokens.header import IMPORTED, SMOOTHING, UNKNOWN_MAKING, CacheHeader
from avarc_cli.tokens.interchange.codes import Codes, Expected
from avarc_cli.tokens.interchange.source import as_images, open_codes
from avarc_cli.tokens.request import MAX_BATCH, Request, describe
from avarc_cli.work.chunks import TaskLoader, Tick, recorded_request

if TYPE_CHECKING:
    from avarc_cli.tokenizer import Tokenizer


def import_codes(
    source: Path,
    tokenizer: Tokenizer,
    out: Path,
    *,
    views: int | None = None,
    dataset: str | None = None,
    class_names: Sequence[str] | None = None,
    chunk_size: int | None = None,
    overwrite: bool = False,
    progress: StartProgress = silent,
    say: Notify = no_message,
) -> EncodeResult:
    """Import the tokens of other programs into the cache `out`, or continue what an earlier call left unfinished.

    All tokens are checked before anything is written; a call that continues checks those that it still has to import.

    Args:
        tokenizer: that made the tokens. Only its facts count: layout, vocabulary, sha256.
        views, dataset, class_names: as in `source.open_codes` and `source.as_images`.
        chunk_size: images of a chunk, which is what a kill loses.
        overwrite: replace a cache or unfinished chunks of another request.
        progress: opens the bars "checking" and "importing".
    Returns and raises: as `encode`; CacheError also for tokens that are not the tokenizer's, naming the first file or
        line, and as `open_codes` and `as_images`; UsageError for a tokenizer of continuous tokens.
    """
    outputs.check_output(out, outputs.CACHE, overwrite=True, inputs=[source])  # of a cache, `build` decides
    if tokenizer.channels:
        why = f"those of {tokenizer.name} are continuous; files of other programs are read as codes"
        raise UsageError("cannot import continuous tokens", why, "encode the images: avarc encode")
    if out.exists() and not overwrite:
        _check_alike(read(out, allow_partial=True).header, tokenizer, out)
    codes = open_codes(source, tokenizer.vocab_size, views)
    images = as_images(codes, str(source), dataset, class_names)
    for note in images.notes:
        say(note)
    expected = _expected(codes, tokenizer)
    pixels = Preprocess("none", tokenizer.image_size)  # replaced below: what made the tokens is not in the files
    header = describe(images, tokenizer, pixels, samples=expected.views, sigma=0.0, seed=0, latents=False)
    header = replace(
        header,
        preprocess=UNKNOWN_MAKING,
        precision=UNKNOWN_MAKING,
        views=IMPORTED if expected.views > 1 else SMOOTHING,
    )

    asked = Request.make(header, MAX_BATCH, chunk_size)
    with ExitStack() as stack:
        bars: list[ProgressBar] = []

        def make_task(request: Request, stamps_N2: np.ndarray) -> CodeReader:
            recorded = recorded_request(chunk_folder(out))
            if not codes.is_checked and (recorded is None or request.continuing(recorded) is None):
                with progress("checking", len(codes)) as bar:
                    _check_all(codes, expected, bar.update)
            bars.append(stack.enter_context(progress("importing", len(codes))))
            return CodeReader(codes, expected, stamps_N2)

        def update(done: int, total: int | None = None, note: str = "", /) -> None:
            bars[0].update(done, total, note)

        return build(images, asked, make_task, out, overwrite=overwrite, progress=update, say=say)


def _check_alike(there: CacheHeader, tokenizer: Tokenizer, out: Path) -> None:
    """Refuse a cache that no import by this tokenizer made, before the source is listed. Raises: CacheError."""
    found = {"tokenizer_sha256": there.tokenizer_sha256, "preprocess": there.preprocess}
    if differences := describe_differences(found, {"tokenizer_sha256": tokenizer.sha256, "preprocess": UNKNOWN_MAKING}):
        fix = "name another file, or add --overwrite"
        raise CacheError(f"'{out}' exists and was made by another request", differences, fix)


def _expected(codes: Codes, tokenizer: Tokenizer) -> Expected:
    """What the first image has. Raises: CacheError unless it has as many tokens as the tokenizer gives."""
    _, tokens = next(codes.read(range(1)))
    views, length = tokens.shape
    layout = tokenizer.layout
    if length != layout.num_tokens:
        why = f"{tokenizer.name} gives {layout.num_tokens:,} ({layout}) for {tokenizer.image_size} pixels"
        fix = "name the tokenizer that made them, or add --image-size with the size of their images"
        raise CacheError(f"'{codes.encoded.location(0)}' has {length:,} tokens an image", why, fix)
    return Expected(views, length, tokenizer.vocab_size)


def _check_all(codes: Codes, expected: Expected, progress: Progress) -> None:
    for row, (_, tokens) in enumerate(codes.read(range(len(codes)))):
        if row % MAX_BATCH == 0:
            progress(row)
        expected.check(tokens, codes.encoded.location(row))
    progress(len(codes))


@dataclass(frozen=True)
class CodeReader:
    """Reads chunks of images (`work.run.ChunkTask`)."""

    codes: Codes
    """Of all images."""
    expected: Expected
    """What every image must have."""
    stamps: np.ndarray
    """Of the files of all images, from before any of them is read, (N, 2) int64."""

    @property
    def uses_gpu(self) -> bool:
        return False

    def run(self, chunks: Mapping[int, range], tick: Tick) -> Iterator[tuple[int, EncodedChunk]]:
        """Number and result of each chunk, in this order. Raises: CacheError naming an image that is not right."""
        for number, items in chunks.items():
            yield number, self._read(items, tick)

    def loader(self) -> TaskLoader[EncodedChunk]:
        return partial(_copy, self)

    def _read(self, items: range, tick: Tick) -> EncodedChunk:
        tokens = np.empty((len(items), self.expected.views, self.expected.num_tokens), dtype=np.uint16)
        digests = np.empty((len(items), DIGEST_SIZE), dtype=np.uint8)
        for place, (record, found) in enumerate(self.codes.read(items)):
            tokens[place] = self.expected.check(found, self.codes.encoded.location(items[place]))
            digest = hashlib.blake2b(record, digest_size=DIGEST_SIZE).digest()
            digests[place] = np.frombuffer(digest, dtype=np.uint8)
            if (place + 1) % MAX_BATCH == 0:
                tick(MAX_BATCH)
        tick(len(items) % MAX_BATCH)
        fingerprints = Fingerprints(self.stamps[items.start : items.stop], digests)
        return EncodedChunk(np.array(items, dtype=np.int64), tokens, None, (), fingerprints)


def _copy(reader: CodeReader, device: str) -> CodeReader:
    return reader  # it computes nothing
