"""Work on a token cache that is divided among processes: what options allow, and what is said of a part of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from avarc_cli import console
from avarc_cli.commands import _summary
from avarc_cli.errors import UsageError
from avarc_cli.words import are, counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from avarc_cli.commands._option_groups import WorkOptions
    from avarc_cli.results.run import RunResult
    from avarc_cli.work.shards import Shard
    from avarc_cli.work.workers import Workers


def of_cache(data: Sequence[Path], out: Path | None, work: WorkOptions, *, overwrite: bool) -> tuple[Shard, Workers]:
    """The part of the work that is asked for, and who computes it.

    Raises: UsageError for options that do not go together.
    """
    from avarc_cli.work.workers import check_division

    own, workers = work.own_shard, work.workers
    check_division(own, workers, out=out, overwrite=overwrite)
    option = "--shard" if own.of > 1 else workers.elsewhere
    if option and not _summary.is_cache(data):
        raise not_encoded(option, data[0])
    return own, workers


def not_encoded(option: str, images: Path) -> UsageError:
    """The error for images that are to be divided."""
    fix = f"encode them first: avarc encode {images} {option} ... --out tokens.h5"
    return UsageError(f"{option} divides a token cache", f"'{images}' is not encoded", fix)


class PartOfWork(Protocol):
    """What a shard did while others are missing."""

    @property
    def chunks(self) -> int:
        """Finished chunks, of all shards."""
        ...

    @property
    def all_chunks(self) -> int: ...

    @property
    def others_at_work(self) -> bool: ...


def said(
    part: PartOfWork, shard: Shard, *, does: str, last: str, join: str | None = None, images: int | None = None
) -> str:
    """A shard's result in a sentence, and what is left to do.

    Args:
        does: the command's verb. last: what the last shard to finish does.
        join: the command that joins outputs, if there is one.
        images: finished ones, where they are counted.
    """
    of_images = "" if images is None else f" ({counted(images, 'image')})"
    if part.others_at_work:
        return f"shard {shard} is done{of_images}; the last shard to finish {last}"
    every = counted(part.all_chunks, "chunk")
    if not shard.chunks(part.all_chunks):
        return (
            f"shard {shard} has nothing to {does}, since there {are(part.all_chunks)} only {every}; "
            "run the others, nothing is missing without this one"
        )
    done = f"{part.chunks} of {every}{of_images}, shard {shard} is done"
    return f"{done}; run the others with the same --out" + ("" if join is None else f", or join theirs: {join}")


def show(result: RunResult, shard: Shard, out: Path) -> None:
    """What a shard of a run did."""
    text = said(result, shard, does="classify", last="completes the run", join="avarc runs merge")
    data = {"out": out, "shard": str(shard), "chunks": result.chunks, "all_chunks": result.all_chunks}
    console.result(data, console.path_and(out, text), brief=str(out))
