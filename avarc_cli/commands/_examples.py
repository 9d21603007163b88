"""How the commands that fit classes read their images: folders and lists are encoded here, caches are read."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _options as opt
from avarc_cli.commands import _summary

if TYPE_CHECKING:
    import numpy as np

    from avarc_cli.incremental.examples import Examples, Source, Variation
    from avarc_cli.likelihood import Tokenizer
    from avarc_cli.train.loop import Progress

MethodOpt = Annotated[
    str,
    typer.Option(
        "--method", help="embedding (one row), adaln (row and class modulation) or lora (row, attention and MLP)."
    ),
]
RankOpt = Annotated[int, typer.Option("--rank", min=1, help="Rank of lora's changes.")]
StepsOpt = Annotated[
    int | None, typer.Option("--steps", min=1, help="Optimizer steps a class at most; default: the method's own.")
]
RateOpt = Annotated[float | None, typer.Option("--lr", help="Peak learning rate; default: the method's own.")]
BatchOpt = Annotated[int, typer.Option("--batch-size", min=1, help="Images a step.")]
AugmentOpt = Annotated[
    str | None,
    typer.Option("--augment", help="crop, affine (small objects) or none. Default: as the tokenizer's images are."),
]
FlipOpt = Annotated[
    bool | None,
    typer.Option("--flip/--no-flip", help="Mirror half of the variants. Default: with crop, not with affine."),
]
VariantsOpt = Annotated[
    int | None,
    typer.Option("--variants", min=0, help="Augmented variants of each image; default: 16, of few images more."),
]


def open_source(data: list[Path], tokenizer: Tokenizer) -> Source:
    """What the arguments name: a token cache, or images that are yet to be encoded."""
    from avarc_cli.incremental.examples import open_source

    return open_source(data, tokenizer, is_cache=_summary.is_cache(data))


def encode(
    source: Source, rows: dict[str, np.ndarray], tokenizer: Tokenizer, variation: Variation
) -> dict[str, Examples]:
    """The images of each class as tokens, under one progress bar; unreadable ones are left out and listed."""
    from avarc_cli.incremental.examples import encode
    from avarc_cli.tokens import TokenCache

    encoded, ticks = {}, itertools.count(1)
    verb = "reading" if isinstance(source, TokenCache) else "encoding"
    with console.progress(verb, sum(map(len, rows.values()))) as bar:
        for name, chosen in rows.items():
            encoded[name] = encode(source, chosen, tokenizer, variation, lambda: bar.update(next(ticks)))
    opt.list_unreadable(unreadable_of(encoded.values()))
    return encoded


def unreadable_of(encoded: Iterable[Examples]) -> list[tuple[str, str]]:
    """(name, reason) of every image that was left out."""
    return [bad for examples in encoded for bad in examples.unreadable]


@contextmanager
def progress(what: str, steps: int) -> Iterator[Progress]:
    """The progress of one training."""
    with console.progress(f"learning {what}", steps, unit="steps") as bar:
        yield lambda done, values: bar.update(done, note=f"{values['bits/token']:.3f} bits/token")
