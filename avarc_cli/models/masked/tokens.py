"""Which tokenizers a new model of hidden tokens can read."""

from __future__ import annotations

from avarc_cli.errors import UsageError
from avarc_cli.tokenizer import TokenizerNetwork


def check_no_scales(tokenizer: TokenizerNetwork, title: str) -> None:
    """Raises: UsageError for a tokenizer with tokens of several scales. title: of the model, for the message."""
    if len(tokenizer.layout.grids) > 1:
        raise UsageError(
            f"a {title} cannot read the tokens of this tokenizer",
            f"it reads tokens on one grid, or without a position, the tokenizer gives {tokenizer.layout}",
            "pass a TiTok, or a VQGAN, such as one of avarc train titok or maskgit-vq",
        )


def check_sequence(tokenizer: TokenizerNetwork, title: str) -> None:
    """Raises: UsageError for a tokenizer whose tokens lie on grids. title: of the model, for the message."""
    if tokenizer.layout.grids:
        raise UsageError(
            f"a {title} cannot read the tokens of this tokenizer",
            f"it reads tokens without a position, the tokenizer gives {tokenizer.layout}",
            "pass a TiTok, such as one of avarc train titok",
        )
