"""How the commands that fit classes read their images: folders and lists are encoded here, caches are read."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _completion as complete
from avarc_cli.commands import _images, _summary
from avarc_cli.commands import _options as opt
from avarc_cli.settings import check_augmentation, check_learning_rate, check_method

if TYPE_CHECKING:
    import numpy as np

    from avarc_cli.incremental.examples import Examples, Variation
    from avarc_cli.incremental.fit import FitOptions
    from avarc_cli.incremental.source import Source
    from avarc_cli.progress import MetricsProgress, ProgressBar
    from avarc_cli.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class LearningOptions:
    """How a class is learned from its images."""

    method: Annotated[
        str,
        opt.training_option(
            "--method",
            help="embedding (one row), adaln (row and class modulation) or lora (row, attention and MLP).",
            autocompletion=complete.one_of("embedding", "adaln", "lora"),
        ),
    ] = "lora"
    rank: Annotated[int, opt.training_option("--rank", min=1, help="Rank of the changes that lora trains.")] = 8
    steps: Annotated[
        int | None,
        opt.training_option("--steps", min=1, help="Most optimizer steps for a class. Default: the method's own."),
    ] = None
    lr: Annotated[float | None, opt.training_option("--lr", help="Peak learning rate. Default: the method's own.")] = (
        None
    )
    batch_size: Annotated[int, opt.training_option("--batch-size", min=1, help="Images in a step.")] = 32
    augment: Annotated[
        str | None,
        opt.training_option(
            "--augment",
            help="crop, affine (small objects) or none. Default: what suits the tokenizer's images.",
            autocompletion=complete.one_of("crop", "affine", "none"),
        ),
    ] = None
    flip: Annotated[
        bool | None,
        opt.training_option(
            "--flip/--no-flip", help="Mirror half of the variants. Default: with crop, not with affine."
        ),
    ] = None
    variants: Annotated[
        int | None,
        opt.training_option(
            "--variants", min=0, help="Augmented variants of each image. Default: 16, more where images are few."
        ),
    ] = None
    preprocess: opt.PreprocessOpt = None
    seed: opt.SeedOpt = 0
    allow_outside: opt.AllowOutsideOpt = False

    def __post_init__(self) -> None:
        """Raises: UsageError."""
        from avarc_cli.data.preprocess import check_option

        check_method(self.method)
        if self.lr is not None:
            check_learning_rate(self.lr)
        if self.augment is not None:
            check_augmentation(self.augment)
        if self.preprocess is not None:
            check_option(self.preprocess)

    def fit(self) -> FitOptions:
        """How to fit a class. Raises UsageError for numbers out of range."""
        from avarc_cli.incremental.fit import FitOptions

        return FitOptions(
            method=self.method,
            rank=self.rank,
            steps=self.steps,
            lr=self.lr,
            batch_size=self.batch_size,
            seed=self.seed,
        )

    def variation(self) -> Variation:
        """How images become tokens to train on."""
        from avarc_cli.incremental.examples import Variation

        return Variation(
            preprocess=self.preprocess,
            augment=self.augment,
            flip=self.flip,
            variants=self.variants,
            seed=self.seed,
        )


def check_options(context: typer.Context, data: list[Path]) -> None:
    """Raises: UsageError for options on how images become tokens, of a token cache."""
    if _summary.is_cache(data):
        of_images = {"augment", "flip", "variants", "preprocess"}
        opt.check_not_given(context, of_images, f"with '{data[0]}'", "it is encoded already")


def open_source(data: list[Path], *, allow_outside: bool) -> Source:
    """What the arguments name: a token cache, or images that are yet to be encoded."""
    from avarc_cli.data.datasets import ImageSet
    from avarc_cli.incremental.source import open_source

    source = open_source(data, is_cache=_summary.is_cache(data), allow_outside=allow_outside)
    if isinstance(source, ImageSet):
        _images.note_images(source)
    return source


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
    _images.list_unreadable(unreadable_of(encoded.values()))
    return encoded


def unreadable_of(encoded: Iterable[Examples]) -> list[tuple[str, str]]:
    """(name, reason) of every image that was left out."""
    return [bad for examples in encoded for bad in examples.unreadable]


@contextmanager
def progress(what: str, steps: int) -> Iterator[MetricsProgress]:
    """The progress of a training, or of several that other processes do."""
    with console.progress(f"learning {what}", steps, unit="step") as bar:

        def report(done: int, values: dict[str, float]) -> None:
            note = f"{values['bits/token']:.3f} bits/token" if values else ""
            bar.update(done, note=note, numbers=values)

        yield report


def searching(description: str, pairs: int | None) -> AbstractContextManager[ProgressBar]:
    """The progress of a comparison of images with classes."""
    return console.progress(description, pairs, unit="pair")
