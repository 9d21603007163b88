"""Which parameters the published training codes apply weight decay to, by their names."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

# Of 1d-tokenizer, anywhere in a name: "ln" is in "adaln_before_head", but not in "adaLN_modulation".
ONE_D_TOKENIZER = ("ln", "bias", "latent_tokens", "mask_token", "embedding", "norm", "gamma", "embed")


def decays_unless_named(name: str, parameter: Tensor, without: Collection[str] = ()) -> bool:
    """Whether a parameter has two dimensions or more, and none of these words in its name."""
    return parameter.ndim >= 2 and not any(word in name for word in without)
