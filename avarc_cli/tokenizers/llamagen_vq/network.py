"""LlamaGen's VQGAN: image -> latents -> one grid of tokens -> codes -> image (arXiv:2406.06525, section 2.1).

Checkpoint-compatible with the published VQ-16 and VQ-8; widths, levels and codebook are read off the tensors.
Shapes: B images, Z channels of latents and codes, g side of the token grid, L = g^2, V codes.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.layers import convolution
from avarc_cli.layers.conv_blocks import Downsample, ResidualBlock, Upsample, group_norm, silu
from avarc_cli.layout import TokenLayout
from avarc_cli.tokenizer import TokenizerNetwork
from avarc_cli.tokenizers.llamagen_vq.config import LlamaGenVQConfig
from avarc_kernels import nearest_code


class AttentionBlock(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm = group_norm(c)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (conv(y).flatten(2).transpose(1, 2)[:, None] for conv in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)  # one head; the default scale is C^-1/2
        return x + self.proj_out(y.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:]))


class Level(nn.Module):
    """Residual blocks of one resolution, attention after each where asked for, then a change of resolution."""

    def __init__(self, widths: list[int], *, attention: bool, down: bool = False, up: bool = False) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.res = nn.ModuleList(ResidualBlock(a, b) for a, b in pairs)
        self.attn = nn.ModuleList(AttentionBlock(b) for _, b in pairs if attention)
        self.downsample = Downsample(widths[-1]) if down else nn.Identity()
        self.upsample = Upsample(widths[-1]) if up else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for j, block in enumerate(self.res):
            x = block(x)
            if self.attn:
                x = self.attn[j](x)
        return self.upsample(self.downsample(x))


def _middle(c: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(c, c), AttentionBlock(c), ResidualBlock(c, c))


class Encoder(nn.Module):
    def __init__(self, c: LlamaGenVQConfig) -> None:
        super().__init__()
        widths, last = [c.ch * m for m in c.ch_mult], len(c.ch_mult) - 1
        self.conv_in = nn.Conv2d(3, c.ch, 3, padding=1)
        self.conv_blocks = nn.Sequential(
            *(
                Level([before, *[w] * c.blocks], attention=i == last, down=i < last)
                for i, (before, w) in enumerate(zip([c.ch, *widths], widths, strict=False))
            )
        )
        self.mid = _middle(widths[-1])
        self.norm_out, self.conv_out = group_norm(widths[-1]), nn.Conv2d(widths[-1], c.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_blocks(self.conv_in(x)))
        return self.conv_out(silu(self.norm_out(x)))


class Decoder(nn.Module):
    def __init__(self, c: LlamaGenVQConfig) -> None:
        super().__init__()
        widths = [c.ch * m for m in reversed(c.ch_mult)]  # coarse to fine
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(c.z_channels, widths[0], 3, padding=1)
        self.mid = _middle(widths[0])
        self.conv_blocks = nn.Sequential(
            *(
                Level([before, *[w] * (c.blocks + 1)], attention=i == 0, up=i < last)
                for i, (before, w) in enumerate(zip([widths[0], *widths], widths, strict=False))
            )
        )
        self.norm_out, self.conv_out = group_norm(widths[-1]), nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_blocks(self.mid(self.conv_in(x)))
        return self.conv_out(silu(self.norm_out(x)))


class UnitCodebook(nn.Module):
    """Codes of length one. The stored ones have any length."""

    def __init__(self, vocab_size: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, channels)

    def codes(self) -> Tensor:
        """The codes, (V, Z)."""
        return F.normalize(self.embedding.weight, dim=-1)

    def tokenize(self, latents_BZgg: Tensor) -> Tensor:
        """The nearest code of every cell, (B, L) int64, row by row; the first of equally near ones."""
        z = F.normalize(latents_BZgg, dim=1).permute(0, 2, 3, 1)
        return nearest_code(z.flatten(0, 2), self.codes()).view(len(z), -1)

    def lookup(self, tokens_BL: Tensor, side: int) -> Tensor:
        """Codes of the tokens, (B, Z, g, g)."""
        return self.codes()[tokens_BL].unflatten(1, (side, side)).permute(0, 3, 1, 2)


class LlamaGenVQ(TokenizerNetwork):
    """The tokenizer. Images are float32 in [-1, 1]."""

    config: LlamaGenVQConfig

    def __init__(self, config: LlamaGenVQConfig) -> None:
        super().__init__()
        self.config, self.layout = config, TokenLayout.raster(config.side, config.side)
        self.image_size, self.vocab_size, self.inferred = config.image_size, config.vocab_size, {}
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantize = UnitCodebook(config.vocab_size, config.code_channels)
        self.quant_conv = nn.Conv2d(config.z_channels, config.code_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.code_channels, config.z_channels, 1)

    def checkpoint_metadata(self) -> dict[str, str]:
        """The size of the images, which the tensors do not tell."""
        return {"image_size": str(self.image_size)}

    def speed_up(self) -> None:
        """Encode faster on a CPU, from now on without gradients; latents change by roundings."""
        convolution.speed_up(self.encoder)

    def encode(self, images: Tensor) -> Tensor:
        """Latents (B, Z, g, g), before quantization."""
        return self.quant_conv(self.encoder(images))

    def tokenize(self, latents: Tensor) -> Tensor:
        """Tokens (B, L), int64. Raises ValueError when the latents' side is not g."""
        if latents.shape[-2:] != (self.config.side,) * 2:
            raise ValueError(f"latents {tuple(latents.shape)} for a {self.layout}")
        return self.quantize.tokenize(latents)

    def decode(self, codes_BZgg: Tensor) -> Tensor:
        """Images (B, 3, H, H), not clamped."""
        return self.decoder(self.post_quant_conv(codes_BZgg))

    def reconstruct(self, tokens_BL: Tensor) -> Tensor:
        """Images (B, 3, H, H) from tokens."""
        return self.decode(self.quantize.lookup(tokens_BL, self.config.side)).clamp(-1, 1)
