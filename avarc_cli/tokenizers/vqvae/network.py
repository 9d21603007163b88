"""VAR's multi-scale VQ-VAE: image -> latents -> tokens of K scales -> latents -> image (arXiv:2404.02905, section 3).

Checkpoint-compatible with `vae_ch160v4096z32.pth`; widths, levels and codebook are read off the tensors.
Shapes: B images, Z latent channels, h latent side, K scales with sides p_1..p_K (p_K = h), L = sum p_k^2, V codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.layers import convolution
from avarc_cli.layers.conv_blocks import Downsample, ResidualBlock, Upsample, group_norm, silu
from avarc_cli.layout import TokenLayout
from avarc_cli.tokenizer import TokenizerNetwork
from avarc_cli.tokenizers.vqvae.config import VQVAEConfig
from avarc_kernels import nearest_code

SHARED_CONVS = 4  # 3x3 convolutions that the scales share


class AttentionBlock(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj_out = group_norm(c), nn.Conv2d(c, 3 * c, 1), nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).reshape(b, 1, h * w, 3, c).unbind(3)
        y = F.scaled_dot_product_attention(q, k, v)  # one head; the default scale is C^-1/2
        return x + self.proj_out(y.squeeze(1).transpose(1, 2).reshape(b, c, h, w))


class Level(nn.Module):
    """Residual blocks of one resolution, attention after each where asked for, then a change of resolution."""

    def __init__(self, widths: list[int], *, attention: bool, down: bool = False, up: bool = False) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.block = nn.ModuleList(ResidualBlock(a, b) for a, b in pairs)
        self.attn = nn.ModuleList(AttentionBlock(b) for _, b in pairs if attention)
        self.downsample = Downsample(widths[-1]) if down else nn.Identity()
        self.upsample = Upsample(widths[-1]) if up else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for j, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[j](x)
        return self.upsample(self.downsample(x))


class Middle(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = ResidualBlock(c, c), AttentionBlock(c), ResidualBlock(c, c)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    def __init__(self, c: VQVAEConfig) -> None:
        super().__init__()
        widths, last = [c.ch * m for m in c.ch_mult], len(c.ch_mult) - 1
        self.conv_in = nn.Conv2d(3, c.ch, 3, padding=1)
        self.down = nn.ModuleList(
            Level([before, *[w] * c.blocks], attention=i == last, down=i < last)
            for i, (before, w) in enumerate(zip([c.ch, *widths], widths, strict=False))
        )
        self.mid = Middle(widths[-1])
        self.norm_out, self.conv_out = group_norm(widths[-1]), nn.Conv2d(widths[-1], c.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, c: VQVAEConfig) -> None:
        super().__init__()
        widths, last = [c.ch * m for m in c.ch_mult], len(c.ch_mult) - 1
        self.conv_in = nn.Conv2d(c.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            Level([before, *[w] * (c.blocks + 1)], attention=i == last, up=i > 0)
            for i, (before, w) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))
        )
        self.norm_out, self.conv_out = group_norm(widths[0]), nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(silu(self.norm_out(x)))


class SharedConvs(nn.Module):
    """The four 3x3 convs that smooth an upsampled scale; scales share them by their position t in [0, 1]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(SHARED_CONVS))
        # The ticks in numpy's float64, bound for bound: t = 1/2 and t = 2/9 lie midway, and the rounding decides.
        self._ticks = np.linspace(1 / 3 / SHARED_CONVS, 1 - 1 / 3 / SHARED_CONVS, SHARED_CONVS)

    def at(self, t: float) -> nn.Module:
        return self.qresi_ls[int(np.argmin(np.abs(self._ticks - t)))]


class MultiScaleQuantizer(nn.Module):
    """Residual quantization, coarse to fine. Holds all that turns tokens into a generator's input."""

    def __init__(self, vocab_size: int, z_channels: int, patch_nums: tuple[int, ...]) -> None:
        super().__init__()
        self.patch_nums = patch_nums
        self.embedding = nn.Embedding(vocab_size, z_channels)
        self.quant_resi = SharedConvs(z_channels)

    def split(self, tokens_BL: Tensor) -> list[Tensor]:
        """Tokens of each scale, (B, p_k, p_k)."""
        parts = tokens_BL.split([p * p for p in self.patch_nums], dim=1)
        return [part.unflatten(1, (p, p)) for part, p in zip(parts, self.patch_nums, strict=True)]

    def contribution(self, k: int, index_Bpp: Tensor) -> Tensor:
        """What the tokens of scale k (0-based) add to the latents, (B, Z, h, h)."""
        return self.contribution_of(k, self.embedding(index_Bpp))

    def contribution_of(self, k: int, vectors_BppZ: Tensor) -> Tensor:
        """As `contribution`, of the vectors of codes, or of mixtures of them."""
        side, last = self.patch_nums[-1], len(self.patch_nums) - 1
        u = vectors_BppZ.permute(0, 3, 1, 2)
        if k < last:
            u = F.interpolate(u, size=(side, side), mode="bicubic")
        conv = self.quant_resi.at(k / last if last else 0.0)
        return 0.5 * u + 0.5 * conv(u)

    def residual(self, k: int, r_BZhh: Tensor) -> Tensor:
        """The residual at the size of scale k, as vectors (B * p_k^2, Z), contiguous so that all B round alike."""
        return self.shrink(k, r_BZhh).permute(0, 2, 3, 1).flatten(0, 2).contiguous()

    def shrink(self, k: int, f_BZhh: Tensor) -> Tensor:
        """Area-downsampling to scale k's side; nothing at the last scale."""
        side = self.patch_nums[k]
        return f_BZhh if k == len(self.patch_nums) - 1 else F.interpolate(f_BZhh, size=(side, side), mode="area")

    def tokenize(self, f_BZhh: Tensor) -> Tensor:
        """Latents -> tokens (B, L), int64, scale by scale in raster order."""
        r, tokens = f_BZhh, []
        for k, p in enumerate(self.patch_nums):
            index_Bpp = nearest_code(self.residual(k, r), self.embedding.weight).view(-1, p, p)
            tokens.append(index_Bpp.flatten(1))
            r = r - self.contribution(k, index_Bpp)
        return torch.cat(tokens, dim=1)

    def accumulate(self, tokens_BL: Tensor) -> Iterator[Tensor]:
        """The latents after each scale, (B, Z, h, h), coarse to fine; the last is what is decoded."""
        f_hat: Tensor | None = None
        for k, index_Bpp in enumerate(self.split(tokens_BL)):
            u = self.contribution(k, index_Bpp)
            f_hat = u if f_hat is None else f_hat + u
            yield f_hat

    def teacher_input(self, tokens_BL: Tensor) -> Tensor:
        """The generator's input for scales 2..K when the tokens are given, (B, L - p_1^2, Z)."""
        shrunk = [
            self.shrink(k + 1, f_hat).flatten(2).transpose(1, 2)
            for k, f_hat in enumerate(self.accumulate(tokens_BL))
            if k + 1 < len(self.patch_nums)
        ]
        if shrunk:
            return torch.cat(shrunk, dim=1)
        return self.embedding.weight.new_empty(len(tokens_BL), 0, self.embedding.embedding_dim)


class VQVAE(TokenizerNetwork):
    """The tokenizer. Images are float32 in [-1, 1]."""

    config: VQVAEConfig

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config, self.layout = config, TokenLayout.multi_scale(config.patch_nums)
        self.image_size, self.vocab_size, self.inferred = config.image_size, config.vocab_size, config.inferred
        z = config.z_channels
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantize = MultiScaleQuantizer(config.vocab_size, z, config.patch_nums)
        self.quant_conv: nn.Module = nn.Conv2d(z, z, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(z, z, 3, padding=1)

    def checkpoint_metadata(self) -> dict[str, str]:
        """The scales, which the tensors do not tell."""
        return {"patch_nums": ",".join(map(str, self.config.patch_nums))}

    def speed_up(self) -> None:
        """Encode faster on a CPU, from now on without gradients; an image's latents do not depend on its batch then."""
        convolution.speed_up(self.encoder)
        assert isinstance(self.quant_conv, nn.Conv2d), "it is fast already"
        self.quant_conv = convolution.faster(self.quant_conv)

    def encode(self, images_B3HW: Tensor) -> Tensor:
        """Latents (B, Z, h, h), before quantization."""
        return self.quant_conv(self.encoder(images_B3HW))

    def tokenize(self, latents_BZhh: Tensor) -> Tensor:
        """Tokens (B, L), int64. Raises ValueError when the latents' side is not p_K."""
        if latents_BZhh.shape[-2:] != (self.config.patch_nums[-1],) * 2:
            raise ValueError(f"latents {tuple(latents_BZhh.shape)} for scales {self.config.patch_nums}")
        return self.quantize.tokenize(latents_BZhh)

    def decode(self, latents_BZhh: Tensor) -> Tensor:
        """Images (B, 3, H, W), not clamped, from quantized latents."""
        return self.decoder(self.post_quant_conv(latents_BZhh))

    def reconstruct(self, tokens_BL: Tensor) -> Tensor:
        """Images (B, 3, H, W) from tokens."""
        *_, f_hat = self.quantize.accumulate(tokens_BL)
        return self.decode_latents(f_hat)

    def decode_latents(self, latents_BZhh: Tensor) -> Tensor:
        return self.decode(latents_BZhh).clamp(-1, 1)
