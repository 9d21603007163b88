"""What the training commands share: options of shapes, the reserved output, progress, and the result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avarc_cli import console, processes
from avarc_cli.commands import _completion as complete
from avarc_cli.commands import _options as opt
from avarc_cli.commands import _weights
from avarc_cli.commands._loss_options import CodeOptions, LossOptions
from avarc_cli.commands._recipe_options import GeneratorOptions, TokenizerRecipeOptions
from avarc_cli.commands._running import RunOptions, caches_of
from avarc_cli.errors import EXIT_UNREADABLE, UsageError
from avarc_cli.settings import check_device, check_file
from avarc_cli.words import counted
from avarc_cli.zoo.cards import check_weights, tokenizer_cards

if TYPE_CHECKING:
    import torch

    from avarc_cli.data.datasets import ImageSet
    from avarc_cli.loaded import LoadedTokenizer
    from avarc_cli.progress import MetricsProgress
    from avarc_cli.train.class_captions import ClassCaptions

TokensArg = Annotated[
    list[Path],
    typer.Argument(help=f"A folder of images, image files, .tar or .parquet files, {opt.A_LIST}, or token caches."),
]
ImageSizeOpt = Annotated[int, opt.model_option("--image-size", min=1, help="Side of the images in pixels.")]
VocabularyOpt = Annotated[int, opt.model_option("--vocab", min=1, help="Codebook entries.")]
WidthOpt = Annotated[int, opt.model_option("--width", min=32, help="Channels of the first level, a multiple of 32.")]
MultipliersOpt = Annotated[
    str,
    opt.model_option("--multipliers", help="Width of each level in first widths; each level but one halves the side."),
]
BlocksOpt = Annotated[int, opt.model_option("--blocks", min=1, help="Residual blocks a level.")]
CodeChannelsOpt = Annotated[int, opt.model_option("--channels", min=1, help="Channels of the codes.")]
DepthOpt = Annotated[int, opt.model_option("--depth", min=1, help="Blocks.")]
OutOpt = Annotated[Path, typer.Option("--out", "-o", help="Weights to write (safetensors); OUT.ckpt resumes training.")]


@dataclass(frozen=True, kw_only=True)
class TokenizerOptions:
    """The tokenizer whose tokens a generator is trained on."""

    tokenizer: Annotated[
        str | None,
        opt.model_option(
            "--tokenizer",
            help="A tokenizer's name or file. Default: the one that made a token cache.",
            autocompletion=complete.tokenizers,
        ),
    ] = None
    tokenizer_config: opt.TokenizerConfigOpt = None
    tokenizer_weight_set: opt.TokenizerWeightSetOpt = None
    device: opt.DeviceOpt = "auto"
    yes: opt.YesOpt = False

    def __post_init__(self) -> None:
        """Raises: UsageError."""
        if self.tokenizer is not None:
            check_weights(self.tokenizer)
        check_device(self.device)
        check_file(self.tokenizer_config, "--tokenizer-config")

    def of(self, data: list[Path]) -> TokenizerOptions:
        """The same where a tokenizer is named, else with the one that made the token cache DATA.

        Raises: UsageError where that is not found, and for images.
        """
        if self.tokenizer is not None:
            return self
        cache = next(iter(caches_of(data)), None)
        if cache is None:
            why = "generators are trained on tokens, and the images are not encoded yet"
            raise UsageError("no tokenizer is named", why, "add --tokenizer NAME, or a file")
        from avarc_cli.tokens.cache import read

        header = read(cache).header
        if any(card.name == header.tokenizer for card in tokenizer_cards()):
            return replace(self, tokenizer=header.tokenizer)
        name = Path(header.tokenizer_file).name
        for file in (Path(name), cache.parent / name):
            if file.exists():
                return replace(self, tokenizer=str(file))
        raise UsageError(
            f"the tokenizer of '{cache}' is not found",
            f"its tokens were made by {name}, which is neither here nor beside the cache",
            "name it: --tokenizer FILE",
        )

    def load(self, *, text_encoder: str | None = None) -> LoadedTokenizer:
        """The tokenizer; missing weights are downloaded if the user agrees.

        Args:
            text_encoder: name of one whose weights are needed too.
        """
        assert self.tokenizer is not None, "after `of`"
        sets = self.tokenizer_weight_set
        _weights.ensure(self.tokenizer, tokenizer_weight_set=sets, yes=self.yes, text_encoder=text_encoder)
        from avarc_cli.loading import ModelSpec, load_tokenizer  # imports torch: only now, after all that may be wrong

        spec = ModelSpec(
            self.tokenizer,
            tokenizer_config=self.tokenizer_config,
            tokenizer_weight_set=self.tokenizer_weight_set,
            device=self.device,
        )
        loaded = load_tokenizer(spec)
        opt.note_inferred(loaded)
        return loaded


@dataclass(frozen=True, kw_only=True)
class TransformerOptions:
    """The shape of a transformer."""

    depth: Annotated[int, opt.model_option("--depth", min=1, help="Blocks.")] = 8
    width: Annotated[int, opt.model_option("--width", min=4, help="Channels.")] = 512
    heads: Annotated[
        int | None, opt.model_option("--heads", min=1, help="Attention heads. Default: of 64 channels each.")
    ] = None


def train_tokenizer(
    data: list[Path],
    out: Path,
    shape: Mapping[str, Any],
    training: TokenizerRecipeOptions,
    loss: LossOptions,
    codes: CodeOptions,
    *,
    family: str,
    image_size: int | None,
    device: str,
    overwrite: bool,
    start_from: Path | None = None,
) -> None:
    """Train a tokenizer of this family on the images of DATA, and show where it is.

    Args:
        start_from: weights to begin with, which decide the shape.
    """
    check_device(device)
    with reserved(out, overwrite, start_from):
        images, held_out = training.open(data)
        from avarc_cli.devices import pick_device  # imports torch: only now, after all that may be wrong

        on = pick_device(device)
        of: dict[str, Any] = {"family": family, "image_size": image_size, "device": on, "start_from": start_from}
        train_opened_tokenizer(images, held_out, out, shape, training, loss, codes, **of)
    show(out, training)


def train_opened_tokenizer(
    images: ImageSet,
    held_out: ImageSet | None,
    out: Path,
    shape: Mapping[str, Any],
    training: TokenizerRecipeOptions,
    loss: LossOptions,
    codes: CodeOptions,
    *,
    family: str,
    image_size: int | None,
    device: torch.device,
    start_from: Path | None = None,
    captions: ClassCaptions | None = None,
) -> None:
    """Train a tokenizer of this family on images that are open already.

    Args:
        start_from: as of `train_tokenizer`.
        captions: of the images' classes, for a decoder that reads them.
    """
    from avarc_cli.layers import collectives
    from avarc_cli.train import tokenizer

    recipe = training.recipe(len(images))
    with collectives.joined(device), progress("training tokenizer", recipe.steps) as report:
        tokenizer.train_tokenizer(
            images,
            out,
            shape,
            recipe,
            image_size=image_size,
            family=family,
            start=start_from,
            captions=captions,
            augment=training.augmentation(),
            terms=loss.terms(),
            measures=codes.measures(),
            device=device,
            held_out=held_out,
            run=training.run(out),
            progress=report,
            say=console.warn,
            note=console.note,
        )


def train_generator(
    data: list[Path],
    out: Path,
    shape: Mapping[str, Any],
    training: GeneratorOptions,
    reads: TokenizerOptions,
    *,
    family: str,
    overwrite: bool,
) -> None:
    """Train a generator of this family on the tokens of DATA, and show where it is."""
    reads = reads.of(data)
    with reserved(out, overwrite, reads.tokenizer):
        source, held_out = training.open_source(data)
        reader = reads.load()
        from avarc_cli.layers import collectives
        from avarc_cli.train import generator

        recipe = training.recipe(len(source))
        with collectives.joined(reader.device), progress(f"training {family}", recipe.steps) as report:
            generator.train_generator(
                source,
                out,
                reader,
                shape,
                recipe,
                family=family,
                augment=training.augmentation(),
                held_out=held_out,
                run=training.run(out),
                progress=report,
                say=console.warn,
            )
    show(out, training)


@contextmanager
def reserved(out: Path, overwrite: bool, *inputs: str | Path | None, folder: bool = False) -> Iterator[None]:
    """Reserve the name of the weights, which a training that was interrupted may go on to replace.

    Args:
        inputs: names or files of weights that are read.
        folder: whether an adapter's folder is written.
    """
    from avarc_cli import outputs
    from avarc_cli.train.resume import resume_file
    from avarc_cli.work.locks import only_writer

    if not processes.is_first():  # one of several writes; the others may be on machines without its folders
        yield
        return
    if folder:
        outputs.check_new_folder(out)
    else:
        files = [Path(name) for name in inputs if name]
        overwrite = overwrite or resume_file(out).exists()
        outputs.check_output(out, outputs.WEIGHTS, overwrite=overwrite, inputs=files)
    with only_writer(out):
        yield


@contextmanager
def progress(description: str, steps: int) -> Iterator[MetricsProgress]:
    with console.progress(description, steps, unit="step") as bar:
        yield lambda done, values: bar.update(
            done, note=" ".join(f"{name} {x:.4g}" for name, x in values.items()), numbers=values
        )


def show(out: Path, run: RunOptions | None = None) -> None:
    """Say where the weights are, unless after a dry run, and how many images could not be read.

    Raises: typer.Exit where there are such images; but not in one of several processes, whose launcher would take it
        for a failure.
    """
    unreadable = {} if run is None else run.unreadable
    if run is None or not run.dry_run:
        data = {"weights": out} | ({"unreadable": unreadable} if unreadable else {})
        console.result(data, console.path_and(out, "written"), brief=str(out))
    if unreadable:
        console.warn(f"{counted(len(unreadable), 'image')} could not be read, and others were shown instead")
        if processes.count() == 1:
            raise typer.Exit(EXIT_UNREADABLE)
