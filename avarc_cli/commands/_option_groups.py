"""Options that belong together, as the fields of dataclasses that commands take (`_groups`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from avarc_cli.commands import _images, _weights
from avarc_cli.commands import _options as opt
from avarc_cli.commands._caption_options import CaptionOptions
from avarc_cli.options import Options, parse_batch_size
from avarc_cli.settings import check_device, check_exists, check_file, check_one_precision, check_precision

if TYPE_CHECKING:
    from avarc_cli.data.datasets import ImageSet
    from avarc_cli.data.labels import LabelSpace
    from avarc_cli.data.views import Views
    from avarc_cli.loading import ModelSpec
    from avarc_cli.work.shards import Shard
    from avarc_cli.work.workers import Workers

_Weights = TypeVar("_Weights", bound="WeightsOptions")


@dataclass(frozen=True, kw_only=True)
class WeightsOptions:
    """A model with its tokenizer, and the device to load it on."""

    model: opt.ModelOpt = "digits"
    tokenizer: opt.TokenizerOpt = None
    model_config: opt.ModelConfigOpt = None
    tokenizer_config: opt.TokenizerConfigOpt = None
    weight_set: opt.WeightSetOpt = None
    tokenizer_weight_set: opt.TokenizerWeightSetOpt = None
    image_size: opt.ImageSizeOpt = None
    device: opt.DeviceOpt = "auto"
    yes: opt.YesOpt = False

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
        if self.tokenizer is None or opt.is_given(context, "model"):
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

    class_names: opt.ClassNamesOpt = None
    class_order: opt.ClassOrderOpt = None
    lora: opt.LoraOpt = None
    lora_alpha: opt.LoraAlphaOpt = None

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
class ModelOptions(NamedModelOptions, CaptionOptions):
    """A model that is ready to score: in some precision, with the classes of a bank."""

    bank: opt.BankOpt = None
    precision: opt.PrecisionOpt = "fp32"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_precision()
        self.check_captions(has_bank=self.bank is not None)
        if self.bank is not None:
            from avarc_cli import bank as banks

            banks.read(self.bank)

    def _check_precision(self) -> None:
        check_one_precision(self.precision, "this command")
        check_precision(self.precision)

    def known_classes(self) -> LabelSpace | None:
        """As `NamedModelOptions.known_classes`; with captions, these."""
        return self.caption_space() if self.gives_captions else super().known_classes()

    def fetch(self, *, tokenizer_only: bool = False) -> ModelSpec:
        """As `WeightsOptions.fetch`, with the text encoder where captions are not encoded yet."""
        _weights.ensure(
            self.model,
            self.tokenizer,
            self.weight_set,
            self.tokenizer_weight_set,
            yes=self.yes,
            tokenizer_only=tokenizer_only,
            captions=self.gives_captions,
            text_encoder=self.needed_encoder(self.model),
        )
        return self._spec()

    def _bank(self) -> Path | None:
        return self.bank

    def _spec(self) -> ModelSpec:
        return replace(
            super()._spec(),
            bank=self.bank,
            precision=self.precision,
            **self.caption_fields(),
        )


@dataclass(frozen=True, kw_only=True)
class CandidateOptions:
    """Which classes compete."""

    classes: opt.ClassesOpt = None
    offset: opt.OffsetsOpt = True
    batch_size: opt.BatchSizeOpt = "auto"
    orders: opt.OrdersOpt = None
    order_seed: opt.OrderSeedOpt = 0
    steps: opt.StepsOpt = None
    bound: opt.BoundOpt = None
    unsmooth: opt.UnsmoothOpt = 0.0

    def __post_init__(self) -> None:
        """Raises: UsageError."""
        from avarc_cli.scoring.estimator import Estimator
        from avarc_cli.scoring.orders import check_bound, check_orders

        parse_batch_size(self.batch_size)
        Estimator(self.steps, self.bound, self.unsmooth)
        check_bound(self.bound, self.orders)
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
            steps=self.steps,
            bound=self.bound,
            unsmooth=self.unsmooth,
            dataset=dataset,
        )


@dataclass(frozen=True, kw_only=True)
class ScoringOptions(CandidateOptions):
    """Which classes compete, and with what weight."""

    priors: opt.PriorsOpt = None

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

    preprocess: opt.PreprocessOpt = None
    flip: opt.FlipOpt = False
    ten_crop: opt.TenCropOpt = False
    crop_range: opt.CropRangeOpt = None

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
        return options if count == 1 or opt.is_given(context, "plan") else replace(options, plan=f"exhaustive:{count}")


@dataclass(frozen=True, kw_only=True)
class ImageOptions(PixelOptions):
    """Which images of a set to read, and how they become tokens."""

    sigma: opt.SigmaOpt = 0.1
    seed: Annotated[
        int, opt.images_option("--seed", min=0, max=2**63 - 1, help="Seed of the smoothing noise, and of --sample.")
    ] = 0
    dataset: opt.DatasetOpt = None
    subset: opt.SubsetOpt = None
    per_class: opt.PerClassOpt = None
    limit: opt.LimitOpt = None
    sample: opt.SampleOpt = None
    workers: opt.WorkersOpt = None
    allow_outside: opt.AllowOutsideOpt = False

    def __post_init__(self) -> None:
        from avarc_cli.tokens.noise import check_sigma

        super().__post_init__()
        check_sigma(self.sigma)
        self.part.check()

    @property
    def part(self) -> _images.Part:
        """How many of the images, and which."""
        return _images.Part(self.limit, self.sample, self.seed)

    def select(self, data: list[Path]) -> ImageSet:
        """The images of DATA that these options choose."""
        chosen = _images.select(data, self.subset, self.per_class, self.dataset, allow_outside=self.allow_outside)
        return self.part.of(chosen)


@dataclass(frozen=True, kw_only=True)
class WorkersOptions:
    """Who computes: this process or others beside it."""

    devices: opt.DevicesOpt = None
    engine: opt.EngineOpt = "local"

    @property
    def workers(self) -> Workers:
        """Who computes it. Raises: UsageError; one for a GPU that is not there, for which torch is imported."""
        from avarc_cli.work.workers import Workers, parse_devices

        return Workers(self.engine, parse_devices(self.devices))

    def place(self, context: typer.Context, model: _Weights) -> _Weights:
        """Load this process's own copy of the model on the first of the devices.

        Raises: UsageError where --device was given as well.
        """
        return replace(model, device=self.check(context).first_device(model.device))

    def check(self, context: typer.Context) -> Workers:
        """Who computes. Raises: UsageError where --device was given beside --devices, and as `workers`."""
        if self.devices is not None:
            opt.check_not_given(context, ["device"], "beside --devices", "a process is started on each of these")
        return self.workers


@dataclass(frozen=True, kw_only=True)
class WorkOptions(WorkersOptions):
    """Who computes, and which part of the work."""

    shard: opt.ShardOpt = "1/1"

    @property
    def own_shard(self) -> Shard:
        """The part that this process is to see to. Raises: UsageError."""
        from avarc_cli.work.shards import Shard

        return Shard.parse(self.shard)
