"""Images to a token cache, unit by unit: what is finished survives any kill, and the bytes do not tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from avarc_cli.data.datasets import ImageSet
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.errors import AvarcError, CacheError, Interrupted, UsageError, describe_differences
from avarc_cli.storage import remove_leftovers
from avarc_cli.tokens.assemble import pack, unpack
from avarc_cli.tokens.cache import PARTS, TokenCache, read
from avarc_cli.tokens.encoder import UnitEncoder
from avarc_cli.tokens.request import Request, describe
from avarc_cli.work.chunks import Parts, recorded_request, remove_parts
from avarc_cli.work.locks import WHOLE_PLACE, Turn, lock_of, one_of_the_writers
from avarc_cli.work.shards import Shard

if TYPE_CHECKING:
    from avarc_cli.likelihood import Tokenizer

ENGINES = ("local", "ray")
ALL = Shard()
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class EncodeResult:
    """What `encode` did.

    path: the cache; images: how many it holds (or, while other shards are at work, this shard did);
    encoded: images read in this call (the others were there already); unreadable: (name, reason) of the images left
    out; already_done: nothing was to do; units: finished ones; all_units: of so many, unequal while shards are missing.
    """

    path: Path
    images: int
    encoded: int
    unreadable: list[tuple[str, str]]
    units: int
    all_units: int
    already_done: bool = False
    others_at_work: bool = False

    @property
    def whole(self) -> bool:
        """Whether the cache is there with all its images."""
        return self.units == self.all_units and not self.others_at_work


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
    unit: int | None = None,
    shard: Shard = ALL,
    engine: str = "local",
    overwrite: bool = False,
    progress: Progress = lambda done, total: None,
    say: Callable[[str], None] = lambda message: None,
) -> EncodeResult:
    """Tokenise the images into the cache `out`, going on where an earlier call with the same request stopped.

    Args:
        samples: S; beside the image itself, S - 1 neighbours: its latents plus noise, quantised again.
        sigma, seed: standard deviation and seed of that noise.
        latents: keep the latents as well, as float16.
        batch_size: images the tokenizer reads at once; None: `request.default_batch`. Work that goes on keeps the
            batches it began with, since they decide about roundings.
        workers: processes that decode images; 0 is this process.
        unit: images a part; a kill loses at most so many. None: `request.default_unit`; kept like the batches.
        shard: do only this share of the units. All shards of one `out` may run at once, wherever they see its folder.
            The last one to end makes the cache. While nobody is at work, `out` holds what is finished.
        engine: "local", or "ray": units are tasks of a Ray cluster.
        overwrite: replace a cache, or unfinished parts, of another request; a finished cache is made anew.
        progress: called with (images done, images in all).
        say: called with what the caller should know, in words.

    Raises: UsageError for numbers out of range; CacheError when `out` or its parts were made by another request;
        AvarcError when no image is readable, nothing can be written, or another process is at the same units;
        Interrupted on Ctrl-C. Finished units stay in `OUT.parts`, except when no image is readable.
    """
    _validate(samples=samples, sigma=sigma, seed=seed, batch_size=batch_size, workers=workers, unit=unit)
    if engine not in ENGINES:
        raise UsageError(f"no engine '{engine}'", f"there are {', '.join(ENGINES)}")
    if overwrite and shard.of > 1:
        why = "each shard would drop what the others did"
        raise UsageError("--overwrite does not go with --shard", why, f"delete '{out}' and '{out}.parts' first")
    if not len(images):
        raise UsageError(f"there are no images to encode in '{images.source}'")
    _check_place(out)
    header = describe(images, tokenizer, preprocess, samples=samples, sigma=sigma, seed=seed, latents=latents)
    request = Request.make(header, batch_size, unit)
    run = _Run(images, tokenizer, preprocess, out, request, shard, workers, engine, overwrite, progress, say)
    try:
        return run.do()
    except KeyboardInterrupt:
        parts = run.parts()
        kept = f"interrupted; {len(parts.finished())} of {parts.count} units are kept in '{parts.folder}'"
        raise Interrupted(kept, fix="run the same command again to go on from there") from None
    except OSError as error:
        fix = "free some space or name another place, and run the same again: finished units are kept"
        raise AvarcError(f"cannot write '{out}'", error.strerror or str(error), fix) from error


def _validate(*, samples: int, sigma: float, seed: int, batch_size: int | None, workers: int, unit: int | None) -> None:
    for name, number in (("samples", samples), ("batch size", batch_size), ("unit", unit)):
        if number is not None and number < 1:
            raise UsageError(f"{name} is {number}, must be at least 1")
    if workers < 0:
        raise UsageError(f"workers is {workers}, must be at least 0")
    if not 0 <= seed < 2**64:
        raise UsageError(f"seed is {seed}, must be at least 0 and below 2**64")
    if not (math.isfinite(sigma) and sigma >= 0):
        raise UsageError(f"sigma is {sigma}, must be a number of at least 0")


def _check_place(out: Path) -> None:
    if not out.parent.is_dir():
        why = f"there is no folder '{out.parent}'"
    elif out.is_dir():
        why = "it is a folder"
    elif out.exists() and not out.is_file():
        why = "it is a device or a pipe, and a cache is written to a file"
    else:
        return
    raise AvarcError(f"cannot write '{out}'", why, "name a file in a folder that exists")


@dataclass
class _Run:
    """One call of `encode`, whose arguments these are; the request changes when it goes on with earlier work."""

    images: ImageSet
    tokenizer: Tokenizer
    preprocess: Preprocess
    out: Path
    request: Request
    shard: Shard
    workers: int
    engine: str
    overwrite: bool
    progress: Progress
    say: Callable[[str], None]
    encoded: int = 0

    def parts(self) -> Parts:
        folder = self.out.with_name(self.out.name + PARTS)
        header = self.request.header
        shape = (header.samples, header.num_tokens)
        return Parts(folder, len(self.images), self.request.unit, shape, header.latents)

    def do(self) -> EncodeResult:
        folder = self.parts().folder
        done = self._done_before()
        if done and not folder.exists() and not lock_of(self.out).exists():
            return done
        with one_of_the_writers(self.out, wait=self.shard.of > 1) as turn:
            done = self._done_before()  # by whoever was waited for
            if done:
                if done.whole and turn.alone():
                    remove_parts(folder)  # a kill between the last rename and the end of the cleaning left something
                return done
            units = self._open(turn)
            turn.let_others_in()
            self._encode(sorted(set(units) - self.parts().finished()), units)
            turn.come_back()
            return self._close(units, alone=turn.alone())

    def _done_before(self) -> EncodeResult | None:
        """The result when there is nothing to do. Raises: CacheError when the cache is another request's."""
        if self.overwrite or not self.out.exists():
            return None
        cache = read(self.out, parts_too=True)
        if differences := describe_differences(cache.header.to_dict(), self.request.header.to_dict()):
            fix = "name another file, or add --overwrite"
            raise CacheError(f"'{self.out}' exists and was made by another request", differences, fix)
        recorded = recorded_request(self.parts().folder)
        if recorded is not None and self.request.going_on(recorded):
            return None  # an --overwrite was stopped, or another shard is at work
        there, every = 1, 1
        if cache.share is not None:
            there, every = len(cache.share.units), cache.share.count(len(self.images))
            if not set(self.shard.units(every)) <= set(cache.share.units):
                return None
        return EncodeResult(self.out, len(cache), 0, list(cache.unreadable), there, every, already_done=True)

    def _open(self, turn: Turn) -> range:
        """Make the folder of parts ready, claim this shard's units and return them. Raises: AvarcError, OSError."""
        folder, part = self.parts().folder, self._part_of_cache()
        recorded = recorded_request(folder) or (Request.of(part).to_dict() if part else None)
        if recorded is not None:
            self._go_on(recorded)
        parts = self.parts()
        units = self.shard.units(parts.count)
        turn.claim(units if self.shard.of > 1 else range(WHOLE_PLACE))
        parts.open(self.request.to_dict())
        parts.clean(units)
        remove_leftovers(self.out.parent, lambda name: name == self.out.name)
        if part is not None:
            unpack(part, parts)
        return units

    def _part_of_cache(self) -> TokenCache | None:
        """The cache file, when it is a part to go on with."""
        if self.overwrite or not self.out.exists():
            return None
        cache = read(self.out, parts_too=True)
        return cache if cache.share is not None else None

    def _go_on(self, recorded: dict[str, object]) -> None:
        """Take over the grain of the work that was begun. Raises: CacheError when it was for something else."""
        same = self.request.going_on(recorded)
        if same is None and not self.overwrite:
            raise CacheError(
                f"'{self.parts().folder}' holds the unfinished work of another request",
                describe_differences(recorded, self.request.to_dict()),
                "ask for the same again to finish it, or drop it with --overwrite",
            )
        if same is not None and same.batch_size != self.request.batch_size and self.request.batch_chosen:
            self.say(f"going on with batches of {same.batch_size} images, as it began: roundings depend on them")
        self.request = same or self.request

    def _encode(self, numbers: list[int], share: Iterable[int]) -> None:
        """Make these units; progress counts the images of the share. Raises: AvarcError, OSError."""
        parts = self.parts()
        units = {number: parts.images(number) for number in numbers}
        total, to_do = (sum(len(parts.images(number)) for number in some) for some in (share, numbers))
        done = total - to_do

        def tick(images: int) -> None:
            nonlocal done
            done += images
            self.progress(done, total)

        tick(0)
        if not units:
            return
        request = self.request
        encoder = UnitEncoder(self.images, self.preprocess, self.tokenizer, request.header, request.batch_size)
        if self.engine == "ray":
            from avarc_cli.work import ray_chunks as ray_units

            made = ray_units.parts(encoder, units, tick)
        else:
            made = encoder.parts(units, self.workers, tick)
        for number, part in made:
            parts.save(number, part)
        self.encoded += to_do

    def _close(self, units: range, *, alone: bool) -> EncodeResult:
        """The cache, or this shard's share of it. Raises: AvarcError, OSError."""
        parts = self.parts()
        finished = parts.finished() if alone else parts.finished() & set(units)
        while damaged := parts.damaged(sorted(finished)):
            self._encode(damaged, finished)
        if not alone:
            rows, unreadable = parts.summary(units)
            every = len(parts.finished())
            return EncodeResult(self.out, rows, self.encoded, unreadable, every, parts.count, others_at_work=True)
        packed = pack(parts, self.images, self.request.header, self.request.batch_size, self.out)
        there = parts.count - packed.missing
        return EncodeResult(self.out, packed.images, self.encoded, packed.unreadable, there, parts.count)
