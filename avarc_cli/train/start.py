"""A training that begins with the weights of a file, as the second stage of MaskGen does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from avarc_cli import families
from avarc_cli.errors import CheckpointError, UsageError, shorten_list
from avarc_cli.family import GeneratorFamily
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.loaded import LoadedTokenizer
from avarc_cli.progress import Notify
from avarc_cli.zoo import checkpoint
from avarc_cli.zoo.checkpoint import Checkpoint


@dataclass(frozen=True)
class Start:
    """The weights of a generator of captions."""

    read: Checkpoint

    @classmethod
    def of(cls, path: Path) -> Start:
        """Raises: CheckpointError for a file that cannot be read."""
        return cls(checkpoint.read(path))

    def shape(self, maker: GeneratorFamily, tokenizer: LoadedTokenizer) -> dict[str, Any]:
        """The shape of its network, for `GeneratorFamily.new_of_captions`.

        Raises: UsageError for weights of another family; CheckpointError for another tokenizer's tokens.
        """
        source, metadata = str(self.read.path), self.read.metadata
        found = families.GENERATORS.recognize(self.read.tensors, metadata.get("family"), source)
        if found.name != maker.name:
            raise UsageError(
                f"a {maker.title} cannot start from {source}",
                f"it holds a {found.title}",
                "name a file that was trained on the same kind of tokens",
            )
        sha256 = metadata.get("tokenizer_sha256")
        if sha256 not in (None, tokenizer.sha256):
            raise CheckpointError(
                f"{source} reads the tokens of another tokenizer",
                f"it was trained with sha256 {sha256}; {tokenizer.file} has {tokenizer.sha256}",
                "pass the tokenizer that it was trained with",
            )
        stated = ConfigSources(((f"the metadata of {source}", metadata),))
        return maker.shape_of(maker.read_config(self.read.tensors, stated, source), tokenizer.network, source)

    @torch.no_grad()
    def give(self, network: nn.Module, maker: GeneratorFamily, note: Notify) -> None:
        """Give a network of that shape these weights; those that read captions stay new where they do not fit.

        Args:
            note: called with which those are.
        Raises: CheckpointError where others do not fit.
        """
        own, given = network.state_dict(), self.read.tensors
        new = [name for name, value in own.items() if name not in given or given[name].shape != value.shape]
        if wrong := [name for name in new if name not in maker.of_captions]:
            raise CheckpointError(
                f"{self.read.path} does not fit a {maker.title}",
                f"missing, or of another shape: {shorten_list(wrong)}",
                "check that the file is complete",
            )
        for name, value in own.items():
            if name not in new:
                value.copy_(given[name])
        if new:
            note(f"new weights for {shorten_list(new)}: those of {self.read.path} read other captions or scores")
