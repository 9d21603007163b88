"""From a card's name or a file's path to a model that scores and a tokenizer that encodes."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avarc_cli.data.labels import LabelSpace, imagenet1k
from avarc_cli.errors import CheckpointError, UsageError
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.models.vqvae import VQVAE
from avarc_cli.zoo import checkpoint, files
from avarc_cli.zoo.cards import (
    SCALES_256,
    ModelCard,
    TokenizerCard,
    any_card,
    model_cards,
    tokenizer_card,
    tokenizer_cards,
)

# family -> "module:function" that makes a LikelihoodModel of (tensors, tokenizer network, dtype, source)
FAMILIES = {"var": "avarc_cli.models.var_likelihood:build"}
PRECISIONS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class LoadedTokenizer:
    """An image tokenizer on its device, with the identity that token caches record (likelihood.Tokenizer)."""

    network: VQVAE
    name: str
    file: str
    sha256: str
    preprocess: str
    metadata: Mapping[str, str]

    @property
    def patch_nums(self) -> tuple[int, ...]:
        return self.network.config.patch_nums

    @property
    def image_size(self) -> int:
        return self.network.config.image_size

    @property
    def vocab_size(self) -> int:
        return self.network.config.vocab_size

    @property
    def num_tokens(self) -> int:
        return sum(p * p for p in self.patch_nums)

    def encode(self, images_B3HW: Tensor) -> Tensor:
        device = self.network.quant_conv.weight.device
        pixels = images_B3HW.to(device).contiguous(memory_format=torch.channels_last)
        latents: Tensor = self.network.encode(pixels)
        return latents.contiguous()

    def quantize(self, latents: Tensor) -> Tensor:
        return self.network.tokenize(latents.to(self.network.quant_conv.weight.device))

    def decode(self, tokens: Tensor) -> Tensor:
        return self.network.reconstruct(tokens.to(self.network.quant_conv.weight.device))


@dataclass(frozen=True)
class LoadedModel:
    """A likelihood model with its tokenizer, its classes, and what a run records about it."""

    likelihood: LikelihoodModel
    tokenizer: LoadedTokenizer
    classes: LabelSpace
    name: str
    file: str
    sha256: str
    precision: str
    device: str

    def protocol(self) -> dict[str, Any]:
        """What a number from this model depends on."""
        return {
            "model": {"name": self.name, "file": Path(self.file).name, "sha256": self.sha256},
            "tokenizer": {
                "name": self.tokenizer.name,
                "file": Path(self.tokenizer.file).name,
                "sha256": self.tokenizer.sha256,
            },
            "label_space": self.classes.name,
            "precision": self.precision,
            "device": self.device,
        }


def load_tokenizer(
    model: str,
    tokenizer: str | None = None,
    *,
    patch_nums: tuple[int, ...] | None = None,
    device: str = "auto",
) -> LoadedTokenizer:
    """The tokenizer that `model` reads: a model's card implies it; a generator's file needs `tokenizer` beside it.

    Args:
        model: name of a model or tokenizer card, or path of a generator's or a tokenizer's checkpoint.
        tokenizer: name of a tokenizer card or path, in place of the implied one.
        patch_nums: scales, where no file or card tells them.
        device: "auto", "cpu", "cuda", "cuda:1", ...
    Raises: UsageError, CheckpointError, AvarcError for weights that are not on this machine.
    """
    place = pick_device(device)
    if not is_path(model):
        card = any_card(model)
        scales = patch_nums or card.patch_nums
        implied = card.tokenizer if isinstance(card, ModelCard) else card.name
        return _read_tokenizer(tokenizer or implied, scales, place)
    if tokenizer is None:
        return _read_tokenizer(model, patch_nums, place)
    scales = patch_nums or _scales_of_generator(checkpoint.read(Path(model)))
    return _read_tokenizer(tokenizer, scales, place)


def load_model(
    model: str,
    tokenizer: str | None = None,
    *,
    class_names: str | None = None,
    precision: str = "fp32",
    device: str = "auto",
) -> LoadedModel:
    """A model ready to score, with its tokenizer.

    Args:
        model: name of a model card, or path of a checkpoint (then `tokenizer` is needed).
        tokenizer: name of a tokenizer card or path, in place of the implied one.
        class_names: text file with one class a line, in the order of the model's class ids.
        precision: "fp32", "tf32" (CUDA only), "bf16" or "fp16".
    Raises: as load_tokenizer.
    """
    place = pick_device(device)
    set_precision(precision, place)
    name, path, implied, space, family = _locate(model)
    if tokenizer is None and implied is None:
        raise UsageError(
            f"which tokenizer does {model} read?",
            "a generator's checkpoint does not hold its tokenizer",
            f"add --tokenizer NAME|FILE; published VARs read {tokenizer_cards()[1].name}",
        )
    read = checkpoint.read(path)
    family = read.metadata.get("family", family)
    if family not in FAMILIES:
        raise CheckpointError(
            f"{path} holds a model of the family '{family}'", f"this avarc knows {', '.join(FAMILIES)}", "upgrade avarc"
        )
    loaded = _read_tokenizer(tokenizer or str(implied), _scales_of_generator(read), place)
    module, _, function = FAMILIES[family].partition(":")
    build = getattr(importlib.import_module(module), function)
    likelihood: LikelihoodModel = build(
        read.tensors, loaded.network, dtype=PRECISIONS[precision], device=place, source=str(path)
    )
    classes = _class_space(likelihood.num_classes, space, class_names, read.metadata)
    return LoadedModel(likelihood, loaded, classes, name, str(path), read.sha256, precision, str(place))


def is_path(name: str) -> bool:
    """Whether a --model or --tokenizer value names a file rather than a card."""
    known = {card.name for card in model_cards()} | {card.name for card in tokenizer_cards()}
    return name not in known and ("/" in name or Path(name).suffix != "" or Path(name).exists())


def pick_device(device: str) -> torch.device:
    """The device that "auto" or a name stands for. Raises UsageError for one that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"cannot use device '{device}'", reason, "use auto or cpu; avarc doctor lists devices"
        ) from None
    return place


def set_precision(precision: str, device: torch.device) -> None:
    """Allow or forbid TF32 in float32 matrix products. Raises UsageError for a precision that is not to be had."""
    if precision not in PRECISIONS:
        raise UsageError(f"no precision '{precision}'", f"there are {', '.join(PRECISIONS)}")
    if precision == "tf32" and device.type != "cuda":
        raise UsageError("tf32 needs a CUDA device", f"this run uses {device}", "use --precision fp32")
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def _locate(model: str) -> tuple[str, Path, str | None, str | None, str]:
    """(name, file, implied tokenizer, label space, family)."""
    if is_path(model):
        return Path(model).name, Path(model), None, None, "var"
    card = any_card(model)
    if isinstance(card, TokenizerCard):
        raise UsageError(f"'{model}' is a tokenizer", "it has no classes", "name a model: avarc models lists them")
    return card.name, files.require(card), card.tokenizer, card.label_space, card.family


def _read_tokenizer(spec: str, patch_nums: tuple[int, ...] | None, device: torch.device) -> LoadedTokenizer:
    if is_path(spec):
        name, path, preprocess = Path(spec).name, Path(spec), "resize-crop"
    else:
        card = tokenizer_card(spec)
        name, path, preprocess = card.name, files.require(card), card.preprocess
        patch_nums = patch_nums or card.patch_nums
    read = checkpoint.read(path)
    if "class_emb.weight" in read.tensors:
        raise UsageError(
            f"{path} is a generator, not a tokenizer", "it has class embeddings", "add --tokenizer NAME|FILE"
        )
    scales = patch_nums or _read_scales(read) or SCALES_256
    network = VQVAE.from_state_dict(read.tensors, scales, source=str(path))
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    preprocess = read.metadata.get("preprocess", preprocess)
    return LoadedTokenizer(network, name, str(path), read.sha256, preprocess, read.metadata)


def _scales_of_generator(read: checkpoint.Checkpoint) -> tuple[int, ...]:
    from avarc_cli.models.var import read_config

    return read_config(read.tensors, str(read.path)).patch_nums


def _class_space(
    num_classes: int, space: str | None, class_names: str | None, metadata: Mapping[str, str]
) -> LabelSpace:
    """What the class ids mean: the user's list, the file's own, the card's, else ImageNet for 1000, else numbers."""
    if class_names is not None:
        return _named(Path(class_names).name, _read_lines(Path(class_names)), num_classes)
    if "class_names" in metadata:
        return _named("the checkpoint's classes", _read_names(metadata["class_names"]), num_classes)
    if space == "imagenet1k" or num_classes == IMAGENET_CLASSES:
        return imagenet1k()
    return _named("class numbers", tuple(str(i) for i in range(num_classes)), num_classes)


def _named(name: str, ids: tuple[str, ...], num_classes: int) -> LabelSpace:
    if len(ids) != num_classes or len(set(ids)) != len(ids):
        raise UsageError(
            f"{name}: the class names do not fit the model",
            f"{len(ids)} names, {len(set(ids))} of them different; the model has {num_classes} classes",
            "give one name a line, in the order of the class ids",
        )
    return LabelSpace(name, ids, ids)


def _read_lines(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the class names in {path}", str(error)) from None
    return tuple(line.strip() for line in lines if line.strip())


def _read_names(text: str) -> tuple[str, ...]:
    try:
        return tuple(str(name) for name in json.loads(text))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            "the class names in the checkpoint cannot be read", str(error), "use --class-names"
        ) from None


def _read_scales(read: checkpoint.Checkpoint) -> tuple[int, ...] | None:
    text = read.metadata.get("patch_nums", "")
    if text and not all(n.isdecimal() and int(n) > 0 for n in text.split(",")):
        raise CheckpointError(f"the scales in {read.path} cannot be read", f"'{text}'", "give them with --patch-nums")
    return tuple(int(n) for n in text.split(",")) if text else None
