"""Model and tokenizer cards: facts only, nothing is imported or downloaded by reading them.

Sizes and file names: https://github.com/FoundationVision/VAR and https://github.com/thu-ml/CCA.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

from avarc_cli.errors import UsageError


@dataclass(frozen=True)
class HubFile:
    """A file in a Hugging Face repository; revision is a commit, or None where the card does not pin one."""

    repo: str
    filename: str
    revision: str | None = None


@dataclass(frozen=True)
class AssetFile:
    """A file shipped with avarc; filename is relative to avarc_cli/assets."""

    filename: str


@dataclass(frozen=True)
class LocalFile:
    """A file the user named."""

    path: Path


Weights: TypeAlias = HubFile | AssetFile | LocalFile


@dataclass(frozen=True, kw_only=True)
class TokenizerCard:
    """An image tokenizer. A token cache belongs to one of these, and serves every model that names it.

    builder is "module:Class", imported on first use; preprocess a mode of `avarc_cli.data.preprocess`;
    params is None where nobody has counted.
    """

    name: str
    family: str
    builder: str
    image_size: int  # pixels
    patch_nums: tuple[int, ...]  # tokens per side of each scale
    params: int | None
    weights: Weights
    license: str
    source: str
    preprocess: str

    @property
    def num_tokens(self) -> int:
        """Tokens per image."""
        return sum(p * p for p in self.patch_nums)


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """A generator that gives log p(tokens | class).

    tokenizer is the name of a TokenizerCard; likelihood is "exact", or "bound" for a model that only bounds it.
    """

    name: str
    family: str
    builder: str
    tokenizer: str
    image_size: int  # pixels
    patch_nums: tuple[int, ...]  # tokens per side of each scale
    num_classes: int
    label_space: str
    likelihood: str = "exact"
    params: int | None
    license: str
    source: str
    weights: Weights
    preprocess: str

    @property
    def num_tokens(self) -> int:
        """Tokens per image."""
        return sum(p * p for p in self.patch_nums)


SCALES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SCALES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
SCALES_DIGITS = (1, 2, 3, 5, 8)

_VAR = "avarc_cli.models.var:VAR"
_VQVAE = "avarc_cli.models.vqvae:VQVAE"
_DIGITS_LICENSE = "weights MIT; images CC BY 4.0 (UCI Optical Recognition of Handwritten Digits)"
_DIGITS_SOURCE = "scikit-learn handwritten digits"


def _published(name: str, *, params: int, weights: HubFile, source: str, size: int = 256) -> ModelCard:
    """A class-conditional VAR on ImageNet-1k."""
    return ModelCard(
        name=name,
        family="var",
        builder=_VAR,
        tokenizer=f"var-vqvae-{size}",
        image_size=size,
        patch_nums=SCALES_512 if size == 512 else SCALES_256,
        num_classes=1000,
        label_space="imagenet1k",
        params=params,
        license="MIT",
        source=source,
        weights=weights,
        preprocess="resize-crop",
    )


def _var(depth: int, params: int, size: int = 256) -> ModelCard:
    weights = HubFile("FoundationVision/var", f"var_d{depth}.pth")
    return _published(f"var-d{depth}", params=params, weights=weights, source="arXiv:2404.02905", size=size)


def _cca(depth: int, params: int) -> ModelCard:
    weights = HubFile("ChenDRAG/CCA_VAR", f"CCA_VAR_Guidance_Free/VAR_d{depth}_CCA.pth")
    return _published(f"var-d{depth}-cca", params=params, weights=weights, source="arXiv:2410.09347")


def _var_tokenizer(size: int, patch_nums: tuple[int, ...]) -> TokenizerCard:
    """One file serves both sizes: the network is convolutional, only the scales differ."""
    return TokenizerCard(
        name=f"var-vqvae-{size}",
        family="vqvae",
        builder=_VQVAE,
        image_size=size,
        patch_nums=patch_nums,
        params=109_000_000,
        weights=HubFile("FoundationVision/var", "vae_ch160v4096z32.pth"),
        license="MIT",
        source="arXiv:2404.02905",
        preprocess="resize-crop",
    )


_MODELS = (
    ModelCard(
        name="digits",
        family="var",
        builder=_VAR,
        tokenizer="digits-vqvae",
        image_size=16,
        patch_nums=SCALES_DIGITS,
        num_classes=10,
        label_space="digits",
        params=1_252_872,
        license=_DIGITS_LICENSE,
        source=_DIGITS_SOURCE,
        weights=AssetFile("digits/var.safetensors"),
        preprocess="fit",
    ),
    _var(16, 310_000_000),
    _var(20, 600_000_000),
    _var(24, 1_000_000_000),
    _var(30, 2_000_000_000),
    _var(36, 2_300_000_000, size=512),
    _cca(16, 310_000_000),
    _cca(20, 600_000_000),
    _cca(24, 1_000_000_000),
    _cca(30, 2_000_000_000),
)

_TOKENIZERS = (
    TokenizerCard(
        name="digits-vqvae",
        family="vqvae",
        builder=_VQVAE,
        image_size=16,
        patch_nums=SCALES_DIGITS,
        params=715_419,
        weights=AssetFile("digits/vqvae.safetensors"),
        license=_DIGITS_LICENSE,
        source=_DIGITS_SOURCE,
        preprocess="fit",
    ),
    _var_tokenizer(256, SCALES_256),
    _var_tokenizer(512, SCALES_512),
)


def model_cards() -> tuple[ModelCard, ...]:
    """Every known model, the embedded one first."""
    return _MODELS


def tokenizer_cards() -> tuple[TokenizerCard, ...]:
    """Every known tokenizer, the embedded one first."""
    return _TOKENIZERS


def model_card(name: str) -> ModelCard:
    """The card of that name; UsageError with the closest names otherwise."""
    return _find("model", name, _MODELS)


def tokenizer_card(name: str) -> TokenizerCard:
    """The card of that name; UsageError with the closest names otherwise."""
    return _find("tokenizer", name, _TOKENIZERS)


def any_card(name: str) -> ModelCard | TokenizerCard:
    """The model or tokenizer of that name; UsageError with the closest names otherwise."""
    cards: tuple[ModelCard | TokenizerCard, ...] = (*_MODELS, *_TOKENIZERS)
    return _find("model or tokenizer", name, cards)


_Card = TypeVar("_Card", ModelCard, TokenizerCard, ModelCard | TokenizerCard)


def _find(kind: str, name: str, cards: Sequence[_Card]) -> _Card:
    for card in cards:
        if card.name == name:
            return card
    names = [card.name for card in cards]
    close = difflib.get_close_matches(name.lower(), names, n=3)
    raise UsageError(
        f"no {kind} is called '{name}'" + (f"; did you mean {' or '.join(close)}?" if close else ""),
        why=f"known are {', '.join(names)}",
        fix="name one of these, or the path of a checkpoint file",
    )
