"""A tokenizer and a model as they were loaded: the networks, and what a run records about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from avarc_cli.bank import Bank, Base
from avarc_cli.captioning import BoundCaptions
from avarc_cli.data.labels import LabelSpace
from avarc_cli.devices import device_name
from avarc_cli.errors import CheckpointError, UsageError
from avarc_cli.heap import return_freed_memory
from avarc_cli.layers.convolution import free_layouts
from avarc_cli.layers.mapped import give_back
from avarc_cli.layers.precision import tf32
from avarc_cli.layout import TokenLayout
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.settings import check_encoder_precision, precision_of_winners
from avarc_cli.tokenizer import TokenizerNetwork
from avarc_cli.zoo.card import LocalFile, ModelCard, TokenizerCard


@dataclass(frozen=True)
class LoadedTokenizer:
    """An image tokenizer on its device, with the identity that token caches record (tokenizer.Tokenizer).

    It computes in full float32, whatever the precision of the run: a token is an argmin, and one that flips changes
    all after it. The encoder alone can run in bfloat16 (`at`); codes are looked up in float32 even then.
    """

    network: TokenizerNetwork
    family: str  # a name in families.TOKENIZERS
    name: str  # of its card, or of its file
    file: str  # path
    sha256: str  # of the file
    preprocess: str  # default preprocessing mode
    layout: TokenLayout  # of its tokens
    load: Callable[[str], LoadedTokenizer]  # loads it again, in fp32, on a device of this name; picklable
    precision: str = "fp32"  # of the encoder
    weights: str = ""  # which of several sets of weights in the file were read
    weight_set: str | None = None  # the one that was asked for
    notes: tuple[str, ...] = ()  # what else is to be said about it

    def at(self, precision: str) -> LoadedTokenizer:
        """The same tokenizer with its encoder in "fp32" or "bf16" (CUDA). Raises UsageError for anything else."""
        check_encoder_precision(precision)
        if precision == "bf16" and self.device.type != "cuda":
            raise UsageError("encoding in bf16 needs a CUDA device", f"this run uses {self.device}", "use fp32")
        return replace(self, precision=precision)

    @property
    def image_size(self) -> int:
        return self.network.image_size

    @property
    def vocab_size(self) -> int:
        return self.network.vocab_size

    @property
    def channels(self) -> int:
        return self.network.channels

    @property
    def guidance(self) -> str | None:
        """The text features that the decoder needs, as `TokenizerNetwork.guidance`."""
        return self.network.guidance

    @property
    def inferred(self) -> Mapping[str, str]:
        """What was assumed where no file states it: name -> what, and why; and "weights", if there are several."""
        return ({"weights": self.weights} if self.weights else {}) | dict(self.network.inferred)

    def card(self, name: str, *, license: str) -> TokenizerCard:
        """A card for this file, under a name of the user's."""
        return TokenizerCard(
            name=name,
            family=self.family,
            image_size=self.image_size,
            layout=self.layout,
            params=None,
            license=license,
            source=self.file,
            weights=LocalFile(Path(self.file), self.weight_set),
            preprocess=self.preprocess,
            channels=self.channels,
        )

    def with_guidance(self, features: Tensor) -> LoadedTokenizer:
        """The same tokenizer with a caption's features for its decoder, as `TokenizerNetwork.with_guidance`."""
        return replace(self, network=self.network.with_guidance(features.to(self.device)))

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def encode(self, images_B3HW: Tensor) -> Tensor:
        pixels = images_B3HW.to(self.device).contiguous(memory_format=torch.channels_last)
        half = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        with tf32(False), half:
            latents = self.network.encode(pixels)
        return latents.float().contiguous()

    def free_memory(self) -> None:
        """Free what encoding keeps for more images: weights that are mapped from a file, and what was made of them.

        If more images follow after all, the weights are read again, and what was made of them is made again.
        """
        free_layouts(self.network)
        for parameter in self.network.parameters():
            give_back(parameter.detach())
        return_freed_memory()

    def quantize(self, latents: Tensor) -> Tensor:
        with tf32(False):
            return self.network.tokenize(latents.to(self.device))

    def draw(self, latents: Tensor, noise_BLZ: Tensor) -> Tensor:
        # In float64 on the CPU: then a token's bits depend neither on the device nor, by roundings, on the batch.
        return self.network.draw(latents.cpu().double(), noise_BLZ.cpu().double()).float()

    def decode(self, tokens_BL: Tensor) -> Tensor:
        with tf32(False):
            return self.network.reconstruct(tokens_BL.to(self.device)).contiguous()

    def decode_latents(self, latents: Tensor) -> Tensor:
        """As `TokenizerNetwork.decode_latents`."""
        with tf32(False):
            return self.network.decode_latents(latents.to(self.device)).contiguous()

    def footprints(self, tokens_L: Tensor) -> Tensor | None:
        """As `TokenizerNetwork.footprints`."""
        with tf32(False):
            return self.network.footprints(tokens_L.to(self.device))

    def loader(self) -> Callable[[str], LoadedTokenizer]:
        return partial(_load_tokenizer, self.load, self.precision, self.sha256)


class LoadModel(Protocol):
    """Loads a model again, on a device of this name, in its own precision or another; picklable."""

    def __call__(self, device: str, precision: str | None = None, /) -> LoadedModel: ...


@dataclass(frozen=True)
class LoadedModel:
    """A likelihood model with its tokenizer, its classes, and what a run records about it."""

    likelihood: LikelihoodModel  # what scores
    family: str  # a name in families.GENERATORS
    tokenizer: LoadedTokenizer  # the one that it reads
    classes: LabelSpace  # what the class ids mean
    name: str  # of its card, or of its file
    file: str  # path
    sha256: str  # of the file
    precision: str  # a value of --precision; "bf16+fp32" in a cascade, of which this is the model in bf16
    device: str  # as torch names it
    load: LoadModel
    kernels: str = "torch"  # as `devices.pick_kernels` names them
    arithmetic: str = ""  # what the precision means on this device
    weight_set: str | None = None  # the one of several sets of weights that was asked for
    inferred: Mapping[str, str] = field(default_factory=dict)
    """Values that no file states: name -> what was assumed; and "weights": which of several sets was read."""
    stated: Mapping[str, Any] = field(default_factory=dict)  # values of its configuration that other files state
    given: Mapping[str, Any] = field(default_factory=dict)  # the fields of `loading.ModelSpec`
    lora: str = ""  # the adapter that was merged into the weights
    bank: Bank | None = None  # where the classes after the model's own come from
    base: LoadedModel | None = None  # the model without the bank; None where there is none
    captions: BoundCaptions | None = None  # what the classes of a model of captions are

    @property
    def notes(self) -> tuple[str, ...]:
        """What else is to be said about it."""
        return self.captions.notes if self.captions else ()

    def protocol(self) -> dict[str, Any]:
        """What a number from this model depends on."""
        optional: dict[str, Any] = {"lora": self.lora, "stated": dict(self.stated), "inferred": dict(self.inferred)}
        optional |= {"captions": self.captions.protocol() if self.captions else None}
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
            "device_name": device_name(torch.device(self.device)),
            "kernels": self.kernels,
        } | {name: value for name, value in optional.items() if value}

    def decoder(self, class_ids: Sequence[int]) -> LoadedTokenizer:
        """The tokenizer, to decode images of these classes; a decoder that reads text gets their captions."""
        reads_text = self.captions is not None and self.tokenizer.guidance is not None
        guidance = self.captions.guidance(class_ids) if self.captions is not None and reads_text else None
        return self.tokenizer if guidance is None else self.tokenizer.with_guidance(guidance)

    def made_for(self) -> dict[str, Any]:
        """What the guarantee of a tuned plan depends on in the model."""
        return {
            "model": self.sha256,
            "tokenizer": self.tokenizer.sha256,
            "bank": None if self.bank is None else self.bank.protocol(),
            "captions": None if self.captions is None else self.captions.protocol(),
            "precision": precision_of_winners(self.precision),
        }

    def card(self, name: str, *, tokenizer: str, license: str) -> ModelCard:
        """A card for this file, under a name of the user's; tokenizer: name or path of the one that it reads."""
        text = self.likelihood.text
        return ModelCard(
            name=name,
            family=self.family,
            tokenizer=tokenizer,
            image_size=self.tokenizer.image_size,
            layout=self.tokenizer.layout,
            channels=self.likelihood.channels,
            num_classes=self.likelihood.num_classes,
            label_space=self.classes.name,
            params=None,
            license=license,
            source=self.file,
            weights=LocalFile(Path(self.file), self.weight_set),
            condition="class" if text is None else "caption",
            text_encoder="" if text is None else text.encoder,
        )

    def as_base(self) -> Base:
        """What a class bank says about the model it was made for."""
        return Base(name=self.name, sha256=self.sha256, tokenizer_sha256=self.tokenizer.sha256)

    @property
    def offsets(self) -> np.ndarray:
        """Nats to add to each class's score (num_classes,), so that old and added classes compare fairly."""
        own = len(self.classes) - (len(self.bank.additions) if self.bank else 0)
        return np.zeros(own) if self.bank is None else self.bank.offsets(own)

    def loader(self) -> LoadModel:
        """Loads this model in another process, or in another precision. Picklable.

        The function raises: CheckpointError when the files have changed; otherwise as `loading.load_model`.
        """
        captions = self.captions.captions.digest if self.captions else ""
        return partial(_load_model, self.load, self.sha256, self.tokenizer.sha256, captions)


def check_channels(generator: str, likelihood: LikelihoodModel, tokenizer: LoadedTokenizer) -> None:
    """Raises: CheckpointError when the generator reads continuous tokens of another width than the tokenizer's."""
    if likelihood.channels != tokenizer.channels:
        raise CheckpointError(
            f"{generator} reads the tokens of another tokenizer",
            f"it reads tokens of {likelihood.channels} channels; those of {tokenizer.file} have {tokenizer.channels}",
            "pass the tokenizer that it was trained with",
        )


def check_pair(generator: str, sha256: str | None, layout: TokenLayout | None, tokenizer: LoadedTokenizer) -> None:
    """Raises: CheckpointError when the generator learned another tokenizer's tokens, as far as the files tell.

    sha256 is of the tokenizer's file that the generator was trained with, layout of its tokens; None where unknown.
    """
    pairs: tuple[tuple[str, object, object], ...] = (
        ("sha256", sha256, tokenizer.sha256),
        ("layout", layout, tokenizer.layout),
    )
    for what, expected, found in pairs:
        if expected and expected != found:
            raise CheckpointError(
                f"{generator} reads the tokens of another tokenizer",
                f"it was trained with {what} {expected}; {tokenizer.file} has {found}",
                "pass the tokenizer that it was trained with",
            )


def check_kind(generator: str, continuous: bool, tokenizer: LoadedTokenizer) -> None:
    """Raises: UsageError where a generator reads continuous tokens and the tokenizer gives codes, or the reverse.

    Args:
        generator: its name. continuous: which of the two it reads.
    """
    if continuous == bool(tokenizer.channels):
        return
    reads, gives = ("continuous tokens", "codes") if continuous else ("codes", "continuous tokens")
    raise UsageError(
        f"{generator} cannot read the tokens of {tokenizer.name}",
        f"it reads {reads}, {tokenizer.name} gives {gives}",
        "pass the tokenizer that it was trained with",
    )


def _load_tokenizer(
    load: Callable[[str], LoadedTokenizer], precision: str, sha256: str, device: str
) -> LoadedTokenizer:
    tokenizer = load(device)
    check_unchanged(tokenizer.file, sha256, tokenizer.sha256)
    return tokenizer.at(precision)


def _load_model(
    load: LoadModel, sha256: str, tokenizer_sha256: str, captions: str, device: str, precision: str | None = None
) -> LoadedModel:
    model = load(device, precision)
    if model.captions is not None:
        check_unchanged(model.captions.captions.source, captions, model.captions.captions.digest)
    check_unchanged(model.file, sha256, model.sha256)
    check_unchanged(model.tokenizer.file, tokenizer_sha256, model.tokenizer.sha256)
    return model


def check_unchanged(file: str, before: str, now: str) -> None:
    """Raises: CheckpointError when a file that is loaded again has another sha256 than before."""
    if before != now:
        why, fix = f"its sha256 was {before}, it is {now}", "put the file back, or run the command again with this one"
        raise CheckpointError(f"'{file}' changed while it was in use", why, fix)
