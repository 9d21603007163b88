"""The models and tokenizers that are shipped with avarc: small ones, of handwritten digits."""

from __future__ import annotations

from avarc_cli.layout import TokenLayout
from avarc_cli.zoo.card import AssetFile, ModelCard, TokenizerCard

SCALES_DIGITS = TokenLayout.multi_scale((1, 2, 3, 5, 8))
_GRID = TokenLayout.raster(8, 8)
_LICENSE = "weights MIT; images CC BY 4.0 (UCI Optical Recognition of Handwritten Digits)"
_SOURCE = "scikit-learn handwritten digits"

MODELS = (
    ModelCard(
        name="digits",
        family="var",
        tokenizer="digits-vqvae",
        image_size=16,
        layout=SCALES_DIGITS,
        num_classes=10,
        label_space="digits",
        params=1_252_872,
        license=_LICENSE,
        source=_SOURCE,
        weights=AssetFile("digits/var.safetensors"),
    ),
    ModelCard(
        name="digits-0-4",
        family="var",
        tokenizer="digits-vqvae",
        image_size=16,
        layout=SCALES_DIGITS,
        num_classes=5,
        label_space="digits",
        params=323_076,
        license=_LICENSE,
        source=_SOURCE,
        weights=AssetFile("digits-0-4/var.safetensors"),
    ),
    ModelCard(
        name="digits-llamagen",
        family="llamagen",
        tokenizer="digits-vq",
        image_size=16,
        layout=_GRID,
        num_classes=10,
        label_space="digits",
        params=456_576,
        license=_LICENSE,
        source=_SOURCE,
        weights=AssetFile("digits-llamagen/llamagen.safetensors"),
    ),
    ModelCard(
        name="digits-randar",
        family="randar",
        tokenizer="digits-vq",
        image_size=16,
        layout=_GRID,
        num_classes=10,
        label_space="digits",
        params=567_456,
        license=_LICENSE,
        source=_SOURCE,
        weights=AssetFile("digits-randar/randar.safetensors"),
    ),
    ModelCard(
        name="digits-titok",
        family="maskgit",
        tokenizer="digits-titok-vq",
        image_size=16,
        layout=TokenLayout.sequence(16),
        num_classes=10,
        label_space="digits",
        params=426_544,
        license=_LICENSE,
        source=_SOURCE,
        weights=AssetFile("digits-titok/maskgit.safetensors"),
    ),
    ModelCard(
        name="digits-captions",
        family="llamagen-t2i",
        tokenizer="digits-vq",
        image_size=16,
        layout=_GRID,
        num_classes=0,
        label_space="captions",
        params=472_928,
        license=_LICENSE,
        source=_SOURCE,
        weights=AssetFile("digits-captions/t2i.safetensors"),
        condition="caption",
        text_encoder="digits-text",
    ),
)

TOKENIZERS = (
    TokenizerCard(
        name="digits-vqvae",
        family="vqvae",
        image_size=16,
        layout=SCALES_DIGITS,
        params=715_419,
        weights=AssetFile("digits/vqvae.safetensors"),
        license=_LICENSE,
        source=_SOURCE,
        preprocess="fit",
    ),
    TokenizerCard(
        name="digits-vq",
        family="llamagen-vq",
        image_size=16,
        layout=_GRID,
        params=238_123,
        weights=AssetFile("digits-llamagen/vq.safetensors"),
        license=_LICENSE,
        source=_SOURCE,
        preprocess="fit",
    ),
    TokenizerCard(
        name="digits-titok-vq",
        family="titok",
        image_size=16,
        layout=TokenLayout.sequence(16),
        params=313_804,
        weights=AssetFile("digits-titok/titok.safetensors"),
        license=_LICENSE,
        source=_SOURCE,
        preprocess="fit",
    ),
)
