"""Options and small steps that several commands share."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avarc_cli import console
from avarc_cli.errors import UsageError

if TYPE_CHECKING:
    from avarc_cli.data.datasets import ImageSet

UNREADABLE_SHOWN = 10


def _set_json(asked: bool) -> bool:
    if asked:
        console.configure(mode=console.Mode.JSON)
    return asked


JsonOpt = Annotated[
    bool, typer.Option("--json", callback=_set_json, help="Print the result as one JSON document on stdout.")
]
"""`as_json: JsonOpt = False`: sets the console's mode by itself, so that a command need not look at it."""

DataArg = Annotated[
    list[Path],
    typer.Argument(help="A folder of images, image files, .tar or .parquet files, or a text file of paths."),
]
ModelOpt = Annotated[
    str, typer.Option("--model", "-m", help="A model's name (avarc models) or the path of a checkpoint.")
]
TokenizerOpt = Annotated[
    str | None,
    typer.Option("--tokenizer", help="A tokenizer's name or file; a named model implies it, a file does not."),
]
ClassNamesOpt = Annotated[
    str | None, typer.Option("--class-names", help="File that names the checkpoint's classes, one a line, in order.")
]
PrecisionOpt = Annotated[str, typer.Option("--precision", help="fp32, tf32 (CUDA), bf16, fp16, int8 or fp8 (CUDA).")]
KernelsOpt = Annotated[
    str, typer.Option("--kernels", help="auto (torch), torch: plain PyTorch, or triton: our own for NVIDIA GPUs.")
]
MemoryOpt = Annotated[
    str | None, typer.Option("--memory", help="Stay within this much memory, weights included: 8GiB, 500MiB.")
]
BatchSizeOpt = Annotated[str, typer.Option("--batch-size", help="Pairs of image and class scored at once, or auto.")]
BankOpt = Annotated[
    Path | None, typer.Option("--bank", help="Class bank whose classes come after the model's own (avarc add-class).")
]
OffsetsOpt = Annotated[
    bool, typer.Option("--offset/--no-offset", help="Add the offsets that a bank stores to its classes' scores.")
]
DeviceOpt = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
LoraOpt = Annotated[
    Path | None, typer.Option("--lora", help="A LoRA adapter, in PEFT's folder format, to merge into the model.")
]
PreprocessOpt = Annotated[
    str | None,
    typer.Option(
        "--preprocess",
        help="resize-crop (shorter edge to 1.125 times the size, centre crop), fit (to the size exactly), or none "
        "(images have the right size). Default: the tokenizer's own.",
    ),
]
SubsetOpt = Annotated[
    str | None, typer.Option("--subset", help="Only images of these classes: a file with one a line, or a known name.")
]
DatasetOpt = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        help="Which known dataset the images are (imagenet-val, -train, -v2, -a, -r, -sketch, objectnet), or none. "
        "Default: recognised from folders and names.",
    ),
]
PerClassOpt = Annotated[int | None, typer.Option("--per-class", help="Only the first so many images of each class.")]
LimitOpt = Annotated[int | None, typer.Option("--limit", help="Only the first so many images.")]
WorkersOpt = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=0,
        help="Processes that decode images; 0 decodes in this one. Default: 1 beside a CPU, more beside a GPU.",
    ),
]
SigmaOpt = Annotated[
    float, typer.Option("--sigma", help="Standard deviation of the neighbours' noise, in units of the latents.")
]
SeedOpt = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of the random numbers.")]


def select_images(
    data: list[Path], subset: str | None, per_class: int | None, limit: int | None, dataset: str | None = None
) -> ImageSet:
    """The images that the data options name; tells what was recognised.

    Of ObjectNet's 313 objects those without a class of ImageNet are left out, unless a subset names them.
    """
    from avarc_cli.data.datasets import open_images
    from avarc_cli.data.labels import subset as classes_of

    images = open_images(data, dataset)
    for message in images.notes:
        console.note(message)
    if subset is None and (left_out := images.classes_outside_imagenet()):
        covered = [name for name in images.class_names if name not in left_out]
        kept = images.select(covered, None, None)
        of = f"{len(images) - len(kept):,} images of {len(left_out)} objects that ImageNet has no class for"
        console.note(f"left out {of} (--subset FILE with their names keeps them)")
        images = kept
    return images.select(classes_of(subset) if subset else None, per_class, limit)


def check_file(path: Path, *suffixes: str) -> None:
    """Raises UsageError for a file that cannot be written under this name, before any work is done."""
    what = f"cannot write '{path}'"
    if path.suffix.lower() not in suffixes:
        raise UsageError(what, f"there is no format '{path.suffix}'", f"name a file ending in {' or '.join(suffixes)}")
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(what, "it is a folder" if path.is_dir() else f"'{path.parent}' is no folder", "name another")


def check_not_given(context: typer.Context, names: Collection[str], where: str, why: str) -> None:
    """Raises UsageError for those of a command's parameters that were given where they would change nothing."""
    given = [p.opts[0] for p in context.command.params if p.name in names and _is_given(context, p.name)]
    if given:
        raise UsageError(f"no use for {', '.join(given)} {where}", why, f"leave out {', '.join(given)}")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def parse_numbers(text: str | None, option: str) -> tuple[int, ...] | None:
    """Comma-separated positive whole numbers. Raises UsageError for anything else."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(
            f"cannot read {option} '{text}'", "it is a list of positive numbers", f"write {option} 1,2,3,4"
        )
    return tuple(int(part) for part in parts)


def list_unreadable(unreadable: list[tuple[str, str]]) -> None:
    """Tell which inputs were left out, and why."""
    for name, reason in unreadable[:UNREADABLE_SHOWN]:
        console.warn(f"left out {name}: {reason}")
    if len(unreadable) > UNREADABLE_SHOWN:
        console.warn(f"left out {len(unreadable) - UNREADABLE_SHOWN} more unreadable images")
