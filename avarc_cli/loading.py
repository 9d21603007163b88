"""From a card's name or a file's path to a model that scores and a tokenizer that encodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from avarc_cli import bank as banks
from avarc_cli import families, product_library, strict_json
from avarc_cli.added_classes import AddedClass, AddedClassesModel, base_of
from avarc_cli.bank import Bank
from avarc_cli.captioning import UNBOUND, bind
from avarc_cli.data.class_names import class_space
from avarc_cli.devices import pick_device, pick_kernels
from avarc_cli.errors import CheckpointError, UsageError
from avarc_cli.layers import convolution
from avarc_cli.layers import precision as precisions
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layers.precision import Precision
from avarc_cli.layers.state_dict import known_finite
from avarc_cli.layout import TokenLayout
from avarc_cli.likelihood import GeneratorConfig, LikelihoodModel
from avarc_cli.loaded import LoadedModel, LoadedTokenizer, LoadModel, check_channels, check_kind, check_pair
from avarc_cli.model_spec import ModelSpec as ModelSpec
from avarc_cli.progress import StartProgress, silent
from avarc_cli.settings import check_kernels_compute
from avarc_cli.text import encoders
from avarc_cli.text.captions import ALONE
from avarc_cli.zoo import checkpoint, local_files, model_folder, weight_sets
from avarc_cli.zoo.cards import (
    ModelCard,
    TokenizerCard,
    any_card,
    check_condition,
    is_path,
    tokenizer_card,
    tokenizer_cards,
)

CONFIG = "config.json"  # beside the weights, in the format of the model's reference implementation


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
        loaded = _read_tokenizer(tokenizer or implied, own, device, layout, card.layout)
        if isinstance(card, ModelCard):
            check_kind(card.name, bool(card.channels), loaded)
        if layout is None or isinstance(card, ModelCard):  # a tokenizer's card says how it is used by default
            check_pair(card.name, None, card.layout, loaded)
        return loaded
    if tokenizer is None:
        return _read_tokenizer(model, alone, device, layout, None)
    read = checkpoint.read(Path(model), weight_set=spec.weight_set)
    stated = _stated(read, spec.model_config, "--model-config", first=layout)
    family = families.GENERATORS.recognize(
        read.tensors, _stated_family(stated, families.GENERATORS, families.TOKENIZERS), model
    )
    modelled = family.read_config(read.tensors, stated, model).layout
    loaded = _read_tokenizer(tokenizer, spec, device, layout, modelled)
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
    reader = _tokenizer_for(spec, card)
    path, name = _place(spec.model, card)
    weight_set = spec.weight_set or local_files.weight_set(card)
    read = checkpoint.read(path, weight_set=weight_set, lora_alpha=spec.lora_alpha)
    path = read.path
    if spec.lora is not None:
        read, name = checkpoint.with_adapter(read, Path(spec.lora)), f"{name} with {Path(spec.lora).name}"
    stated = _stated(read, spec.model_config, "--model-config", last=card.layout if card else None)
    named = _stated_family(stated, families.GENERATORS, families.TOKENIZERS) or (card.family if card else None)
    family = families.GENERATORS.recognize(read.tensors, named, str(path))
    config = family.read_config(read.tensors, stated, str(path))
    tokenizer = _read_tokenizer(reader, spec, device, None, config.layout)
    check_kind(name, family.continuous, tokenizer)
    check_pair(str(path), read.metadata.get("tokenizer_sha256"), config.layout, tokenizer)
    with known_finite(read.is_finite):
        likelihood = family.build(
            config,
            read.tensors,
            tokenizer.network,
            precision=precision,
            kernels=kernels,
            device=device,
            source=str(path),
        )
    read.note_finite()
    check_channels(str(path), likelihood, tokenizer)
    captions = None
    spec = _with_words(spec, words if likelihood.text else ())
    if likelihood.text is not None and unbound:
        classes = UNBOUND
    elif likelihood.text is not None or spec.caption_choice.is_given:
        likelihood, captions = bind(likelihood, spec.caption_choice, name, device, progress)
        classes = captions.captions.label_space
        if tokenizer.guidance is not None and captions.empty_guidance_TD is not None:
            tokenizer = tokenizer.with_guidance(captions.empty_guidance_TD)  # images of no particular caption
    else:
        _check_unused(spec, name)
        space = card.label_space if card else None
        classes = class_space(likelihood.num_classes, space, spec.class_names, read.metadata, spec.class_order)
    model_alone = LoadedModel(
        likelihood=likelihood,
        family=family.name,
        tokenizer=tokenizer,
        classes=classes,
        captions=captions,
        name=name,
        file=str(path),
        sha256=read.sha256,
        precision=spec.precision,
        device=str(device),
        load=partial(_load_model_on, replace(spec, bank=None)),
        kernels=kernels,
        arithmetic=precisions.arithmetic(precision, device, onednn=likelihood.onednn),
        lora=read.metadata.get("lora", ""),
        weight_set=weight_set,
        given=asdict(spec),
        stated=_stated_beside(stated, read),
        inferred=_inferred(read, config, tokenizer),
    )
    return model_alone if spec.bank is None else with_bank(model_alone, banks.read(Path(spec.bank)))


def _computing(spec: ModelSpec, device: torch.device) -> tuple[ModelSpec, Precision, str]:
    """The spec with "auto" replaced by what this device uses, the precision (of a cascade the cheap one), the kernels.

    Raises: UsageError for a precision, products or kernels that are unknown, not available here, or not for each other.
    """
    precision = precisions.resolve(spec.precision, device)
    spec = replace(spec, precision=precision, products=product_library.resolve(spec.products, device))
    kernels = pick_kernels(spec.kernels, device)
    check_kernels_compute(kernels, precision)
    return spec, product_library.find(precision.partition("+")[0], device, spec.products), kernels


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


def _stated_beside(stated: ConfigSources, read: checkpoint.Checkpoint) -> dict[str, Any]:
    """What the configuration takes from other files than the checkpoint, whose sha256 does not cover it."""
    used = stated.used.items()
    return {name: value for name, (value, where) in used if where != _metadata_of(read) and name != "family"}


def _inferred(read: checkpoint.Checkpoint, config: GeneratorConfig, tokenizer: LoadedTokenizer) -> dict[str, str]:
    """What was assumed about the generator and its tokenizer where no file states it, and which weights were read."""
    weights = {"weights": text} if (text := read.metadata.get(weight_sets.READ)) else {}
    return weights | dict(config.inferred) | {f"tokenizer {key}": text for key, text in tokenizer.inferred.items()}


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


def _place(spec: str, card: ModelCard | TokenizerCard | None) -> tuple[Path, str]:
    """Where the weights are, and what they are called. Raises: AvarcError if those of a card are not here."""
    return (local_files.require(card), card.name) if card else (Path(spec), model_folder.name_of(Path(spec)))


def _model_card(name: str) -> ModelCard:
    card = any_card(name)
    if isinstance(card, TokenizerCard):
        raise UsageError(f"'{name}' is a tokenizer", "it has no classes", "name a model: avarc models lists them")
    return card


def _read_tokenizer(
    name: str, spec: ModelSpec, device: torch.device, asked: TokenLayout | None, implied: TokenLayout | None
) -> LoadedTokenizer:
    """Load a tokenizer.

    Args:
        name: of a card, or path. spec: how it is read. asked: the layout that the user names. implied: the one of the
            generator or its card, for files that state none.
    """
    card, asked_name = None if is_path(name) else tokenizer_card(name), name
    path, name = _place(name, card)
    weight_set = spec.tokenizer_weight_set or local_files.weight_set(card)
    read = checkpoint.read(path, weight_set=weight_set)
    path, last = read.path, implied or (card.layout if card else None)
    pixels = {} if spec.image_size is None else {"image_size": spec.image_size}
    stated = _stated(read, spec.tokenizer_config, "--tokenizer-config", first=asked, last=last, pixels=pixels)
    family = families.TOKENIZERS.recognize(read.tensors, _tokenizer_family(read, stated, card), str(path))
    with known_finite(read.is_finite):
        network = family.build(read.tensors, stated, str(path))
    read.note_finite()
    if spec.image_size not in (None, network.image_size):
        raise UsageError(
            f"{name} does not read images of {spec.image_size} pixels",
            f"it reads {network.image_size}",
            f"leave out --image-size, or write --image-size {network.image_size}",
        )
    network.to(device)
    if device.type == "cpu":
        network.speed_up()
    convolution.to_channels_last(network)
    preprocess = read.metadata.get("preprocess", card.preprocess if card else "resize-crop")
    return LoadedTokenizer(
        network=network,
        family=family.name,
        name=name,
        file=str(path),
        sha256=read.sha256,
        preprocess=preprocess,
        layout=network.layout,
        load=partial(_read_tokenizer_on, asked_name, spec, asked, implied),
        weights=read.metadata.get(weight_sets.READ, ""),
        weight_set=weight_set,
    )


def _read_tokenizer_on(
    name: str, spec: ModelSpec, asked: TokenLayout | None, implied: TokenLayout | None, device: str
) -> LoadedTokenizer:
    return _read_tokenizer(name, spec, pick_device(device), asked, implied)


def _tokenizer_family(read: checkpoint.Checkpoint, stated: ConfigSources, card: TokenizerCard | None) -> str | None:
    """The family that a tokenizer's file or card names. Raises: UsageError when the file is a generator's."""
    family = _stated_family(stated, families.TOKENIZERS, families.GENERATORS) or (card.family if card else None)
    generators = families.GENERATORS.all().values()
    if family is None and any(not families.missing_tensors(each, read.tensors) for each in generators):
        raise UsageError(
            f"{read.path} is a generator, not a tokenizer", "it has class embeddings", "add --tokenizer NAME|FILE"
        )
    return family


def _stated(
    read: checkpoint.Checkpoint,
    config: str | Path | None,
    option: str,
    *,
    first: TokenLayout | None = None,
    last: TokenLayout | None = None,
    pixels: Mapping[str, int] | None = None,
) -> ConfigSources:
    """What is stated about a checkpoint beside its tensors, in order of precedence.

    Args:
        config: the file that an option of this name gives. first, last: layouts that come before and after all files.
        pixels: the image size that the user names, if any.
    """
    beside = read.path.with_name(CONFIG)
    sources: list[tuple[str, Mapping[str, Any]]] = []
    if first is not None:
        sources.append(("the command", {"layout": first.to_dict()}))
    if pixels:
        sources.append(("--image-size", pixels))
    if config is not None:
        sources.append((f"{option} {config}", _read_json(Path(config))))
    if beside.is_file():
        sources.append((str(beside), _read_json(beside)))
    sources.append((_metadata_of(read), read.metadata))
    if last is not None:
        sources.append(("the generator or its card", {"layout": last.to_dict()}))
    return ConfigSources(tuple(sources))


def _metadata_of(read: checkpoint.Checkpoint) -> str:
    return f"the metadata of {read.path}"


def _read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object. Raises: CheckpointError naming the file."""
    try:
        return strict_json.parse_object(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"the configuration {path} cannot be read", str(error), "correct or move the file"
        ) from None


def _stated_family(stated: ConfigSources, wanted: families.Registry[Any], other: families.Registry[Any]) -> str | None:
    """The family that files state, or None.

    A name of the other kind does not count: generator and tokenizer may lie beside the same config.json.
    """
    found = stated.find("family")
    name = None if found is None else str(found[0])
    return None if name in other.names() and name not in wanted.names() else name
