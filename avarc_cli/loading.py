"""From a card's name or a file's path to a model that scores and a tokenizer that encodes."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avarc_cli import bank as banks
from avarc_cli import environment
from avarc_cli.bank import Bank, Base
from avarc_cli.data.labels import LabelSpace, imagenet1k
from avarc_cli.errors import CheckpointError, UsageError, describe_differences
from avarc_cli.layers import precision as precisions
from avarc_cli.layers.precision import Precision
from avarc_cli.layout import TokenLayout
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.models.var import added as var_added
from avarc_cli.zoo import checkpoint, local_files
from avarc_cli.zoo.cards import (
    SCALES_256,
    ModelCard,
    TokenizerCard,
    any_card,
    model_cards,
    tokenizer_card,
    tokenizer_cards,
)
from avarc_kernels import triton_missing

# family -> module with `scales(tensors, source) -> patch_nums` and
# `build(tensors, tokenizer network, precision=, kernels=, device=, source=) -> LikelihoodModel`
FAMILIES = {"var": "avarc_cli.models.var.likelihood"}
# family -> "module:Class" with `from_state_dict(tensors, patch_nums, source=)` and what LoadedTokenizer calls
TOKENIZERS = {"vqvae": "avarc_cli.tokenizers.vqvae:VQVAE"}
KERNELS = ("auto", "triton", "torch")
DEVICE_TYPES = ("cpu", "cuda", "mps", "xpu")
IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class LoadedTokenizer:
    """An image tokenizer on its device, with the identity that token caches record (likelihood.Tokenizer).

    It computes in full float32, whatever the precision of the run: a token is an argmin, and one that flips changes
    all after it. The encoder alone can be had in bfloat16 (`at`); codes are looked up in float32 even then.
    """

    network: Any  # a module of one of TOKENIZERS
    name: str
    file: str
    sha256: str
    preprocess: str
    metadata: Mapping[str, str]
    precision: str = "fp32"
    inferred: Mapping[str, str] = field(default_factory=dict)  # values that the file does not state -> how inferred

    def at(self, precision: str) -> LoadedTokenizer:
        """The same tokenizer with its encoder in "fp32" or "bf16" (CUDA). Raises UsageError for anything else."""
        if precision not in ("fp32", "bf16"):
            raise UsageError(f"images are not encoded in {precision}", "there are fp32 and, on a GPU, bf16")
        if precision == "bf16" and self.device.type != "cuda":
            raise UsageError("encoding in bf16 needs a CUDA device", f"this run uses {self.device}", "use fp32")
        return replace(self, precision=precision)

    @property
    def layout(self) -> TokenLayout:
        """Where the tokens lie."""
        return TokenLayout.multi_scale(self.patch_nums)

    @property
    def patch_nums(self) -> tuple[int, ...]:
        return tuple(self.network.config.patch_nums)

    @property
    def image_size(self) -> int:
        return int(self.network.config.image_size)

    @property
    def vocab_size(self) -> int:
        return int(self.network.config.vocab_size)

    @property
    def num_tokens(self) -> int:
        return sum(p * p for p in self.patch_nums)

    @property
    def device(self) -> torch.device:
        place: torch.device = next(self.network.parameters()).device
        return place

    def encode(self, images_B3HW: Tensor) -> Tensor:
        pixels = images_B3HW.to(self.device).contiguous(memory_format=torch.channels_last)
        half = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        with full_float32(), half:
            latents: Tensor = self.network.encode(pixels)
        return latents.float().contiguous()

    def quantize(self, latents: Tensor) -> Tensor:
        with full_float32():
            tokens: Tensor = self.network.tokenize(latents.to(self.device))
        return tokens

    def decode(self, tokens_BL: Tensor) -> Tensor:
        with full_float32():
            images: Tensor = self.network.reconstruct(tokens_BL.to(self.device))
        return images.contiguous()


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
    kernels: str = "torch"
    arithmetic: str = ""  # what the precision means on this device
    bank: Bank | None = None  # where the classes after the model's own come from

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
            "bank": None if self.bank is None else self.bank.protocol(),
            "precision": self.precision,
            "arithmetic": self.arithmetic,
            "device": self.device,
            "device_name": _device_name(torch.device(self.device)),
            "kernels": self.kernels,
        }

    def as_base(self) -> Base:
        """What a class bank says about the model it was made for."""
        return Base(name=self.name, sha256=self.sha256, tokenizer_sha256=self.tokenizer.sha256)

    @property
    def offsets(self) -> np.ndarray:
        """Nats to add to each class's score (num_classes,), so that old and added classes compare fairly."""
        own = len(self.classes) - (len(self.bank.additions) if self.bank else 0)
        return np.zeros(own) if self.bank is None else self.bank.offsets(own)


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
        implied = card.tokenizer if isinstance(card, ModelCard) else card.name
        loaded = _read_tokenizer(tokenizer or implied, patch_nums or card.patch_nums, place)
        _check_pair(card.name, None, card.patch_nums, loaded)
        return loaded
    if tokenizer is None:
        return _read_tokenizer(model, patch_nums, place)
    read = checkpoint.read(Path(model))
    scales = _family(read, "var").scales(read.tensors, model)
    loaded = _read_tokenizer(tokenizer, patch_nums or scales, place)
    _check_pair(model, read.metadata.get("tokenizer_sha256"), scales, loaded)
    return loaded


def load_model(
    model: str,
    tokenizer: str | None = None,
    *,
    class_names: str | None = None,
    precision: str = "fp32",
    device: str = "auto",
    kernels: str = "auto",
    bank: Path | None = None,
    lora: Path | None = None,
) -> LoadedModel:
    """A model ready to score, with its tokenizer.

    Args:
        model: name of a model card, or path of a checkpoint (then `tokenizer` is needed).
        tokenizer: name of a tokenizer card or path, in place of the implied one.
        class_names: text file with one class a line, in the order of the model's class ids.
        precision: "fp32", "tf32" (CUDA only), "bf16", "fp16", "int8" or "fp8" (CUDA only).
        kernels: "torch", "triton", or "auto" (`pick_kernels`).
        bank: folder with classes that were added to this model (avarc add-class).
        lora: folder with a LoRA adapter, as PEFT saves them, to merge into the weights.
    Raises: as load_tokenizer.
    """
    place = pick_device(device)
    computes, runs = set_precision(precision, place), pick_kernels(kernels, place)
    name, path, implied, space, family = _locate(model)
    if tokenizer is None and implied is None:
        raise UsageError(
            f"which tokenizer does {model} read?",
            "a generator's checkpoint does not hold its tokenizer",
            f"add --tokenizer NAME|FILE; published VARs read {tokenizer_cards()[1].name}",
        )
    read = checkpoint.read(path)
    if lora is not None:
        read, name = checkpoint.adapted(read, lora), f"{name} with {lora.name}"
    module = _family(read, family)
    scales = module.scales(read.tensors, str(path))
    loaded = _read_tokenizer(tokenizer or str(implied), scales, place)
    _check_pair(str(path), read.metadata.get("tokenizer_sha256"), scales, loaded)
    likelihood: LikelihoodModel = module.build(
        read.tensors, loaded.network, precision=computes, kernels=runs, device=place, source=str(path)
    )
    classes = _class_space(likelihood.num_classes, space, class_names, read.metadata)
    model_alone = LoadedModel(
        *(likelihood, loaded, classes, name, str(path), read.sha256, precision, str(place), runs),
        arithmetic=precisions.arithmetic(computes, place),
    )
    return model_alone if bank is None else with_bank(model_alone, banks.read(bank))


def with_bank(model: LoadedModel, bank: Bank) -> LoadedModel:
    """The model with the bank's classes after its own; those keep their ids and, bit for bit, their scores.

    Raises: UsageError for a bank of another model, CheckpointError for a damaged addition.
    """
    bank.check(model.as_base())
    base = var_added.base_of(model.likelihood)
    additions = [
        var_added.AddedClass.from_tensors(bank.tensors(a), a.scale, base.var.config, str(bank.path / a.file))
        for a in bank.additions
    ]
    likelihood: LikelihoodModel = var_added.add(base, additions) if additions else base
    return replace(model, likelihood=likelihood, classes=bank.extend(model.classes), bank=bank)


def is_path(name: str) -> bool:
    """Whether a --model or --tokenizer value names a file rather than a card."""
    known = {card.name for card in model_cards()} | {card.name for card in tokenizer_cards()}
    return name not in known and ("/" in name or Path(name).suffix != "" or Path(name).exists())


def pick_device(device: str) -> torch.device:
    """The device that "auto" or a name stands for. Raises UsageError for one that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    what, fix = f"cannot use device '{device}'", "use auto or cpu; avarc doctor lists devices"
    try:
        place = torch.device(device)
        if place.type not in DEVICE_TYPES:  # meta, for one, is always there and computes nothing
            raise UsageError(what, f"avarc runs on {', '.join(DEVICE_TYPES)}", fix)
        torch.empty(0, device=place)
    except (ImportError, RuntimeError, AssertionError) as error:
        raise UsageError(what, str(error).partition("\n")[0].partition(". ")[0], fix) from None
    return place


def pick_kernels(kernels: str, device: torch.device) -> str:
    """The implementation that "auto" or a name stands for: plain PyTorch, while no GPU has timed our own kernels.

    Raises: UsageError for one that is unknown or cannot run there.
    """
    if kernels not in KERNELS:
        raise UsageError(f"no kernels '{kernels}'", f"there are {', '.join(KERNELS)}")
    why = triton_missing(device)
    if kernels == "triton" and why is not None:
        raise UsageError("cannot use the triton kernels", why, "use --kernels auto, or torch")
    return "torch" if kernels == "auto" else kernels


def set_precision(precision: str, device: torch.device) -> Precision:
    """The precision of this name; allows or forbids TF32 in float32 matrix products, which is a switch of torch's.

    Convolutions, which only tokenizers have, never use TF32.
    Raises: UsageError for a precision that is not to be had.
    """
    computes = precisions.find(precision, device)
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = False  # torch's default is True
    return computes


@contextmanager
def full_float32() -> Iterator[None]:
    """No TF32 inside, not even in a tf32 run."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "xpu":
        return torch.xpu.get_device_name(device)
    return str(environment.machine()["cpu"])  # with mps the GPU is part of it


def _locate(model: str) -> tuple[str, Path, str | None, str | None, str]:
    """(name, file, implied tokenizer, label space, family)."""
    if is_path(model):
        return Path(model).name, Path(model), None, None, "var"
    card = any_card(model)
    if isinstance(card, TokenizerCard):
        raise UsageError(f"'{model}' is a tokenizer", "it has no classes", "name a model: avarc models lists them")
    return card.name, local_files.require(card), card.tokenizer, card.label_space, card.family


def _read_tokenizer(spec: str, patch_nums: tuple[int, ...] | None, device: torch.device) -> LoadedTokenizer:
    if is_path(spec):
        name, path, preprocess, family = Path(spec).name, Path(spec), "resize-crop", "vqvae"
    else:
        card = tokenizer_card(spec)
        name, path, preprocess, family = card.name, local_files.require(card), card.preprocess, card.family
        patch_nums = patch_nums or card.patch_nums
    read = checkpoint.read(path)
    if "class_emb.weight" in read.tensors:
        raise UsageError(
            f"{path} is a generator, not a tokenizer", "it has class embeddings", "add --tokenizer NAME|FILE"
        )
    module, _, kind = _known(read, family, TOKENIZERS).partition(":")
    make = getattr(importlib.import_module(module), kind).from_state_dict
    scales = patch_nums or _read_scales(read.metadata, str(path)) or SCALES_256
    network = make(read.tensors, scales, source=str(path)).to(device, memory_format=torch.channels_last)
    if device.type == "cpu":
        network.speed_up()
    torch.backends.cudnn.allow_tf32 = False  # torch's default is True
    preprocess = read.metadata.get("preprocess", preprocess)
    return LoadedTokenizer(network, name, str(path), read.sha256, preprocess, read.metadata)


def _family(read: checkpoint.Checkpoint, default: str) -> Any:
    """The module that FAMILIES names for a generator's file."""
    return importlib.import_module(_known(read, default, FAMILIES))


def _known(read: checkpoint.Checkpoint, default: str, families: Mapping[str, str]) -> str:
    family = read.metadata.get("family", default)
    if family not in families:
        raise CheckpointError(
            f"{read.path} holds a model of the family '{family}'",
            f"expected here is {' or '.join(families)}",
            "pass another file, or upgrade avarc",
        )
    return families[family]


def _check_pair(generator: str, sha256: str | None, scales: tuple[int, ...], tokenizer: LoadedTokenizer) -> None:
    """Raises CheckpointError when the generator learned another tokenizer's tokens, as far as the files tell.

    sha256 is of the tokenizer's file that the generator was trained with; None where unknown.
    """
    own = _read_scales(tokenizer.metadata, tokenizer.file)
    expected, found = {"sha256": sha256, "scales": scales}, {"sha256": tokenizer.sha256, "scales": own}
    known = {name: value for name, value in expected.items() if value and found[name]}
    sides = (f"for {generator}", f"in {tokenizer.file}")
    if differences := describe_differences(known, {name: found[name] for name in known}, sides=sides):
        fix = "pass the tokenizer that it was trained with"
        raise CheckpointError(f"{generator} reads the tokens of another tokenizer", differences, fix)


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


def _read_scales(metadata: Mapping[str, str], source: str) -> tuple[int, ...] | None:
    text = metadata.get("patch_nums", "")
    if text and not all(n.isdecimal() and int(n) > 0 for n in text.split(",")):
        raise CheckpointError(f"the scales in {source} cannot be read", f"'{text}'", "give them with --patch-nums")
    return tuple(int(n) for n in text.split(",")) if text else None
