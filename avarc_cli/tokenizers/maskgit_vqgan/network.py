"""MaskGIT's VQGAN: image -> latents -> one grid of tokens -> codes -> image (arXiv:2202.04200).

Checkpoint-compatible with the published conversion to PyTorch; widths, levels and codebook are read off the tensors.
The network itself reads and draws images in [0, 1]. `MaskGITVQGAN` converts them from and to [-1, 1].
Shapes: B images, Z channels of latents and codes, g side of the token grid, L = g^2, V codes.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.layers import convolution
from avarc_cli.layers.conv_blocks import group_norm, silu
from avarc_cli.layout import TokenLayout
from avarc_cli.tokenizer import TokenizerNetwork
from avarc_cli.tokenizers.maskgit_vqgan.config import MaskGITVQGANConfig
from avarc_kernels import nearest_code


def _conv3(c_in: int, c_out: int, *, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=1, bias=bias)


class ResidualBlock(nn.Module):
    """A residual block; where the width changes, it is none.

    There the shortcut is of the branch's own output, and the input is dropped, as in the original code
    (https://github.com/google-research/maskgit/issues/3). The published weights were trained so.
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = group_norm(c_in), _conv3(c_in, c_out)
        self.norm2, self.conv2 = group_norm(c_out), _conv3(c_out, c_out)
        self.nin_shortcut = nn.Conv2d(c_out, c_out, 1, bias=False) if c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(silu(self.norm1(x)))
        y = self.conv2(silu(self.norm2(y)))
        return y.add_(x) if self.nin_shortcut is None else y + self.nin_shortcut(y)


class Level(nn.Module):
    """Residual blocks of one resolution, then a change of resolution."""

    def __init__(self, widths: list[int], *, down: bool = False, up: bool = False) -> None:
        super().__init__()
        self.block = nn.Sequential(*(ResidualBlock(a, b) for a, b in pairwise(widths)))
        self.down = down
        self.upsample_conv = _conv3(widths[-1], widths[-1], bias=True) if up else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        if self.upsample_conv is not None:
            return self.upsample_conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return F.avg_pool2d(x, 2) if self.down else x


class Encoder(nn.Module):
    def __init__(self, c: MaskGITVQGANConfig) -> None:
        super().__init__()
        widths, last = [c.ch * m for m in c.ch_mult], len(c.ch_mult) - 1
        self.conv_in = _conv3(3, c.ch)
        self.down = nn.Sequential(
            *(
                Level([before, *[w] * c.blocks], down=i < last)
                for i, (before, w) in enumerate(zip([c.ch, *widths], widths, strict=False))
            )
        )
        self.mid = nn.Sequential(*(ResidualBlock(widths[-1], widths[-1]) for _ in range(c.blocks)))
        self.norm_out, self.conv_out = group_norm(widths[-1]), nn.Conv2d(widths[-1], c.code_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.down(self.conv_in(x)))
        return self.conv_out(silu(self.norm_out(x)))


class Decoder(nn.Module):
    def __init__(self, c: MaskGITVQGANConfig) -> None:
        super().__init__()
        widths = [c.ch * m for m in c.ch_mult]
        self.conv_in = _conv3(c.code_channels, widths[-1], bias=True)
        self.mid = nn.Sequential(*(ResidualBlock(widths[-1], widths[-1]) for _ in range(c.blocks)))
        self.up = nn.ModuleList(  # the level with the most pixels first, which is the last to run
            Level([before, *[w] * c.blocks], up=i > 0)
            for i, (before, w) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))
        )
        self.norm_out, self.conv_out = group_norm(widths[0]), _conv3(widths[0], 3, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(silu(self.norm_out(x)))


class Codebook(nn.Module):
    def __init__(self, vocab_size: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, channels)

    def tokenize(self, latents_BZgg: Tensor) -> Tensor:
        """The nearest code of every cell, (B, L) int64, row by row; the first of equally near ones."""
        z = latents_BZgg.permute(0, 2, 3, 1)
        return nearest_code(z.flatten(0, 2), self.embedding.weight).view(len(z), -1)

    def lookup(self, tokens_BL: Tensor, side: int) -> Tensor:
        """Codes of the tokens, (B, Z, g, g)."""
        codes: Tensor = self.embedding(tokens_BL)
        return codes.unflatten(1, (side, side)).permute(0, 3, 1, 2)


class MaskGITVQGAN(TokenizerNetwork):
    """The tokenizer. Images are float32 in [-1, 1]."""

    config: MaskGITVQGANConfig

    def __init__(self, config: MaskGITVQGANConfig) -> None:
        super().__init__()
        self.config, self.layout = config, TokenLayout.raster(config.side, config.side)
        self.image_size, self.vocab_size, self.inferred = config.image_size, config.vocab_size, {}
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantize = Codebook(config.vocab_size, config.code_channels)

    def checkpoint_metadata(self) -> dict[str, str]:
        """The size of the images, which the tensors do not tell."""
        return {"image_size": str(self.image_size)}

    def speed_up(self) -> None:
        """Encode faster on a CPU, from now on without gradients; latents change by roundings."""
        convolution.speed_up(self.encoder)

    def encode(self, images: Tensor) -> Tensor:
        """Latents (B, Z, g, g), before quantization."""
        return self.encoder((images + 1) / 2)

    def tokenize(self, latents: Tensor) -> Tensor:
        """Tokens (B, L), int64. Raises ValueError when the latents' side is not g."""
        if latents.shape[-2:] != (self.config.side,) * 2:
            raise ValueError(f"latents {tuple(latents.shape)} for a {self.layout}")
        return self.quantize.tokenize(latents)

    def decode(self, codes_BZgg: Tensor) -> Tensor:
        """Images (B, 3, H, H), not clamped."""
        return 2 * self.decoder(codes_BZgg) - 1

    def reconstruct(self, tokens_BL: Tensor) -> Tensor:
        """Images (B, 3, H, H) from tokens."""
        return self.decode(self.quantize.lookup(tokens_BL, self.config.side)).clamp(-1, 1)
