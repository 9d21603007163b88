"""TiTok: image -> patches beside learned latent tokens -> latents -> tokens -> codes -> image (arXiv:2406.07550).

Checkpoint-compatible with the published two-stage and single-stage models, and with the VAEs, whose tokens are vectors
(arXiv:2501.07730). The network itself reads and draws images in [0, 1]; `TiTok` converts them from and to [-1, 1].
Shapes: B images, L latent tokens, Z channels of latents and codes, Y channels of the encoder's output: Z, or 2 Z of a
VAE, V codes, C width of a transformer, g side of the grid of patches, p side of a patch in pixels, U codes of the
MaskGIT-VQGAN, T tokens beside the latents.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.layers.vision_transformer import Block
from avarc_cli.layout import TokenLayout
from avarc_cli.tokenizer import TokenizerNetwork
from avarc_cli.tokenizers.maskgit_vqgan.network import Decoder as PixelDecoder
from avarc_cli.tokenizers.titok.config import TiTokConfig, TransformerConfig
from avarc_kernels import nearest_code

LOG_VARIANCE = (-30.0, 20.0)
"""Bounds of the logarithm of a VAE's variances."""


class Transformer(nn.Module):
    """What encoder and decoder share: positions, a class embedding that means nothing, and the blocks."""

    def __init__(self, c: TiTokConfig, of: TransformerConfig) -> None:
        super().__init__()
        scale = of.width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(1, of.width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(c.side**2 + 1, of.width))
        self.latent_token_positional_embedding = nn.Parameter(scale * torch.randn(c.num_tokens, of.width))
        self.ln_pre, self.ln_post = nn.LayerNorm(of.width), nn.LayerNorm(of.width)
        self.transformer = nn.Sequential(*(Block(of.width, of.heads) for _ in range(of.depth)))

    def blocks(self, grid_BgC: Tensor, latents_BLC: Tensor, *beside_BTC: Tensor) -> Tensor:
        """Hidden states of the class embedding, the g^2 cells, the L latents and what follows, (B, 1 + g^2 + L, C)."""
        first = self.class_embedding.expand(len(grid_BgC), -1, -1)
        grid = torch.cat([first, grid_BgC], dim=1) + self.positional_embedding
        latents = latents_BLC + self.latent_token_positional_embedding
        return self.transformer(self.ln_pre(torch.cat([grid, latents, *beside_BTC], dim=1)))


class Encoder(Transformer):
    def __init__(self, c: TiTokConfig) -> None:
        super().__init__(c, c.encoder)
        self.patch_embed = nn.Conv2d(3, c.encoder.width, c.patch, c.patch)
        self.conv_out = nn.Conv2d(c.encoder.width, (2 if c.is_vae else 1) * c.code_channels, 1)
        self.reinterprets = c.predicted is not None

    def forward(self, images: Tensor, latent_tokens_LC: Tensor) -> Tensor:
        """Latents (B, Y, 1, L)."""
        count, (length, width) = len(images), latent_tokens_LC.shape
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        hidden = self.ln_post(self.blocks(patches, latent_tokens_LC.expand(count, -1, -1))[:, -length:])
        # The two-stage models read the memory of (L, C) as (C, L), which mixes tokens; their weights were trained so
        # (https://github.com/bytedance/1d-tokenizer/issues/16).
        channels = hidden.reshape(count, width, length) if self.reinterprets else hidden.transpose(1, 2)
        return self.conv_out(channels[:, :, None])


class Decoder(Transformer):
    """From codes to the logits of a MaskGIT-VQGAN's codes (two stages) or to pixels (one stage)."""

    def __init__(self, c: TiTokConfig) -> None:
        super().__init__(c, c.decoder)
        width = c.decoder.width
        self.side, self.patch = c.side, c.patch
        self.mask_token = nn.Parameter(width**-0.5 * torch.randn(1, 1, width))
        self.decoder_embed = nn.Linear(c.code_channels, width)
        if c.predicted is not None:
            out = nn.Conv2d(2 * width, c.predicted, 1)
            self.ffn = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.Tanh(), out)
            self.conv_out = None
        else:
            self.ffn = nn.Sequential(nn.Conv2d(width, 3 * c.patch**2, 1))
            self.conv_out = nn.Conv2d(3, 3, 3, padding=1)

    def hidden(self, codes_BZ1L: Tensor, *beside_BTC: Tensor) -> Tensor:
        """The last hidden states of the cells, (B, g^2, C).

        Args:
            beside_BTC: what the cells may attend to beside the latents.
        """
        cells = self.side**2
        latents = self.decoder_embed(codes_BZ1L[:, :, 0].transpose(1, 2))
        grid = self.mask_token.expand(len(latents), cells, -1)
        return self.ln_post(self.blocks(grid, latents, *beside_BTC)[:, 1 : 1 + cells])

    def forward(self, codes_BZ1L: Tensor, *beside_BTC: Tensor) -> Tensor:
        """Logits (B, U, g, g), or images (B, 3, H, H) in about [0, 1]; arguments as of `hidden`."""
        hidden = self.hidden(codes_BZ1L, *beside_BTC)
        grid = self.ffn(hidden.transpose(1, 2).unflatten(2, (self.side, self.side)))
        if self.conv_out is None:
            return grid
        p = self.patch
        pixels = grid.unflatten(1, (p, p, 3)).permute(0, 3, 4, 1, 5, 2)  # (B, 3, g, p, g, p)
        return self.conv_out(pixels.flatten(4).flatten(2, 3))


class Codebook(nn.Module):
    """The codes, and a name for them as in the published files."""

    def __init__(self, vocab_size: int, channels: int, l2_norm: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, channels)
        self.l2_norm = l2_norm

    def tokenize(self, latents_BZ1L: Tensor) -> Tensor:
        """The nearest code of every latent, (B, L) int64; the first of equally near ones."""
        z = self._unit(latents_BZ1L[:, :, 0].transpose(1, 2))
        return nearest_code(z.flatten(0, 1), self.codes()).view(len(z), -1)

    def lookup(self, tokens_BL: Tensor) -> Tensor:
        """Codes of the tokens, (B, Z, 1, L)."""
        codes = self._unit(self.embedding(tokens_BL))
        return codes.transpose(1, 2)[:, :, None]

    def codes(self) -> Tensor:
        """All codes, (V, Z)."""
        return self._unit(self.embedding.weight)

    @property
    def mean(self) -> Tensor:
        """Of all codes, (Z,)."""
        return self.codes().mean(0)

    def _unit(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.l2_norm else vectors


class Posterior(nn.Module):
    """What a VAE has in place of a codebook: tokens are the latents, each drawn from a normal distribution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def moments(self, latents_BY1L: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance, each (B, Z, 1, L)."""
        mean, logvar = latents_BY1L.chunk(2, dim=1)
        return mean, logvar.clamp(*LOG_VARIANCE)

    def tokenize(self, latents_BY1L: Tensor) -> Tensor:
        """The means, (B, L, Z)."""
        return self.moments(latents_BY1L)[0][:, :, 0].transpose(1, 2)

    def draw(self, latents_BY1L: Tensor, noise_BLZ: Tensor) -> Tensor:
        """mean + standard deviation * noise, (B, L, Z)."""
        mean, logvar = (each[:, :, 0].transpose(1, 2) for each in self.moments(latents_BY1L))
        return mean + (logvar / 2).exp() * noise_BLZ

    def lookup(self, tokens_BLZ: Tensor) -> Tensor:
        """What the decoder reads, (B, Z, 1, L)."""
        return tokens_BLZ.transpose(1, 2)[:, :, None]

    @property
    def mean(self) -> Tensor:
        """Of the prior, (Z,)."""
        return torch.zeros(self.channels)


class TiTok(TokenizerNetwork):
    """The tokenizer. Images are float32 in [-1, 1]."""

    config: TiTokConfig

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__()
        self.config, self.layout = config, TokenLayout.sequence(config.num_tokens)
        self.image_size, self.vocab_size, self.inferred = config.image_size, config.vocab_size, config.inferred
        self.channels = config.code_channels if config.is_vae else 0
        width = config.encoder.width
        self.latent_tokens = nn.Parameter(width**-0.5 * torch.randn(config.num_tokens, width))
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantize: Codebook | Posterior = (
            Posterior(config.code_channels)
            if config.is_vae
            else Codebook(config.vocab_size, config.code_channels, config.l2_norm)
        )
        self.pixel_quantize = self.pixel_decoder = None
        if (pixels := config.pixel_decoder) is not None:
            self.pixel_quantize = Codebook(pixels.vocab_size, pixels.code_channels)
            self.pixel_decoder = PixelDecoder(pixels)

    def checkpoint_metadata(self) -> dict[str, str]:
        """Whether codes have unit length, which the tensors do not tell."""
        return {} if self.config.is_vae else {"use_l2_norm": str(self.config.l2_norm).lower()}

    def encode(self, images: Tensor) -> Tensor:
        """Latents (B, Z, 1, L), before quantization; of a VAE (B, 2 Z, 1, L), means and logarithms of variances."""
        if images.device.type == "cpu":  # roundings of a matrix product depend on its rows: no image on its batch
            return torch.cat([self.encoder((image + 1) / 2, self.latent_tokens) for image in images.split(1)])
        return self.encoder((images + 1) / 2, self.latent_tokens)

    def tokenize(self, latents: Tensor) -> Tensor:
        """Tokens (B, L), int64, or (B, L, Z) of a VAE. Raises ValueError for another number of latents."""
        if latents.shape[-2:] != (1, self.config.num_tokens):
            raise ValueError(f"latents {tuple(latents.shape)} for {self.layout}")
        return self.quantize.tokenize(latents)

    def draw(self, latents: Tensor, noise_BLZ: Tensor) -> Tensor:
        """As `TokenizerNetwork.draw`."""
        if isinstance(self.quantize, Posterior):
            return self.quantize.draw(latents, noise_BLZ)
        return super().draw(latents, noise_BLZ)

    def decode(self, codes_BZ1L: Tensor) -> Tensor:
        """Images (B, 3, H, H), not clamped. Raises ValueError after the first of two stages."""
        return self._pixels(self.decoder(codes_BZ1L))

    def _pixels(self, drawn: Tensor) -> Tensor:
        """Images in about [-1, 1] from what the decoder draws. Raises: as `decode`."""
        if self.config.predicted is not None and self.pixel_decoder is None:
            raise ValueError("the first stage has no decoder for pixels")
        if self.pixel_decoder is not None and self.pixel_quantize is not None:
            # Not the likeliest code of each cell, but the mean of all: the pixel decoder was trained on these.
            soft = drawn.softmax(dim=1).permute(0, 2, 3, 1) @ self.pixel_quantize.embedding.weight
            drawn = self.pixel_decoder(soft.permute(0, 3, 1, 2))
        return 2 * drawn - 1

    def reconstruct(self, tokens_BL: Tensor) -> Tensor:
        """Images (B, 3, H, H) from tokens, which of a VAE are (B, L, Z)."""
        return self.decode(self.quantize.lookup(tokens_BL)).clamp(-1, 1)

    @torch.inference_mode()
    def footprints(self, tokens_L: Tensor) -> Tensor:
        """As `TokenizerNetwork.footprints`, on the grid of patches, (L, g, g)."""
        codes_BZ1L = self.quantize.lookup(tokens_L[None])
        whole = self.decode(codes_BZ1L).clamp(-1, 1)
        mean_Z1 = self.quantize.mean[:, None].to(whole)
        changes = []
        for t in range(self.config.num_tokens):
            changed = codes_BZ1L.clone()
            changed[..., t] = mean_Z1
            change = (self.decode(changed).clamp(-1, 1) - whole).abs().sum(1, keepdim=True)
            changes.append(F.avg_pool2d(change, self.config.patch)[0, 0])
        each_Lgg = torch.stack(changes)
        total_L11 = each_Lgg.sum((1, 2), keepdim=True)
        return torch.where(total_L11 > 0, each_Lgg / total_L11, 1 / self.config.side**2)
