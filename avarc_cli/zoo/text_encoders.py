"""The cards of text encoders that are shipped with avarc or published on the Hugging Face hub: facts only.

The names of the files on the hub are from memory of these repositories, not from a listing.
"""

from __future__ import annotations

from avarc_cli.zoo.card import AssetFolder, HubFolder, TextEncoderCard

TEXT_ENCODERS = (
    TextEncoderCard(
        name="digits-text",
        kind="small",
        positions=32,
        width=64,
        params=84_928,
        weights=AssetFolder("digits-captions/text", ("config.json", "model.safetensors")),
        license="MIT",
        source="captions of digits",
    ),
    TextEncoderCard(
        name="flan-t5-xl",
        kind="t5",
        positions=120,
        width=2048,
        params=1_223_527_424,
        weights=HubFolder(
            "google/flan-t5-xl",
            (
                "config.json",
                "tokenizer.json",
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
            ),
        ),
        license="Apache-2.0",
        source="arXiv:2210.11416",
    ),
    TextEncoderCard(
        name="clip-vit-l-14-336",
        kind="clip",
        positions=77,
        width=768,
        params=123_650_304,
        weights=HubFolder("openai/clip-vit-large-patch14-336", ("config.json", "tokenizer.json", "pytorch_model.bin")),
        license="MIT",
        source="arXiv:2103.00020",
    ),
)
