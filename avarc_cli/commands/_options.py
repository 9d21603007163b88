"""Options and small steps that several commands share."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _completion as complete
from avarc_cli.errors import UsageError

if TYPE_CHECKING:
    from avarc_cli.layout import TokenLayout
    from avarc_cli.loaded import LoadedModel, LoadedTokenizer


def _set_json(asked: bool) -> bool:
    if asked:
        console.configure(mode=console.Mode.JSON)
    return asked


JsonOpt = Annotated[
    bool,
    typer.Option("--json", callback=_set_json, is_eager=True, help="Print the result as one JSON document on stdout."),
]
"""`as_json: JsonOpt = False`: its callback sets the console's mode, so a command ignores the value."""

OverwriteOpt = Annotated[bool, typer.Option("--overwrite", help="Replace what is there under the name of --out.")]

A_LIST = "a list (.txt: path<TAB>class on each line; .csv, .jsonl)"  # in help texts
DataArg = Annotated[
    list[Path],
    typer.Argument(help=f"A folder of images, image files, .tar or .parquet files, or {A_LIST}."),
]

# Options under a heading of a command's help.
model_option = partial(typer.Option, rich_help_panel="Model")
scoring_option = partial(typer.Option, rich_help_panel="Scoring")
images_option = partial(typer.Option, rich_help_panel="Images")
training_option = partial(typer.Option, rich_help_panel="Training")

ModelOpt = Annotated[
    str,
    model_option(
        "--model",
        "-m",
        help="A model's name (avarc models), or the path of a checkpoint or its folder.",
        autocompletion=complete.models,
    ),
]
TokenizerOpt = Annotated[
    str | None,
    model_option(
        "--tokenizer",
        help="A tokenizer's name or file. A model's name implies it, a checkpoint's path does not.",
        autocompletion=complete.tokenizers,
    ),
]
ClassNamesOpt = Annotated[
    str | None,
    model_option(
        "--class-names",
        help="Names of the model's classes: a file with one a line, in order, or the folder of its training images.",
    ),
]
ClassOrderOpt = Annotated[
    str | None,
    model_option(
        "--class-order",
        help="How a model without class names numbered folders called 0, 1, 2, ...: number (the default), or text, "
        "sorted as text (0, 1, 10, 11, 2, ...), as torchvision and VAR's trainer do.",
        autocompletion=complete.one_of("number", "text"),
    ),
]
PrecisionOpt = Annotated[
    str,
    model_option(
        "--precision",
        help="fp32, tf32 (CUDA), bf16, fp16, int16 (CPU), int8 or fp8 (CUDA).",
        autocompletion=complete.precisions,
    ),
]
BankOpt = Annotated[
    Path | None, model_option("--bank", help="Class bank (avarc add-class) whose classes the model gets.")
]
DeviceOpt = Annotated[
    str, model_option("--device", help="auto, cpu, cuda, cuda:1, ...", autocompletion=complete.devices)
]
LoraOpt = Annotated[Path | None, model_option("--lora", help="LoRA adapter (a folder in PEFT's format) to merge in.")]
ModelConfigOpt = Annotated[
    Path | None,
    model_option(
        "--model-config", help="JSON file with what a generator's tensors do not tell: its family, its heads."
    ),
]
TokenizerConfigOpt = Annotated[
    Path | None,
    model_option("--tokenizer-config", help="JSON file with what a tokenizer's tensors do not tell, such as scales."),
]
WeightSetOpt = Annotated[
    str | None,
    model_option(
        "--weights",
        help="Which weights of a checkpoint that holds several: ema, or another name in it. Default: the trained ones.",
    ),
]
TokenizerWeightSetOpt = Annotated[
    str | None, model_option("--tokenizer-weights", help="The same for the tokenizer's checkpoint.")
]
ImageSizeOpt = Annotated[
    int | None,
    model_option("--image-size", min=1, help="Pixels a side, for a tokenizer that reads images of several sizes."),
]
LoraAlphaOpt = Annotated[
    float | None,
    model_option("--lora-alpha", help="Scale of LoRA tensors in the checkpoint itself, where no file states it."),
]
CaptionsOpt = Annotated[
    Path | None,
    model_option(
        "--captions",
        help="For models of captions: the candidates. .txt with one a line; .json, .csv with names; or their features, "
        ".safetensors.",
    ),
]
TemplatesOpt = Annotated[
    list[str] | None,
    model_option(
        "--template",
        help='In place of --captions: class names in a text, "a photo of a {}". Several: their mean.',
    ),
]
TextEncoderOpt = Annotated[
    str | None,
    model_option(
        "--text-encoder",
        help="A name or folder. Default: the encoder that the model was trained with.",
        autocompletion=complete.text_encoders,
    ),
]
AestheticScoreOpt = Annotated[
    float | None,
    model_option("--aesthetic-score", help="Of the images that captions describe, for models given one (MaskGen)."),
]
YesOpt = Annotated[bool, model_option("--yes", "-y", help="Download missing weights without asking.")]

ClassesOpt = Annotated[
    str | None,
    scoring_option(
        "--classes",
        help="Candidates: all, a file, a known subset, or a list like 0,5,7. Default: those of the dataset.",
        autocompletion=complete.candidates,
    ),
]
PriorsOpt = Annotated[
    str | None, scoring_option("--priors", help="File of class<TAB>weight lines. Default: the same weight for all.")
]
OffsetsOpt = Annotated[
    bool,
    scoring_option(
        "--offset/--no-offset", help="Add the offsets that a class bank stores to the scores of its classes."
    ),
]
BatchSizeOpt = Annotated[
    str, scoring_option("--batch-size", help="Pairs of image and class in one forward pass, or auto.")
]

OrdersOpt = Annotated[
    str | None,
    scoring_option(
        "--orders",
        help="Of models that score tokens in any order: raster, a number of random orders, or FILE.npy (K, L).",
    ),
]
StepsOpt = Annotated[
    int | None,
    scoring_option("--steps", help="Of models of hidden tokens: cut an order into N passes; exact for N passes."),
]
BoundOpt = Annotated[
    int | None,
    scoring_option("--bound", help="Of models of hidden tokens: N draws of a lower bound that needs no order."),
]
UnsmoothOpt = Annotated[
    float,
    scoring_option("--unsmooth", help="Undo the label smoothing that such a model was trained with, as 0.1."),
]
OrderSeedOpt = Annotated[int, scoring_option("--order-seed", min=0, max=2**63 - 1, help="Seed of random orders.")]

PreprocessOpt = Annotated[
    str | None,
    images_option(
        "--preprocess",
        help="resize-crop (shorter edge to 1.125 times the size, center crop), fit (shorter edge to the size, center "
        "crop), adm (halved by boxes, then bicubic, center crop), or none (images have the right size). Default: the "
        "tokenizer's own. With ,reference behind it, or reference alone: decode as Pillow's convert('RGB') does "
        "(docs/datasets.md).",
        autocompletion=complete.one_of("resize-crop", "fit", "adm", "none", "reference"),
    ),
]
FlipOpt = Annotated[bool, images_option("--flip", help="Two views of each image: itself, and its mirror image.")]
TenCropOpt = Annotated[
    bool,
    images_option(
        "--ten-crop",
        help="Ten views: center and corners of the image, scaled to 1.1 times the size, and those of its mirror image.",
    ),
]
CropRangeOpt = Annotated[
    float | None, images_option("--crop-range", help="For --ten-crop: this many times the size. Default: 1.1.")
]
DatasetOpt = Annotated[
    str | None,
    images_option(
        "--dataset",
        help="Which known dataset the images are (imagenet-val, -train, -v2, -a, -r, -sketch, objectnet), or none. "
        "Default: recognized from folders and names.",
        autocompletion=complete.datasets,
    ),
]
SubsetOpt = Annotated[
    str | None,
    images_option(
        "--subset",
        help="Only images of these classes: a file with one a line, or a known name.",
        autocompletion=complete.subsets,
    ),
]
PerClassOpt = Annotated[int | None, images_option("--per-class", help="Only the first N images of each class.")]
LimitOpt = Annotated[int | None, images_option("--limit", help="Only the first N images.")]
SampleOpt = Annotated[
    int | None,
    images_option("--sample", help="Only N images, drawn at random (--seed) and evenly over the classes."),
]
WorkersOpt = Annotated[
    int | None,
    images_option(
        "--workers",
        min=0,
        help="Processes that decode images; 0 decodes in this one. Default: 1 with a CPU, more with a GPU.",
    ),
]
TokensOfRunOpt = Annotated[
    Path | None, typer.Option("--tokens", help="The token cache of a run, if it is not where it was.")
]
AllowOutsideOpt = Annotated[
    bool,
    images_option(
        "--allow-outside", help="Follow paths inside tables and run folders that lead to files elsewhere; trust them."
    ),
]
SigmaOpt = Annotated[
    float, images_option("--sigma", help="Standard deviation of the smoothing noise, in units of the latents.")
]
SeedOpt = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of the random numbers.")]
ShardOpt = Annotated[
    str, typer.Option("--shard", help="i/n: do part i (from 1) of n; run all n with the same OUT, or join OUTs.")
]
DevicesOpt = Annotated[
    str | None, typer.Option("--devices", help="A process each: all GPUs, 0,1,2 for some, or cpu:2. Excludes --device.")
]
EngineOpt = Annotated[
    str,
    typer.Option(
        "--engine",
        help="local, or ray: on a Ray cluster; needs avarc[ray].",
        autocompletion=complete.one_of("local", "ray"),
    ),
]
PatchNumsOpt = Annotated[
    str | None, typer.Option("--patch-nums", help="Scales of a tokenizer file that does not name them: 1,2,3,4.")
]


captions_bar = partial(console.progress, unit="caption")
"""Opens the bar of encoding captions, for what loads a model."""


def note_inferred(loaded: LoadedModel | LoadedTokenizer) -> None:
    """Report the values of a configuration that no file states, and which of several sets of weights was read."""
    for name, found in loaded.inferred.items():
        is_set = name.endswith("weights")
        console.note(f"{loaded.name}: {name} {found}" if is_set else f"assumed for {loaded.name}: {name} {found}")
    for note in loaded.notes:
        console.note(note)


def note_sigma(context: typer.Context, tokenizer: LoadedTokenizer) -> None:
    """Report that --sigma changes nothing where it was given for continuous tokens."""
    if tokenizer.channels and is_given(context, "sigma"):
        console.note(f"--sigma does not apply to {tokenizer.name}: its samples are draws from the encoder's posterior")


def read_plan(plan: str | None) -> str | None:
    """Callback of a --plan: the reference's three lists as a plan of ours, with a note; any other plan unchanged.

    Raises: UsageError for lists that describe no plan.
    """
    from avarc_cli.scoring.reference_lists import translate

    if plan is None or (translated := translate(plan)) == plan:
        return plan
    console.note(f"plan {translated}")
    return translated


def check_plan(plan: str, candidates: int | None = None) -> None:
    """Check a --plan before torch is imported; candidates: to choose from, None where they are not known yet.

    Raises: UsageError for one that no model could carry out; AvarcError for a file that holds none.
    """
    from avarc_cli.results import tuned
    from avarc_cli.scoring import plan as plans

    if tuned.is_file(plan):
        tuned.read(Path(plan))
    elif plan != tuned.AUTO:
        plans.check_plan(plan, candidates=candidates)


def check_not_given(context: typer.Context, names: Collection[str], where: str, why: str) -> None:
    """Raises UsageError for those of a command's parameters that were given where they would change nothing."""
    given = [p.opts[0] for p in context.command.params if p.name in names and is_given(context, p.name)]
    if given:
        raise UsageError(f"no use for {', '.join(given)} {where}", why, f"leave out {', '.join(given)}")


def is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name in {"COMMANDLINE", "DEFAULT_MAP"}  # the latter: in the file of --config


def parse_scales(text: str | None) -> TokenLayout | None:
    """The token layout that --patch-nums names. Raises UsageError for anything else."""
    from avarc_cli.layout import TokenLayout

    sides = parse_numbers(text, "--patch-nums")
    return None if sides is None else TokenLayout.multi_scale(sides)


def parse_numbers(text: str | None, option: str) -> tuple[int, ...] | None:
    """Comma-separated positive whole numbers. Raises UsageError for anything else."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("[0-9]{1,9}", part) and int(part) > 0 for part in parts):
        raise UsageError(
            f"cannot read {option} '{text}'", "it is a list of positive numbers", f"write {option} 1,2,3,4"
        )
    return tuple(int(part) for part in parts)
