"""TiTok: image -> patches beside learned latent tokens -> latents -> tokens -> codes -> image (arXiv:2406.07550).

Checkpoint-compatible with the published two-stage and single-stage models. The network itself reads and draws images in
[0, 1]; `TiTok` converts them from and to [-1, 1].
Shapes: B images, L latent tokens, Z channels of latents and codes, V codes, C width of a transformer, g side of the
grid of patches, p side of a patch in pixels, U codes of the MaskGIT-VQGAN.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.layers.vision_transformer import Block
from avarc_cli.layout import TokenLayout
from avarc_cli.likelihood import TokenizerNetwork
from avarc_cli.tokenizers.maskgit_vqgan.network import Decoder as PixelDecoder
from avarc_cli.tokenizers.titok.config import TiTokConfig, TransformerConfig
from avarc_kernels import nearest_code


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

    def blocks(self, grid_BgC: Tensor, latents_BLC: Tensor) -> Tensor:
        """Hidden states of the class embedding, the g^2 cells and the L latents, (B, 1 + g^2 + L, C)."""
        first = self.class_embedding.expand(len(grid_BgC), -1, -1)
        grid = torch.cat([first, grid_BgC], dim=1) + self.positional_embedding
        latents = latents_BLC + self.latent_token_positional_embedding
        return self.transformer(self.ln_pre(torch.cat([grid, latents], dim=1)))


class Encoder(Transformer):
    def __init__(self, c: TiTokConfig) -> None:
        super().__init__(c, c.encoder)
        self.patch_embed = nn.Conv2d(3, c.encoder.width, c.patch, c.patch)
        self.conv_out = nn.Conv2d(c.encoder.width, c.code_channels, 1)
        self.reinterprets = c.predicted is not None

    def forward(self, images: Tensor, latent_tokens_LC: Tensor) -> Tensor:
        """Latents (B, Z, 1, L)."""
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

    def forward(self, codes_BZ1L: Tensor) -> Tensor:
        """Logits (B, U, g, g), or images (B, 3, H, H) in about [0, 1]."""
        cells = self.side**2
        latents = self.decoder_embed(codes_BZ1L[:, :, 0].transpose(1, 2))
        hidden = self.blocks(self.mask_token.expand(len(latents), cells, -1), latents)[:, 1 : 1 + cells]
        grid = self.ffn(self.ln_post(hidden).transpose(1, 2).unflatten(2, (self.side, self.side)))
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
        return nearest_code(z.flatten(0, 1), self._unit(self.embedding.weight)).view(len(z), -1)

    def lookup(self, tokens_BL: Tensor) -> Tensor:
        """Codes of the tokens, (B, Z, 1, L)."""
        codes = self._unit(self.embedding(tokens_BL))
        return codes.transpose(1, 2)[:, :, None]

    @property
    def mean(self) -> Tensor:
        """Of all codes, (Z,)."""
        return self._unit(self.embedding.weight).mean(0)

    def _unit(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.l2_norm else vectors


class TiTok(TokenizerNetwork):
    """The tokenizer. Images are float32 in [-1, 1]."""

    config: TiTokConfig

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__()
        self.config, self.layout = config, TokenLayout.sequence(config.num_tokens)
        self.image_size, self.vocab_size, self.inferred = config.image_size, config.vocab_size, config.inferred
        width = config.encoder.width
        self.latent_tokens = nn.Parameter(width**-0.5 * torch.randn(config.num_tokens, width))
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantize = Codebook(config.vocab_size, config.code_channels, config.l2_norm)
        self.pixel_quantize = self.pixel_decoder = None
        if (pixels := config.pixel_decoder) is not None:
            self.pixel_quantize = Codebook(pixels.vocab_size, pixels.code_channels)
            self.pixel_decoder = PixelDecoder(pixels)

    def checkpoint_metadata(self) -> dict[str, str]:
        """Whether codes have unit length, which the tensors do not tell."""
        return {"use_l2_norm": str(self.config.l2_norm).lower()}

    def encode(self, images: Tensor) -> Tensor:
        """Latents (B, Z, 1, L), before quantization."""
        if images.device.type == "cpu":  # roundings of a matrix product depend on its rows: no image on its batch
            return torch.cat([self.encoder((image + 1) / 2, self.latent_tokens) for image in images.split(1)])
        return self.encoder((images + 1) / 2, self.latent_tokens)

    def tokenize(self, latents: Tensor) -> Tensor:
        """Tokens (B, L), int64. Raises ValueError for another number of latents."""
        if latents.shape[-2:] != (1, self.config.num_tokens):
            raise ValueError(f"latents {tuple(latents.shape)} for {self.layout}")
        return self.quantize.tokenize(latents)

    def decode(self, codes_BZ1L: Tensor) -> Tensor:
        """Images (B, 3, H, H), not clamped. Raises ValueError after the first of two stages."""
        drawn = self.decoder(codes_BZ1L)
        if self.config.predicted is not None and self.pixel_decoder is None:
            raise ValueError("the first stage has no decoder for pixels")
        if self.pixel_decoder is not None and self.pixel_quantize is not None:
            # Not the likeliest code of each cell, but the mean of all: the pixel decoder was trained on these.
            soft = drawn.softmax(dim=1).permute(0, 2, 3, 1) @ self.pixel_quantize.embedding.weight
            drawn = self.pixel_decoder(soft.permute(0, 3, 1, 2))
        return 2 * drawn - 1

    def reconstruct(self, tokens_BL: Tensor) -> Tensor:
        """Images (B, 3, H, H) from tokens."""
        return self.decode(self.quantize.lookup(tokens_BL)).clamp(-1, 1)

    @torch.inference_mode()
    def footprints(self, tokens_L: Tensor) -> Tensor:
        """As `TokenizerNetwork.footprints`, on the grid of patches, (L, g, g)."""
        codes_BZ1L = self.quantize.lookup(tokens_L[None])
        whole = self.decode(codes_BZ1L).clamp(-1, 1)
        changes = []
        for t in range(self.config.num_tokens):
            changed = codes_BZ1L.clone()
            changed[..., t] = self.quantize.mean[:, None]
            change = (self.decode(changed).clamp(-1, 1) - whole).abs().sum(1, keepdim=True)
            changes.append(F.avg_pool2d(change, self.config.patch)[0, 0])
        each_Lgg = torch.stack(changes)
        total_L11 = each_Lgg.sum((1, 2), keepdim=True)
        return torch.where(total_L11 > 0, each_Lgg / total_L11, 1 / self.config.side**2)
