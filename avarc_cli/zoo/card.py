"""What a card is: facts about a model or a tokenizer, and where its file comes from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

from avarc_cli.layout import TokenLayout


@dataclass(frozen=True)
class HubFile:
    """A file in a Hugging Face repository."""

    repo: str  # owner/name
    filename: str  # in the repository, with folders
    revision: str | None = None  # a commit; None for whatever `main` was when the file was downloaded
    sha256: str | None = None  # of the bytes, in hex; None where the card does not know it: the hub's own is checked

    def at(self, revision: str) -> HubFile:
        """The file at this revision; the digest of another than its own is not known."""
        return self if revision == self.revision else HubFile(self.repo, self.filename, revision)


@dataclass(frozen=True)
class WebFile:
    """A file on a web server. It is kept where torch.hub keeps what it downloads, so that each finds the other's."""

    url: str
    filename: str  # on this machine
    sha256: str | None = None  # of the bytes, in hex; None where none is published

    @property
    def repo(self) -> str:
        """What messages call its origin."""
        return urlsplit(self.url).netloc

    @property
    def revision(self) -> None:
        """There is one version only."""
        return None


@dataclass(frozen=True)
class HubFolder:
    """Files in a Hugging Face repository that belong together, all in its top folder."""

    repo: str  # owner/name
    filenames: tuple[str, ...]
    revision: str | None = None  # as of HubFile

    def at(self, revision: str) -> HubFolder:
        """The files at this revision."""
        return replace(self, revision=revision)

    @property
    def files(self) -> tuple[HubFile, ...]:
        return tuple(HubFile(self.repo, name, self.revision) for name in self.filenames)


@dataclass(frozen=True)
class AssetFolder:
    """Files that belong together and are shipped with avarc; `folder` is relative to avarc_cli/assets."""

    folder: str
    filenames: tuple[str, ...]


@dataclass(frozen=True)
class AssetFile:
    """A file shipped with avarc; filename is relative to avarc_cli/assets."""

    filename: str


@dataclass(frozen=True)
class LocalFile:
    """A file the user named."""

    path: Path
    weight_set: str | None = None  # which of several sets of weights in it; None for the one that is read by default


Weights: TypeAlias = HubFile | AssetFile | LocalFile
Downloadable: TypeAlias = HubFile | WebFile


@dataclass(frozen=True, kw_only=True)
class TokenizerCard:
    """An image tokenizer. A token cache belongs to one of these, and serves every model that names it."""

    name: str  # as options spell it
    family: str  # a name in families.TOKENIZERS
    image_size: int  # pixels
    layout: TokenLayout  # of its tokens
    params: int | None  # None where unknown
    weights: Weights  # where its file is
    license: str  # of the weights
    source: str  # paper, or where it comes from
    preprocess: str  # a mode of data.preprocess
    channels: int = 0  # of each of its continuous tokens; 0 where tokens are codes


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """A generator that gives log p(tokens | class)."""

    name: str  # as options spell it
    family: str  # a name in families.GENERATORS
    tokenizer: str  # name of a TokenizerCard, or a file
    image_size: int  # pixels
    layout: TokenLayout  # of the tokens that it models
    channels: int = 0  # of each of the continuous tokens that it reads; 0 where it reads codes
    num_classes: int  # without the unconditional class
    label_space: str  # what its class ids mean
    params: int | None  # None where unknown
    license: str  # of the weights
    source: str  # paper, or where it comes from
    weights: Weights  # where its file is
    condition: str = "class"  # what it is conditioned on: "class", or "caption"
    text_encoder: str = ""  # name of the TextEncoderCard that captions are encoded with; "" for none


@dataclass(frozen=True, kw_only=True)
class TextEncoderCard:
    """A text encoder, which makes the features of captions that generators read."""

    name: str  # as options spell it
    kind: str  # a name in text.encoders.KINDS
    positions: int  # of a caption; longer ones are cut
    width: int  # channels of a position
    params: int | None  # that are used; None where unknown
    weights: HubFolder | AssetFolder
    license: str  # of the weights
    source: str  # paper, or where it comes from


@dataclass(frozen=True, kw_only=True)
class NetworkCard:
    """A frozen network, through which trainings and metrics see images."""

    name: str  # as commands spell it
    title: str  # what it is
    use: str  # what needs it
    option: str  # that names a file in its place
    weights: WebFile
    license: str  # of the weights
    source: str  # paper, or where it comes from


Card: TypeAlias = ModelCard | TokenizerCard
