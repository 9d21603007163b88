"""What `avarc bench` scores: a VAR's weights and one image's tokens, for VARLikelihood and for the reference.

Shapes: B token sequences, P pairs of the image and a class, L tokens, Z latent channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from avarc_cli import product_library
from avarc_cli.models.var import reference, shapes
from avarc_cli.models.var.config import VARConfig
from avarc_cli.models.var.likelihood import VARLikelihood
from avarc_cli.models.var.network import VAR
from avarc_cli.tokenizers.vqvae.config import PUBLISHED as TOKENIZER


class VARWorkload:
    """One image with random tokens; every model that it makes has the same weights."""

    def __init__(self, var: VAR, device: torch.device) -> None:
        config = self._config = var.config
        self.segment_ends, self.num_classes, self.flops = config.ends, config.num_classes, config.flops
        self._device = device
        self._weights = {k: v.clone() for k, v in var.to(device).state_dict().items()}
        self._level_1L = var.levels().to(device)
        generator = torch.Generator().manual_seed(1)
        length, first = config.ends[-1], config.ends[0]
        self.tokens_L = torch.randint(config.vocab_size, (length,), generator=generator).to(device)
        self._teacher_1TZ = torch.randn(1, length - first, config.z_channels, generator=generator).to(device)

    def reference(self, class_id_P: Tensor) -> Tensor:
        """Token log-probabilities by the reference implementation, (P, L)."""
        weights = self._weights | {"lvl_1L": self._level_1L}
        return reference.token_log_probs(weights, self.tokens_L, self._teacher_1TZ, class_id_P)

    def model(self, precision: str, kernels: str) -> VARLikelihood:
        """The model in this precision and with these kernels. Raises: UsageError for an unavailable precision."""
        with torch.device("meta"):
            var = VAR(self._config)
        var.load_state_dict(dict(self._weights), assign=True)
        var = var.eval().requires_grad_(False)
        computes = product_library.find(precision, self._device)
        network = var.set_precision(computes).set_kernels(kernels)
        return VARLikelihood(network, self)  # type: ignore[arg-type]  # scoring asks a quantizer for teacher_input only

    def teacher_input(self, tokens_BL: Tensor) -> Tensor:
        """Stands in for the quantizer's: the tokens are random, so its input may be too. (B, T, Z)."""
        return self._teacher_1TZ.expand(len(tokens_BL), -1, -1)


def random_workload(shape: str, scales: Sequence[int] | None, device: torch.device) -> VARWorkload:
    """A VAR of this shape (`parse_shape`) with random weights."""
    return VARWorkload(random_var(parse_shape(shape, tuple(scales or TOKENIZER.patch_nums))), device)


def parse_shape(text: str, scales: tuple[int, ...] = TOKENIZER.patch_nums) -> VARConfig:
    """The configuration of a shape, as in `shapes.parse`. Raises: UsageError."""
    depth, width, heads = shapes.parse(text)
    return VARConfig(
        depth=depth,
        width=width,
        heads=heads,
        num_classes=1000 if width >= 512 else 100,
        patch_nums=scales,
        vocab_size=TOKENIZER.vocab_size,
        z_channels=TOKENIZER.z_channels,
    )


def random_var(config: VARConfig, seed: int = 0) -> VAR:
    """A VAR of this shape with random weights, scaled so that linears preserve the size of their input."""
    generator = torch.Generator().manual_seed(seed)
    var = VAR(config).eval().requires_grad_(False)
    for name, p in var.named_parameters():
        if p.ndim == 2:
            p.data.normal_(0, (0.5 if "ada_lin" in name else 1.0) / p.shape[1] ** 0.5, generator=generator)
        elif "scale_mul" not in name:
            p.data.normal_(0, 0.02, generator=generator)
    return var
