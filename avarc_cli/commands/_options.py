"""Options and small steps that several commands share."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _images, _weights
from avarc_cli.errors import UsageError
from avarc_cli.options import AUTO, Options, parse_batch_size
from avarc_cli.settings import check_device, check_exists, check_file, check_precision

if TYPE_CHECKING:
    from avarc_cli.data.datasets import ImageSet
    from avarc_cli.data.labels import LabelSpace
    from avarc_cli.data.views import Views
    from avarc_cli.layout import TokenLayout
    from avarc_cli.loaded import LoadedModel, LoadedTokenizer
    from avarc_cli.loading import ModelSpec


def _set_json(asked: bool) -> bool:
    if asked:
        console.configure(mode=console.Mode.JSON)
    return asked


JsonOpt = Annotated[
    bool, typer.Option("--json", callback=_set_json, help="Print the result as one JSON document on stdout.")
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
    str, model_option("--model", "-m", help="A model's name (avarc models) or the path of a checkpoint.")
]
TokenizerOpt = Annotated[
    str | None,
    model_option(
        "--tokenizer", help="A tokenizer's name or file. A model's name implies it, a checkpoint's path does not."
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
    ),
]
PrecisionOpt = Annotated[str, model_option("--precision", help="fp32, tf32 (CUDA), bf16, fp16, int8 or fp8 (CUDA).")]
BankOpt = Annotated[
    Path | None, model_option("--bank", help="Class bank (avarc add-class) whose classes the model gets.")
]
DeviceOpt = Annotated[str, model_option("--device", help="auto, cpu, cuda, cuda:1, ...")]
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
YesOpt = Annotated[bool, model_option("--yes", "-y", help="Download missing weights without asking.")]

ClassesOpt = Annotated[
    str | None,
    scoring_option(
        "--classes",
        help="Candidates: all, a file, a known subset, or a list like 0,5,7. Default: those of the dataset.",
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
OrderSeedOpt = Annotated[int, scoring_option("--order-seed", min=0, max=2**63 - 1, help="Seed of random orders.")]

PreprocessOpt = Annotated[
    str | None,
    images_option(
        "--preprocess",
        help="resize-crop (shorter edge to 1.125 times the size, center crop), fit (shorter edge to the size, center "
        "crop), adm (halved by boxes, then bicubic, center crop), or none (images have the right size). Default: the "
        "tokenizer's own. With ,reference behind it, or reference alone: decode as Pillow's convert('RGB') does "
        "(docs/datasets.md).",
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
    ),
]
SubsetOpt = Annotated[
    str | None, images_option("--subset", help="Only images of these classes: a file with one a line, or a known name.")
]
PerClassOpt = Annotated[int | None, images_option("--per-class", help="Only the first N images of each class.")]
LimitOpt = Annotated[int | None, images_option("--limit", help="Only the first N images.")]
WorkersOpt = Annotated[
    int | None,
    images_option(
        "--workers",
        min=0,
        help="Processes that decode images; 0 decodes in this one. Default: 1 with a CPU, more with a GPU.",
    ),
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
PatchNumsOpt = Annotated[
    str | None, typer.Option("--patch-nums", help="Scales of a tokenizer file that does not name them: 1,2,3,4.")
]


@dataclass(frozen=True, kw_only=True)
class WeightsOptions:
    """A model with its tokenizer, and the device to load it on."""

    model: ModelOpt = "digits"
    tokenizer: TokenizerOpt = None
    model_config: ModelConfigOpt = None
    tokenizer_config: TokenizerConfigOpt = None
    weight_set: WeightSetOpt = None
    tokenizer_weight_set: TokenizerWeightSetOpt = None
    image_size: ImageSizeOpt = None
    device: DeviceOpt = "auto"
    yes: YesOpt = False

    def __post_init__(self) -> None:
        """Raises: UsageError for values that no model could make sense of; before torch is imported, like all such."""
        from avarc_cli.zoo.cards import check_weights

        check_weights(self.model)
        if self.tokenizer is not None:
            check_weights(self.tokenizer)
        check_device(self.device)
        check_file(self.model_config, "--model-config")
        check_file(self.tokenizer_config, "--tokenizer-config")

    def of_tokenizer(self, context: typer.Context) -> WeightsOptions:
        """For commands that load no generator: where only --tokenizer was given, the default model has no say."""
        if self.tokenizer is None or is_given(context, "model"):
            return self
        return replace(self, model=self.tokenizer, tokenizer=None)

    def fetch(self, *, tokenizer_only: bool = False) -> ModelSpec:
        """Download missing weights if the user agrees; returns what to load.

        Raises: AvarcError naming `avarc download NAME` where weights are still missing.
        """
        sets = (self.weight_set, self.tokenizer_weight_set)
        _weights.ensure(self.model, self.tokenizer, *sets, yes=self.yes, tokenizer_only=tokenizer_only)
        return self._spec()

    def _spec(self) -> ModelSpec:
        from avarc_cli.loading import ModelSpec

        return ModelSpec(
            self.model,
            self.tokenizer,
            model_config=self.model_config,
            tokenizer_config=self.tokenizer_config,
            weight_set=self.weight_set,
            tokenizer_weight_set=self.tokenizer_weight_set,
            image_size=self.image_size,
            device=self.device,
        )


@dataclass(frozen=True, kw_only=True)
class NamedModelOptions(WeightsOptions):
    """A model whose classes may be named, with an adapter."""

    class_names: ClassNamesOpt = None
    class_order: ClassOrderOpt = None
    lora: LoraOpt = None
    lora_alpha: LoraAlphaOpt = None

    def __post_init__(self) -> None:
        from avarc_cli.data.class_names import check_order
        from avarc_cli.zoo.lora import check_alpha, find_adapter

        super().__post_init__()
        check_exists(self.class_names, "--class-names")
        check_exists(self.lora, "--lora")
        if self.lora is not None:
            find_adapter(self.lora)
        check_alpha(self.lora_alpha)
        check_order(self.class_order)

    def known_classes(self) -> LabelSpace | None:
        """The model's classes as far as they are known before torch is imported (`known_classes.known_classes`)."""
        from avarc_cli.known_classes import known_classes

        return known_classes(
            self.model,
            class_names=self.class_names,
            class_order=self.class_order,
            weight_set=self.weight_set,
            bank=self._bank(),
        )

    def _bank(self) -> Path | None:
        return None

    def _spec(self) -> ModelSpec:
        return replace(
            super()._spec(),
            class_names=self.class_names,
            class_order=self.class_order,
            lora=self.lora,
            lora_alpha=self.lora_alpha,
        )


@dataclass(frozen=True, kw_only=True)
class ModelOptions(NamedModelOptions):
    """A model that is ready to score: in some precision, with the classes of a bank."""

    bank: BankOpt = None
    precision: PrecisionOpt = "fp32"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_precision(self.precision)
        if self.bank is not None:
            from avarc_cli import bank as banks

            banks.read(self.bank)

    def _bank(self) -> Path | None:
        return self.bank

    def _spec(self) -> ModelSpec:
        return replace(super()._spec(), bank=self.bank, precision=self.precision)


@dataclass(frozen=True, kw_only=True)
class CandidateOptions:
    """Which classes compete."""

    classes: ClassesOpt = None
    offset: OffsetsOpt = True
    batch_size: BatchSizeOpt = "auto"
    orders: OrdersOpt = None
    order_seed: OrderSeedOpt = 0

    def __post_init__(self) -> None:
        """Raises: UsageError."""
        from avarc_cli.scoring.orders import check_orders

        parse_batch_size(self.batch_size)
        if self.orders is not None:
            check_orders(self.orders)

    def check(self, space: LabelSpace | None, dataset: str) -> int | None:
        """Check the classes that are named before torch is imported, as far as the model's are known by then.

        Returns: the number of candidates, None if the model's classes are not known.
        Raises: UsageError.
        """
        from avarc_cli.candidates import candidates

        return None if space is None else len(candidates(space, self.classes, dataset)[0])

    def options(self, dataset: str) -> Options:
        """The classifier's options for images of this dataset ("" for an unknown one)."""
        return Options(
            classes=self.classes,
            offsets=self.offset,
            batch_size=self.batch_size,
            orders=self.orders,
            order_seed=self.order_seed,
            dataset=dataset,
        )


@dataclass(frozen=True, kw_only=True)
class ScoringOptions(CandidateOptions):
    """Which classes compete, and with what weight."""

    priors: PriorsOpt = None

    def __post_init__(self) -> None:
        from avarc_cli.candidates import read_weights

        super().__post_init__()
        check_file(self.priors, "--priors")
        if self.priors is not None:
            read_weights(Path(self.priors))

    def check(self, space: LabelSpace | None, dataset: str) -> int | None:
        from avarc_cli.candidates import candidates, log_prior

        if space is not None:
            log_prior(space, candidates(space, self.classes, dataset)[0], self.priors)
        return super().check(space, dataset)

    def options(self, dataset: str) -> Options:
        return replace(super().options(dataset), priors=self.priors)


@dataclass(frozen=True, kw_only=True)
class PixelOptions:
    """How an image becomes pixels, once or in several views."""

    preprocess: PreprocessOpt = None
    flip: FlipOpt = False
    ten_crop: TenCropOpt = False
    crop_range: CropRangeOpt = None

    def __post_init__(self) -> None:
        """Raises: UsageError."""
        from avarc_cli.data.preprocess import check_option

        check_option(self.preprocess, self.views)

    @property
    def given(self) -> list[object]:
        """What the user chose; None for each option that was left out."""
        return [self.preprocess, self.flip or None, self.ten_crop or None, self.crop_range]

    @property
    def views(self) -> Views:
        """Which views of an image are encoded."""
        from avarc_cli.data.views import Views

        return Views.choose(flip=self.flip, ten_crop=self.ten_crop, crop_range=self.crop_range)

    def average(self, context: typer.Context, options: Options) -> Options:
        """These options of the classifier, but without --plan it averages over all views, if there are several."""
        count = self.views.count
        return options if count == 1 or is_given(context, "plan") else replace(options, plan=f"exhaustive:{count}")


@dataclass(frozen=True, kw_only=True)
class ImageOptions(PixelOptions):
    """Which images of a set to read, and how they become tokens."""

    sigma: SigmaOpt = 0.1
    seed: Annotated[int, images_option("--seed", min=0, max=2**63 - 1, help="Seed of the smoothing noise.")] = 0
    dataset: DatasetOpt = None
    subset: SubsetOpt = None
    per_class: PerClassOpt = None
    limit: LimitOpt = None
    workers: WorkersOpt = None
    allow_outside: AllowOutsideOpt = False

    def __post_init__(self) -> None:
        from avarc_cli.tokens.noise import check_sigma

        super().__post_init__()
        check_sigma(self.sigma)

    def select(self, data: list[Path]) -> ImageSet:
        """The images of DATA that these options choose."""
        return _images.select(
            data, self.subset, self.per_class, self.limit, self.dataset, allow_outside=self.allow_outside
        )


def note_inferred(loaded: LoadedModel | LoadedTokenizer) -> None:
    """Report the values of a configuration that no file states, and which of several sets of weights was read."""
    for name, found in loaded.inferred.items():
        is_set = name.endswith("weights")
        console.note(f"{loaded.name}: {name} {found}" if is_set else f"assumed for {loaded.name}: {name} {found}")


def check_plan(plan: str, candidates: int | None = None) -> None:
    """Check a --plan before torch is imported; candidates: to choose from, None where they are not known yet.

    Raises: UsageError for one that no model could carry out; AvarcError for a file that holds none.
    """
    if Path(plan).suffix.lower() == ".json":
        from avarc_cli.results import tuned

        tuned.read(Path(plan))
    elif plan != AUTO:
        from avarc_cli.scoring import plan as plans

        plans.check_plan(plan, candidates=candidates)


def check_not_given(context: typer.Context, names: Collection[str], where: str, why: str) -> None:
    """Raises UsageError for those of a command's parameters that were given where they would change nothing."""
    given = [p.opts[0] for p in context.command.params if p.name in names and is_given(context, p.name)]
    if given:
        raise UsageError(f"no use for {', '.join(given)} {where}", why, f"leave out {', '.join(given)}")


def is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


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
