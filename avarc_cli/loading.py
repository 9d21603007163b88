"""From a card's name or a file's path to a model that scores and a tokenizer that encodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from avarc_cli import bank as banks
from avarc_cli import families, heap, product_library
from avarc_cli.added_classes import AddedClass, AddedClassesModel, base_of
from avarc_cli.bank import Bank
from avarc_cli.captioning import UNBOUND, BoundCaptions, bind
from avarc_cli.data.class_names import class_space
from avarc_cli.data.labels import LabelSpace
from avarc_cli.devices import pick_device, pick_kernels
from avarc_cli.errors import UsageError
from avarc_cli.family import GeneratorFamily
from avarc_cli.layers import precision as precisions
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layers.precision import Precision
from avarc_cli.layers.state_dict import known_finite
from avarc_cli.layout import TokenLayout
from avarc_cli.likelihood import GeneratorConfig, LikelihoodModel
from avarc_cli.loaded import LoadedModel, LoadedTokenizer, LoadModel, check_channels, check_kind, check_pair
from avarc_cli.model_spec import ModelSpec as ModelSpec
from avarc_cli.progress import StartProgress, silent
from avarc_cli.reading import metadata_of, place, read_stated, read_tokenizer, stated_family
from avarc_cli.settings import check_kernels_compute
from avarc_cli.text import encoders
from avarc_cli.text.captions import ALONE
from avarc_cli.zoo import checkpoint, local_files, weight_sets
from avarc_cli.zoo.cards import (
    ModelCard,
    TokenizerCard,
    any_card,
    check_condition,
    is_path,
    tokenizer_cards,
)


def load_tokenizer(spec: ModelSpec | str = "digits", *, layout: TokenLayout | None = None) -> LoadedTokenizer:
    """The tokenizer that a model reads: its card implies it; a generator's file needs `tokenizer` beside it.

    Args:
        spec: `model` may also be the name of a tokenizer card or the path of a tokenizer's checkpoint. Only the two
            names, their configurations, their sets of weights and `device` count. A string stands for
            `ModelSpec(model)`.
        layout: of the tokens, where the checkpoint does not state it.
    Raises: UsageError, CheckpointError, AvarcError for weights that are not on this machine.
    """
    spec = _as_spec(spec)
    model, tokenizer, device = spec.model, spec.tokenizer, pick_device(spec.device)
    alone = replace(spec, tokenizer_weight_set=spec.tokenizer_weight_set or spec.weight_set)
    if not is_path(model):
        card = any_card(model)
        implied = card.tokenizer if isinstance(card, ModelCard) else card.name
        own = alone if tokenizer is None and isinstance(card, TokenizerCard) else spec
        loaded = read_tokenizer(tokenizer or implied, own, device, layout, card.layout)
        if isinstance(card, ModelCard):
            check_kind(card.name, bool(card.channels), loaded)
        if layout is None or isinstance(card, ModelCard):  # a tokenizer's card says how it is used by default
            check_pair(card.name, None, card.layout, loaded)
        return loaded
    if tokenizer is None:
        return read_tokenizer(model, alone, device, layout, None)
    read = checkpoint.read(Path(model), weight_set=spec.weight_set)
    stated = read_stated(read, spec.model_config, "--model-config", first=layout)
    family = families.GENERATORS.recognize(
        read.tensors, stated_family(stated, families.GENERATORS, families.TOKENIZERS), model
    )
    modelled = family.read_config(read.tensors, stated, model).layout
    loaded = read_tokenizer(tokenizer, spec, device, layout, modelled)
    check_kind(model, family.continuous, loaded)
    check_pair(model, read.metadata.get("tokenizer_sha256"), modelled, loaded)
    return loaded


def load_model(
    spec: ModelSpec | str = "digits",
    *,
    words: Sequence[str] = (),
    unbound: bool = False,
    progress: StartProgress = silent,
) -> LoadedModel:
    """A model ready to score, with its tokenizer.

    Args:
        spec: what to load; a string stands for `ModelSpec(model)`.
        words: the captions of a model of captions where `spec` has none; for a model of classes they mean nothing.
        unbound: load a model of captions without captions, which has no classes and cannot score.
        progress: opens the bar of encoding captions, if that takes place.
    Raises: as load_tokenizer; as `captioning.bind`.
    """
    spec = _as_spec(spec)
    device = pick_device(spec.device)
    spec, precision, kernels = _computing(spec, device)
    card = None if is_path(spec.model) else _model_card(spec.model)
    if card is not None and not unbound:
        spec = _with_words(spec, words if card.condition == "caption" else ())
        check_condition(card, captions=spec.caption_choice.is_given)
    with heap.without_collection():
        reader = _tokenizer_for(spec, card)
        generator = _read_generator(spec, card)
        tokenizer = read_tokenizer(reader, spec, device, None, generator.config.layout)
        likelihood = generator.build(tokenizer, precision, kernels, device)
    spec, captions = _with_words(spec, words if likelihood.text else ()), None
    if likelihood.text is not None and unbound:
        classes = UNBOUND
    elif likelihood.text is not None or spec.caption_choice.is_given:
        likelihood, captions = bind(likelihood, spec.caption_choice, generator.name, device, progress)
        classes, tokenizer = captions.captions.label_space, _without_caption(tokenizer, captions)
    else:
        classes = generator.classes(likelihood, spec, card)
    model_alone = LoadedModel(
        likelihood=likelihood,
        family=generator.family.name,
        tokenizer=tokenizer,
        classes=classes,
        captions=captions,
        name=generator.name,
        file=generator.path,
        sha256=generator.read.sha256,
        precision=spec.precision,
        device=str(device),
        load=partial(_load_model_on, replace(spec, bank=None)),
        kernels=kernels,
        arithmetic=precisions.arithmetic(precision, device, uses_library=likelihood.uses_library),
        lora=generator.read.metadata.get("lora", ""),
        weight_set=generator.weight_set,
        given=asdict(spec),
        stated=generator.stated_beside(),
        inferred=generator.inferred() | {f"tokenizer {key}": text for key, text in tokenizer.inferred.items()},
    )
    return model_alone if spec.bank is None else with_bank(model_alone, banks.read(Path(spec.bank)))


def multiplying_by(model: LoadedModel, library: str) -> LoadedModel:
    """The model with float32 products by this library (`settings.LIBRARIES`), as in earlier work that it continues."""
    if product_library.recorded(model.arithmetic) == library:
        return model
    alone = load_model(replace(ModelSpec(**model.given), products=library, bank=None))
    other = alone if model.bank is None else with_bank(alone, model.bank)  # which `given` need not name
    return replace(other, given={**model.given, "products": library})


@dataclass(frozen=True)
class _Generator:
    """A generator's checkpoint, read, and what it and the files beside it state."""

    name: str
    read: checkpoint.Checkpoint
    weight_set: str | None
    stated: ConfigSources
    family: GeneratorFamily
    config: GeneratorConfig

    @property
    def path(self) -> str:
        return str(self.read.path)

    def build(
        self, tokenizer: LoadedTokenizer, precision: Precision, kernels: str, device: torch.device
    ) -> LikelihoodModel:
        """Its network, with the tokenizer that it reads. Raises: UsageError, CheckpointError where they do not fit."""
        check_kind(self.name, self.family.continuous, tokenizer)
        check_pair(self.path, self.read.metadata.get("tokenizer_sha256"), self.config.layout, tokenizer)
        with known_finite(self.read.is_finite):
            likelihood = self.family.build(
                self.config,
                self.read.tensors,
                tokenizer.network,
                precision=precision,
                kernels=kernels,
                device=device,
                source=self.path,
            )
        self.read.note_finite()
        check_channels(self.path, likelihood, tokenizer)
        return likelihood

    def classes(self, likelihood: LikelihoodModel, spec: ModelSpec, card: ModelCard | None) -> LabelSpace:
        """What its class ids mean. Raises: UsageError for what only a model of captions reads."""
        _check_unused(spec, self.name)
        space = card.label_space if card else None
        return class_space(likelihood.num_classes, space, spec.class_names, self.read.metadata, spec.class_order)

    def stated_beside(self) -> dict[str, Any]:
        """What its configuration takes from other files than the checkpoint, whose sha256 does not cover it."""
        own, used = metadata_of(self.read), self.stated.used.items()
        return {name: value for name, (value, where) in used if where != own and name != "family"}

    def inferred(self) -> dict[str, str]:
        """What was assumed about it where no file states it, and which weights were read."""
        weights = {"weights": text} if (text := self.read.metadata.get(weight_sets.READ)) else {}
        return weights | dict(self.config.inferred)


def _read_generator(spec: ModelSpec, card: ModelCard | None) -> _Generator:
    """The checkpoint of a spec, with the adapter that it names. Raises: AvarcError."""
    path, name = place(spec.model, card)
    weight_set = spec.weight_set or local_files.weight_set(card)
    read = checkpoint.read(path, weight_set=weight_set, lora_alpha=spec.lora_alpha)
    if spec.lora is not None:
        read, name = checkpoint.with_adapter(read, Path(spec.lora)), f"{name} with {Path(spec.lora).name}"
    stated = read_stated(read, spec.model_config, "--model-config", last=card.layout if card else None)
    named = stated_family(stated, families.GENERATORS, families.TOKENIZERS) or (card.family if card else None)
    family = families.GENERATORS.recognize(read.tensors, named, str(read.path))
    config = family.read_config(read.tensors, stated, str(read.path))
    return _Generator(name, read, weight_set, stated, family, config)


def _without_caption(tokenizer: LoadedTokenizer, captions: BoundCaptions) -> LoadedTokenizer:
    """The tokenizer for images of no particular caption, if its decoder reads text."""
    if tokenizer.guidance is None or captions.empty_guidance_TD is None:
        return tokenizer
    return tokenizer.with_guidance(captions.empty_guidance_TD)


def _computing(spec: ModelSpec, device: torch.device) -> tuple[ModelSpec, Precision, str]:
    """The spec with "auto" replaced by what this device uses, the precision (of a cascade the cheap one), the kernels.

    Raises: UsageError for a precision, products or kernels that are unknown, not available here, or not for each other.
    """
    precision = precisions.resolve(spec.precision, device)
    spec = replace(spec, precision=precision, products=product_library.resolve(spec.products, device))
    first = precision.partition("+")[0]
    kernels = pick_kernels(spec.kernels, device, first)
    check_kernels_compute(kernels, precision)
    return spec, product_library.find(first, device, spec.products), kernels


def _tokenizer_for(spec: ModelSpec, card: ModelCard | None) -> str:
    """The tokenizer that the spec names, or else the card. Raises: UsageError when neither does."""
    if spec.tokenizer is None and card is None:
        raise UsageError(
            f"which tokenizer does {spec.model} read?",
            "a generator's checkpoint does not hold its tokenizer",
            f"add --tokenizer NAME|FILE; published VARs read {tokenizer_cards()[1].name}",
        )
    return spec.tokenizer or (card.tokenizer if card else "")


def _check_unused(spec: ModelSpec, name: str) -> None:
    """Raises: UsageError for what only a model of captions reads."""
    for option, value in (("--text-encoder", spec.text_encoder), ("--aesthetic-score", spec.aesthetic_score)):
        if value is not None:
            raise UsageError(f"no use for {option}", f"'{name}' reads no captions", "leave it out")


def with_caption(
    tokenizer: LoadedTokenizer,
    caption: str,
    text_encoder: str | Path | None = None,
    *,
    progress: StartProgress = silent,
) -> LoadedTokenizer:
    """A tokenizer whose decoder reads text, with the caption that it is to decode images with.

    Args:
        text_encoder: a name or folder; None for the one of the tokenizer's training.
    Raises: UsageError for a tokenizer that reads no text, or not these features; as `text.encoders.find`.
    """
    if tokenizer.guidance is None:
        raise UsageError(f"{tokenizer.name} decodes without a caption", fix="leave out --caption")
    found = encoders.find(text_encoder or tokenizer.guidance.partition(":")[0])
    features = encoders.encode_once(found, [caption], tokenizer.device, progress).features.guidance_RTD
    if features is None:
        raise UsageError(f"{tokenizer.name} reads {tokenizer.guidance}", f"'{found.folder}' is another text encoder")
    try:
        return tokenizer.with_guidance(features[0])
    except ValueError as problem:
        raise UsageError(f"{tokenizer.name} cannot read what this text encoder makes", str(problem)) from None


def _as_spec(spec: ModelSpec | str) -> ModelSpec:
    return (ModelSpec(spec) if isinstance(spec, str) else spec).with_files()


def _with_words(spec: ModelSpec, words: Sequence[str]) -> ModelSpec:
    """The spec with these captions, unless it has others."""
    if not words or spec.caption_choice.is_given:
        return spec
    return replace(spec, templates=(ALONE,), template_names=tuple(dict.fromkeys(words)))


def with_bank(model: LoadedModel, bank: Bank) -> LoadedModel:
    """The model with the bank's classes after its own; those keep their ids and, bit for bit, their scores.

    Raises: UsageError for a bank of another model, CheckpointError for a corrupt addition.
    """
    bank.check(model.as_base())
    base = base_of(model.likelihood)
    added = [AddedClass.from_tensors(base, bank.tensors(a), a.scale, str(bank.path / a.file)) for a in bank.additions]
    likelihood: LikelihoodModel = AddedClassesModel(base, added) if added else base
    load = partial(_load_with_bank_on, model.load, bank)
    return replace(model, likelihood=likelihood, classes=bank.extend(model.classes), bank=bank, base=model, load=load)


def _load_model_on(spec: ModelSpec, device: str, precision: str | None = None) -> LoadedModel:
    return load_model(replace(spec, device=device, precision=precision or spec.precision))


def _load_with_bank_on(load: LoadModel, bank: Bank, device: str, precision: str | None = None) -> LoadedModel:
    return with_bank(load(device, precision), bank)


def _model_card(name: str) -> ModelCard:
    card = any_card(name)
    if isinstance(card, TokenizerCard):
        raise UsageError(f"'{name}' is a tokenizer", "it has no classes", "name a model: avarc models lists them")
    return card
