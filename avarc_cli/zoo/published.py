"""The cards of what is published on the Hugging Face hub, and of what is shipped with avarc: facts only.

Sizes and file names: https://github.com/FoundationVision/VAR, https://github.com/thu-ml/CCA,
https://github.com/FoundationVision/LlamaGen, https://github.com/ziqipang/RandAR and
https://github.com/bytedance/1d-tokenizer. No card pins a revision, and only those of two RARs a sha256: the others were
not available when the cards were written.
"""

from __future__ import annotations

from avarc_cli.layout import TokenLayout
from avarc_cli.zoo import included
from avarc_cli.zoo.card import HubFile, ModelCard, TokenizerCard

SCALES_256 = TokenLayout.multi_scale((1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
SCALES_512 = TokenLayout.multi_scale((1, 2, 3, 4, 6, 9, 13, 18, 24, 32))


def _published(name: str, *, params: int, weights: HubFile, source: str, size: int = 256) -> ModelCard:
    """A class-conditional VAR on ImageNet-1k."""
    return ModelCard(
        name=name,
        family="var",
        tokenizer=f"var-vqvae-{size}",
        image_size=size,
        layout=SCALES_512 if size == 512 else SCALES_256,
        num_classes=1000,
        label_space="imagenet1k",
        params=params,
        license="MIT",
        source=source,
        weights=weights,
    )


def _var(depth: int, params: int, size: int = 256) -> ModelCard:
    weights = HubFile("FoundationVision/var", f"var_d{depth}.pth")
    return _published(f"var-d{depth}", params=params, weights=weights, source="arXiv:2404.02905", size=size)


def _cca(depth: int, params: int) -> ModelCard:
    weights = HubFile("ChenDRAG/CCA_VAR", f"CCA_VAR_Guidance_Free/VAR_d{depth}_CCA.pth")
    return _published(f"var-d{depth}-cca", params=params, weights=weights, source="arXiv:2410.09347")


def _var_tokenizer(size: int, layout: TokenLayout) -> TokenizerCard:
    """One file serves both sizes: the network is convolutional, only the scales differ."""
    return TokenizerCard(
        name=f"var-vqvae-{size}",
        family="vqvae",
        image_size=size,
        layout=layout,
        params=109_000_000,
        weights=HubFile("FoundationVision/var", "vae_ch160v4096z32.pth"),
        license="MIT",
        source="arXiv:2404.02905",
        preprocess="resize-crop",
    )


_LLAMAGEN_PARAMS = {
    "b": 110_888_448,
    "l": 342_910_976,
    "xl": 774_699_520,
    "xxl": 1_410_972_672,
    "3b": 3_096_659_200,
}
_LLAMAGEN_SIZES = ("B", "L", "XL", "XXL", "3B")


def _llamagen(size: str, pixels: int) -> ModelCard:
    """A class-conditional LlamaGen on ImageNet-1k."""
    return ModelCard(
        name=f"llamagen-{size.lower()}-{pixels}",
        family="llamagen",
        tokenizer=f"llamagen-vq16-{pixels}",
        image_size=pixels,
        layout=_llamagen_grid(pixels),
        num_classes=1000,
        label_space="imagenet1k",
        params=_LLAMAGEN_PARAMS[size.lower()],
        license="MIT",
        source=_LLAMAGEN,
        weights=HubFile("FoundationVision/LlamaGen", f"c2i_{size}_{pixels}.pt"),
    )


def _randar(name: str, file_size: str, params: int, *, reads: str = "llamagen") -> ModelCard:
    """A class-conditional RandAR on ImageNet-1k, of LlamaGen's or MaskGIT's tokens."""
    return ModelCard(
        name=f"randar-{name}-256",
        family="randar",
        tokenizer={"llamagen": "llamagen-vq16-256", "maskgit": "maskgit-vqgan-256"}[reads],
        image_size=256,
        layout=_llamagen_grid(256),
        num_classes=1000,
        label_space="imagenet1k",
        params=params,
        license="MIT",
        source="arXiv:2412.01827",
        weights=HubFile("ziqipang/RandAR", f"randar_{file_size}_{reads}_360k_bs_1024_lr_0.0004.safetensors"),
    )


def _llamagen_text(stage: int, pixels: int) -> ModelCard:
    """A LlamaGen-XL that is conditioned on captions."""
    return ModelCard(
        name=f"llamagen-t2i-xl-{pixels}",
        family="llamagen-t2i",
        tokenizer=f"llamagen-vq16-t2i-{pixels}",
        image_size=pixels,
        layout=_llamagen_grid(pixels),
        num_classes=0,
        label_space="captions",
        params=777_678_080,
        license="MIT",
        source=_LLAMAGEN,
        weights=HubFile("peizesun/llamagen_t2i", f"t2i_XL_stage{stage}_{pixels}.pt"),
        condition="caption",
        text_encoder="flan-t5-xl",
    )


def _llamagen_tokenizer(name: str, pixels: int, params: int, weights: HubFile, downsampling: int = 16) -> TokenizerCard:
    """One file serves images of every size."""
    return TokenizerCard(
        name=f"llamagen-{name}-{pixels}",
        family="llamagen-vq",
        image_size=pixels,
        layout=_llamagen_grid(pixels, downsampling),
        params=params,
        weights=weights,
        license="MIT",
        source=_LLAMAGEN,
        preprocess="adm",
    )


def _llamagen_grid(pixels: int, downsampling: int = 16) -> TokenLayout:
    return TokenLayout.raster(pixels // downsampling, pixels // downsampling)


def _rar(size: str, params: int, sha256: str | None = None) -> ModelCard:
    """A RAR on ImageNet-1k."""
    return ModelCard(
        name=f"rar-{size}",
        family="rar",
        tokenizer="maskgit-vqgan-256",
        image_size=256,
        layout=TokenLayout.raster(16, 16),
        num_classes=1000,
        label_space="imagenet1k",
        params=params,
        license="Apache-2.0",
        source="arXiv:2411.00776",
        weights=HubFile("yucornetto/RAR", f"rar_{size}.bin", sha256=sha256),
    )


def _titok(name: str, num_tokens: int, params: int, channels: int = 0) -> TokenizerCard:
    """A TiTok with a codebook, or a VAE with tokens of this many channels, of images of 256 pixels."""
    return TokenizerCard(
        name=f"titok-{name.replace('_vq8k', '').replace('_vae_c16', '-vae')}",
        family="titok",
        image_size=256,
        layout=TokenLayout.sequence(num_tokens),
        params=params,
        weights=HubFile(f"yucornetto/tokenizer_titok_{name}_imagenet", "model.safetensors"),
        license="Apache-2.0",
        source=_TITOK,
        preprocess="adm",
        channels=channels,
    )


def _tatitok(name: str, num_tokens: int, params: int, channels: int = 0) -> TokenizerCard:
    """A TA-TiTok with a codebook, or a VAE with tokens of this many channels, of images of 256 pixels."""
    return TokenizerCard(
        name=f"tatitok-{name.replace('_', '-')}",
        family="tatitok",
        image_size=256,
        layout=TokenLayout.sequence(num_tokens),
        params=params,
        weights=HubFile(f"turkeyju/tokenizer_tatitok_{name}", "model.safetensors"),
        license="Apache-2.0",
        source=_TATITOK,
        preprocess="adm",
        channels=channels,
    )


def _maskgit(name: str, num_tokens: int, params: int, family: str) -> ModelCard:
    """A MaskGIT of the tokens of the TiTok of the same name, on ImageNet-1k."""
    return ModelCard(
        name=f"maskgit-{name}",
        family=family,
        tokenizer=f"titok-{name}",
        image_size=256,
        layout=TokenLayout.sequence(num_tokens),
        num_classes=1000,
        label_space="imagenet1k",
        params=params,
        license="Apache-2.0",
        source=_TITOK,
        weights=HubFile(f"yucornetto/generator_titok_{name}_imagenet", "model.safetensors"),
    )


def _maskgen(name: str, params: int) -> ModelCard:
    """A MaskGen that is conditioned on captions: "vq" of 128 codes, "kl" of 32 continuous tokens."""
    codes = name.startswith("vq")
    return ModelCard(
        name=f"maskgen-{name}",
        family="maskgen" if codes else "maskgen-kl",
        tokenizer="tatitok-bl128-vq" if codes else "tatitok-bl32-vae",
        image_size=256,
        layout=TokenLayout.sequence(128 if codes else 32),
        channels=0 if codes else 16,
        num_classes=0,
        label_space="captions",
        params=params,
        license="Apache-2.0",
        source=_TATITOK,
        weights=HubFile(f"turkeyju/generator_maskgen_{name.replace('-', '_')}", "model.safetensors"),
        condition="caption",
        text_encoder="clip-vit-l-14-336",
    )


_TITOK = "arXiv:2406.07550"
_TATITOK = "arXiv:2501.07730"  # and MaskGen
_LLAMAGEN = "arXiv:2406.06525"
_VQ16, _VQ8 = 71_883_403, 70_109_835  # parameters
_VQ16_FILE = HubFile("FoundationVision/LlamaGen", "vq_ds16_c2i.pt")
_VQ16_TEXT_FILE = HubFile("peizesun/llamagen_t2i", "vq_ds16_t2i.pt")

MODELS = (
    *included.MODELS,
    _var(16, 310_000_000),
    _var(20, 600_000_000),
    _var(24, 1_000_000_000),
    _var(30, 2_000_000_000),
    _var(36, 2_300_000_000, size=512),
    _cca(16, 310_000_000),
    _cca(20, 600_000_000),
    _cca(24, 1_000_000_000),
    _cca(30, 2_000_000_000),
    *(_llamagen(size, 256) for size in _LLAMAGEN_SIZES[:2]),
    *(_llamagen(size, 384) for size in _LLAMAGEN_SIZES),
    _llamagen_text(1, 256),
    _llamagen_text(2, 512),
    _randar("l", "0.3b", 342_912_000),
    _randar("l-maskgit", "0.3b", 311_454_720, reads="maskgit"),
    _randar("xl", "0.7b", 774_700_800),
    _rar("b", 260_923_648, "cbbf4b27dc36afae77fdb2fe0d6b9b5b7446eae45f1a9f91d442ab0b315b9ebf"),
    _rar("l", 461_668_352, "edad8e9905e20a5df14eeee0d5d04c1be48b16a7751b4b3f4954a6dec8ad87d5"),
    _rar("xl", 955_425_024),
    _rar("xxl", 1_498_520_704),
    _maskgit("l32", 32, 177_202_432, "maskgit-bert"),
    _maskgit("b64", 64, 177_227_008, "maskgit-bert"),
    _maskgit("s128", 128, 294_990_848, "maskgit"),
    _maskgen("vq-l", 604_311_552),
    _maskgen("vq-xl", 1_176_611_840),
    _maskgen("kl-l", 641_364_000),
    _maskgen("kl-xl", 1_237_345_312),
)

TOKENIZERS = (
    *included.TOKENIZERS,
    _var_tokenizer(256, SCALES_256),
    _var_tokenizer(512, SCALES_512),
    _llamagen_tokenizer("vq16", 256, _VQ16, _VQ16_FILE),
    _llamagen_tokenizer("vq16", 384, _VQ16, _VQ16_FILE),
    _llamagen_tokenizer("vq8", 256, _VQ8, HubFile("FoundationVision/LlamaGen", "vq_ds8_c2i.pt"), downsampling=8),
    _llamagen_tokenizer("vq16-t2i", 256, _VQ16, _VQ16_TEXT_FILE),
    _llamagen_tokenizer("vq16-t2i", 512, _VQ16, _VQ16_TEXT_FILE),
    TokenizerCard(
        name="maskgit-vqgan-256",
        family="maskgit-vqgan",
        image_size=256,
        layout=TokenLayout.raster(16, 16),
        params=54_515_587,
        weights=HubFile("fun-research/TiTok", "maskgit-vqgan-imagenet-f16-256.bin"),
        license="Apache-2.0",
        source="arXiv:2202.04200",
        preprocess="adm",
    ),
    _titok("l32", 32, 641_054_735),
    _titok("b64", 64, 204_814_095),
    _titok("s128", 128, 83_674_639),
    _titok("bl64_vq8k", 64, 390_016_148),
    _titok("bl128_vq8k", 128, 390_179_988),
    _titok("sl256_vq8k", 256, 330_260_884),
    _titok("ll32_vae_c16", 32, 606_879_604, channels=16),
    _titok("bl64_vae_c16", 64, 389_418_100, channels=16),
    _titok("bl128_vae_c16", 128, 389_581_940, channels=16),
    _tatitok("bl32_vq", 32, 390_800_532),
    _tatitok("bl64_vq", 64, 390_882_452),
    _tatitok("bl128_vq", 128, 391_046_292),
    _tatitok("bl32_vae", 32, 390_202_484, channels=16),
    _tatitok("bl64_vae", 64, 390_284_404, channels=16),
    _tatitok("sl128_vae", 128, 330_275_188, channels=16),
)
