"""Images to a token cache, unit by unit: what is finished survives any kill, and the bytes do not tell."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from avarc_cli.data.datasets import ImageSet
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.environment import lacks_memory
from avarc_cli.errors import AvarcError, CacheError, Interrupted, UsageError
from avarc_cli.tokens.cache import read, write
from avarc_cli.tokens.files import TEMPORARY, check_space, flush_to_disk, lock_of, only_writer
from avarc_cli.tokens.header import CacheHeader, differences
from avarc_cli.tokens.parts import Parts
from avarc_cli.tokens.units import UnitEncoder, decode

if TYPE_CHECKING:
    from avarc_cli.likelihood import Tokenizer

MAX_VOCABULARY = 2**16  # tokens are stored as uint16
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class EncodeResult:
    """What `encode` did.

    path: the cache; images: how many it holds; encoded: images read in this call (the others were there already);
    unreadable: (name, reason) of the images left out; already_done: the cache existed, nothing was to do.
    """

    path: Path
    images: int
    encoded: int
    unreadable: list[tuple[str, str]]
    already_done: bool = False


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
    batch_size: int = 32,
    workers: int = 0,
    unit: int = 256,
    overwrite: bool = False,
    progress: Progress = lambda done, total: None,
) -> EncodeResult:
    """Tokenise the images into the cache `out`, going on where an earlier call with the same request stopped.

    Args:
        samples: S; beside the image itself, S - 1 neighbours: its latents plus noise, quantised again.
        sigma, seed: standard deviation and seed of that noise.
        latents: keep the latents as well, as float16.
        batch_size: images the tokenizer reads at once. workers: processes that decode images; 0 is this process.
        unit: images a part; a kill loses at most so many.
        overwrite: replace a cache, or unfinished parts, of another request; a finished cache is made anew.
        progress: called with (images done, images in all).

    Raises: UsageError for numbers out of range; CacheError when `out` or its parts were made by another request;
        AvarcError when no image is readable, nothing can be written, or another process writes to `out`;
        Interrupted on Ctrl-C. Finished units stay in `OUT.parts`, except when no image is readable.
    """
    _validate(samples=samples, sigma=sigma, seed=seed, batch_size=batch_size, workers=workers, unit=unit)
    if not len(images):
        raise UsageError(f"there are no images to encode in '{images.source}'")
    _validate_tokenizer(tokenizer, preprocess)
    header = _header(images, tokenizer, preprocess, samples=samples, sigma=sigma, seed=seed, latents=latents)
    request = header.to_dict() | {"unit": unit}
    parts = Parts(out.with_name(out.name + ".parts"), len(images), unit, (samples, tokenizer.num_tokens), latents)
    if out.is_dir() or not out.parent.is_dir():
        why = "it is a folder" if out.is_dir() else f"there is no folder '{out.parent}'"
        raise AvarcError(f"cannot write '{out}'", why, "name a file in a folder that exists")
    try:
        if out.exists() and not overwrite:
            finished = _finished(out, header)
            made_for = parts.request()
            if made_for is None and (parts.folder.exists() or lock_of(out).exists()):
                with only_writer(out):  # a kill between the last rename and the end of the cleaning left something
                    parts.remove()
            if made_for != request:  # else an --overwrite was stopped, and goes on
                return finished
        with only_writer(out):
            parts.open(request, overwrite=overwrite)
            encoder = UnitEncoder(tokenizer, header, batch_size)
            encoded = _encode_missing(images, preprocess, parts, encoder, workers=workers, progress=progress)
            return _assemble(images, header, parts, out, encoded)
    except KeyboardInterrupt:
        kept = f"interrupted; {parts.finished()} of {parts.count} units are kept in '{parts.folder}'"
        raise Interrupted(kept, fix="run the same command again to go on from there") from None
    except OSError as error:
        fix = "free some space or name another place, and run the same again: finished units are kept"
        raise AvarcError(f"cannot write '{out}'", error.strerror or str(error), fix) from error


def _validate(*, samples: int, sigma: float, seed: int, batch_size: int, workers: int, unit: int) -> None:
    for name, number in (("samples", samples), ("batch size", batch_size), ("unit", unit)):
        if number < 1:
            raise UsageError(f"{name} is {number}, must be at least 1")
    if workers < 0:
        raise UsageError(f"workers is {workers}, must be at least 0")
    if not 0 <= seed < 2**64:
        raise UsageError(f"seed is {seed}, must be at least 0 and below 2**64")
    if not (math.isfinite(sigma) and sigma >= 0):
        raise UsageError(f"sigma is {sigma}, must be a number of at least 0")


def _validate_tokenizer(tokenizer: Tokenizer, preprocess: Preprocess) -> None:
    if tokenizer.vocab_size > MAX_VOCABULARY:
        why = f"its vocabulary has {tokenizer.vocab_size} entries, a cache holds tokens below {MAX_VOCABULARY}"
        raise CacheError(f"tokens of {tokenizer.name} do not fit a token cache", why)
    if preprocess.size != tokenizer.image_size:
        why = f"it gives {preprocess.size} pixels a side, {tokenizer.name} reads {tokenizer.image_size}"
        raise UsageError(f"preprocessing '{preprocess}' does not fit the tokenizer", why)


def _header(
    images: ImageSet,
    tokenizer: Tokenizer,
    preprocess: Preprocess,
    *,
    samples: int,
    sigma: float,
    seed: int,
    latents: bool,
) -> CacheHeader:
    listed = json.dumps([images.names, images.labels.tolist()])
    return CacheHeader(
        tokenizer=tokenizer.name,
        tokenizer_file=Path(tokenizer.file).name,
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        patch_nums=tuple(tokenizer.patch_nums),
        image_size=tokenizer.image_size,
        preprocess=str(preprocess),
        samples=samples,
        sigma=float(sigma) if samples > 1 else 0.0,  # without neighbours neither plays a part
        seed=seed if samples > 1 else 0,
        latents=latents,
        class_names=images.class_names,
        dataset=images.dataset,
        source=images.source,
        images=len(images),
        images_sha256=hashlib.sha256(listed.encode()).hexdigest(),
    )


def _finished(out: Path, header: CacheHeader) -> EncodeResult:
    """The result when the cache is there. Raises: CacheError when it was made by another request."""
    cache = read(out)
    if differing := differences(cache.header.to_dict(), header.to_dict()):
        fix = "name another file, or add --overwrite"
        raise CacheError(f"'{out}' exists and was made by another request", differing, fix)
    return EncodeResult(out, len(cache), 0, list(cache.unreadable), already_done=True)


def _encode_missing(
    images: ImageSet, preprocess: Preprocess, parts: Parts, encoder: UnitEncoder, *, workers: int, progress: Progress
) -> int:
    """Do the units that have no part yet; the number of images in them. Raises: AvarcError, OSError."""
    missing = list(parts.missing())
    to_do = [index for number in missing for index in parts.images(number)]
    ticks = itertools.count(len(images) - len(to_do))

    def tick() -> None:
        progress(next(ticks), len(images))

    tick()
    try:
        with closing(decode(images, preprocess, to_do, workers)) as decoded:
            for number in missing:
                unit = itertools.islice(decoded, len(parts.images(number)))
                parts.save(number, encoder.part(unit, tick))
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        fix = "free some memory, and run the same again: finished units are kept"
        raise AvarcError("not enough memory to encode one image", str(error).split("\n", maxsplit=1)[0], fix) from error
    return len(to_do)


def _assemble(images: ImageSet, header: CacheHeader, parts: Parts, out: Path, encoded: int) -> EncodeResult:
    """The parts become the cache, and go. Raises: AvarcError when no image is readable; OSError."""
    rows: list[int] = []
    unreadable: list[tuple[str, str]] = []
    for part in parts.all():
        rows += part.rows.tolist()
        unreadable += [(bad.name, bad.reason) for bad in part.unreadable]
    if not rows:
        parts.remove()  # the next run shall look at the images again
        name, reason = unreadable[0]
        what = f"none of the {len(images)} images of '{images.source}' is readable"
        raise AvarcError(what, f"the first is '{name}': {reason}")
    temporary = parts.folder / f"cache.h5{TEMPORARY}"
    names = [images.names[row] for row in rows]
    # Asked before, since HDF5 answers with tracebacks. The parts hold all but names and labels.
    check_space(temporary, parts.size() + len(rows) * (4 + max(len(os.fsencode(name)) for name in names)) + 2**16)
    blocks = ((part.tokens, part.latents) for part in parts.all())
    write(temporary, header, labels=images.labels[rows], names=names, blocks=blocks, unreadable=unreadable)
    flush_to_disk(temporary)
    os.replace(temporary, out)
    parts.remove()
    return EncodeResult(out, len(rows), encoded, unreadable)
