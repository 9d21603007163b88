"""What our trainings write has the names of the published files, and the loaders of these read it strictly."""

from __future__ import annotations

import pytest
import torch
from conftest import GOLDEN
from golden import fill

from avarc_cli import families
from avarc_cli.layers import precision as precisions
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.text.features import TextInput
from avarc_cli.train.save import save_generator, save_tokenizer
from avarc_cli.zoo import checkpoint

CPU = torch.device("cpu")
TEXT = TextInput(encoder="text", positions=5, width=16, pooled_width=16)
CNN = {"image_size": 16, "vocab_size": 8, "ch": 32, "ch_mult": (1, 1, 2), "blocks": 2}
ONE_D = {"image_size": 16, "patch": 4, "num_tokens": 4, "vocab_size": 8, "code_channels": 4, "width": 64, "depth": 2}
SCALES = {"z_channels": 4, "patch_nums": (1, 2, 4)}
TOKENIZERS = {
    "vqvae": ("var_tiny", CNN | SCALES),
    "llamagen-vq": ("llamagen_vq_tiny", CNN | {"code_channels": 4}),
    "maskgit-vqgan": ("maskgit_vqgan_tiny", CNN | {"code_channels": 4}),
    "titok": ("titok_pixel_tiny", ONE_D),
    "titok vae": ("titok_vae_tiny", ONE_D | {"vocab_size": 0}),
    "tatitok": ("tatitok_tiny", ONE_D | {"text": TEXT}),
    "tatitok vae": ("tatitok_vae_tiny", ONE_D | {"text": TEXT, "vocab_size": 0}),
}
SHAPE = {"depth": 2, "width": 64, "heads": 4}
GENERATORS = {
    "var": ("var_tiny", "vqvae", {"depth": 2, "width": 64}),
    "llamagen": ("llamagen_gpt_tiny", "llamagen-vq", SHAPE),
    "llamagen-t2i": ("llamagen_t2i_tiny", "llamagen-vq", SHAPE),
    "randar": ("randar_tiny", "llamagen-vq", SHAPE),
    "rar": ("rar_tiny", "maskgit-vqgan", SHAPE),
    "maskgit": ("maskgit_tiny", "titok", SHAPE),
    "maskgen": ("maskgen_vq_tiny", "tatitok", SHAPE | {"aesthetic_score": 5.0}),
    "maskgen-kl": (
        "maskgen_kl_tiny",
        "tatitok vae",
        SHAPE | {"aesthetic_score": 5.0, "head_width": 32, "head_depth": 2, "scale_factor": 0.5},
    ),
}
NOT_WRITTEN = {  # nothing that is read: the embeddings of MaskGen once more, and statistics of trainings
    "maskgen_vq_tiny": {"lm_head.weight"},
    "tatitok_tiny": {"quantize.embed_prob"},
    "llamagen_vq_tiny": {"quantize.codebook_used"},
}
WRITTEN = {"var_tiny": {"lvl_1L"}}  # which the published files have, and the golden one has not


def plain(keys):
    """Keys without the numbers of layers."""
    return {".".join("N" if part.isdigit() else part for part in key.split(".")) for key in keys}


def published(golden, kind):
    """The keys of a trained network by those of a golden file. kind: of the two networks in VAR's."""
    meta = fill.load_golden(GOLDEN / f"{golden}.npz")[0]
    keys = meta.get("keys", meta.get(f"keys_{kind}"))
    keys = plain(key.removeprefix(f"{kind}.").removeprefix("model.") for key in keys)
    return keys - NOT_WRITTEN.get(golden, set()) | (WRITTEN.get(golden, set()) if kind == "var" else set())


def new_tokenizer(name):
    torch.manual_seed(0)
    return families.TOKENIZERS.get(name.split()[0]).new(**TOKENIZERS[name][1])


def read(path):
    """The tensors of a file, and what it states; as of a published one, but for the family, which is recognized."""
    found = checkpoint.read(path)
    return found.tensors, ConfigSources((("the metadata", found.metadata),))


def same(before, after):
    return before.keys() == after.keys() and all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize("name", TOKENIZERS)
def test_trained_tokenizers(name, tmp_path):
    network, path = new_tokenizer(name), tmp_path / "w.safetensors"
    family = name.split()[0]
    save_tokenizer(network, path, family=family, preprocess="fit")
    tensors, stated = read(path)
    assert plain(tensors) == published(TOKENIZERS[name][0], "vae")
    recognized = families.TOKENIZERS.recognize(tensors, None, "a file")
    assert recognized.name == family
    assert same(network.state_dict(), recognized.build(tensors, stated, "a file").state_dict())


@pytest.mark.parametrize("family", GENERATORS)
def test_trained_generators(family, tmp_path):
    golden, reads, shape = GENERATORS[family]
    tokenizer, maker = new_tokenizer(reads), families.GENERATORS.get(family)
    of_captions = family in ("llamagen-t2i", "maskgen", "maskgen-kl")
    model = maker.new_of_captions(tokenizer, TEXT, **shape) if of_captions else maker.new(tokenizer, 3, **shape)
    path = tmp_path / "w.safetensors"
    save_generator(model, path, class_names=None, tokenizer_sha256="")
    tensors, stated = read(path)
    assert plain(tensors) == published(golden, "var")
    recognized = families.GENERATORS.recognize(tensors, None, "a file")
    assert recognized.name == family
    config = recognized.read_config(tensors, stated, "a file")
    assert str(config) == str(model.config) and not config.inferred
    how = {"precision": precisions.FP32, "kernels": "torch", "device": CPU, "source": "a file"}
    loaded = recognized.build(config, tensors, tokenizer, **how)
    assert same(model.checkpoint_tensors(), loaded.checkpoint_tensors())
