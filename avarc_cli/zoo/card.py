"""What a card is: facts about a model or a tokenizer, and where its file comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from avarc_cli.layout import TokenLayout


@dataclass(frozen=True)
class HubFile:
    """A file in a Hugging Face repository.

    revision is a commit, or None where nobody pinned one: then it is whatever `main` was when it was downloaded.
    sha256 is of the file's bytes, in hex, or None where the card does not know it: then the hub's own word is checked.
    """

    repo: str
    filename: str
    revision: str | None = None
    sha256: str | None = None


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
    def layout(self) -> TokenLayout:
        """Where the tokens lie."""
        return TokenLayout.multi_scale(self.patch_nums)

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
    def layout(self) -> TokenLayout:
        """Where the tokens lie."""
        return TokenLayout.multi_scale(self.patch_nums)

    @property
    def num_tokens(self) -> int:
        """Tokens per image."""
        return sum(p * p for p in self.patch_nums)


Card: TypeAlias = ModelCard | TokenizerCard
