"""Text encoders of a few kilobytes, in the layout of transformers, with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from golden import fill
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

WORDS = "a photo of the digit zero one two three four five six seven eight nine big small gray black white".split()


def tiny_t5(folder: Path, *, width: int = 16, seed: int = 0) -> Path:
    """A T5 with one block, whose vocabulary is WORDS and all printable ASCII."""
    from transformers import T5Config, T5EncoderModel

    characters = [chr(code) for code in range(33, 127)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    pieces += [(f"▁{word}", -1.0) for word in WORDS] + [(each, -5.0) for each in characters]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(each) for each in ("<pad>", "</s>", "<unk>")])
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(pieces), d_model=width, d_kv=8, d_ff=24, num_layers=1, num_heads=2, is_gated_act=True
    )
    T5EncoderModel(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def clip_tokenizer(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """A CLIP's tokenizer, as its repositories have it."""
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    split = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.add_special_tokens([AddedToken(each) for each in ("<|startoftext|>", "<|endoftext|>")])
    return tokenizer


def letters() -> dict[str, int]:
    """A vocabulary of single letters and marks, then the two special tokens."""
    plain = [chr(code) for code in range(33, 127)]
    tokens = [*plain, *(f"{each}</w>" for each in plain), "<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}


def tiny_clip(folder: Path, *, width: int = 16, embed: int = 8, positions: int = 77, act: str = "quick_gelu") -> Path:
    """A CLIP with two blocks, which spells captions."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    vocab = letters()
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=embed,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=positions,
        hidden_act=act,
        bos_token_id=vocab["<|startoftext|>"],
        eos_token_id=vocab["<|endoftext|>"],
    )
    CLIPTextModelWithProjection(config).save_pretrained(folder)
    clip_tokenizer(vocab, []).save(str(folder / "tokenizer.json"))
    return folder


def golden_clip(folder: Path, golden: Path) -> Path:
    """The CLIP of the golden file, its OpenCLIP tensors under the names of transformers."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    meta, _ = fill.load_golden(str(golden))
    tensors = {k: torch.from_numpy(v) for k, v in fill.state_dict(meta["keys"], meta["seed"], meta["scales"]).items()}
    c = meta["config"]
    config = CLIPTextConfig(
        vocab_size=c["vocab"],
        hidden_size=c["width"],
        intermediate_size=4 * c["width"],
        projection_dim=c["embed"],
        num_hidden_layers=c["layers"],
        num_attention_heads=c["heads"],
        max_position_embeddings=c["context"],
        bos_token_id=c["vocab"] - 2,
        eos_token_id=c["vocab"] - 1,
    )
    network = CLIPTextModelWithProjection(config)
    network.load_state_dict(_named(tensors, c["layers"]))
    network.save_pretrained(folder)
    vocab = {chr(40 + i): i for i in range(c["vocab"] - 2)}
    vocab |= {"<|startoftext|>": c["vocab"] - 2, "<|endoftext|>": c["vocab"] - 1}
    clip_tokenizer(vocab, []).save(str(folder / "tokenizer.json"))
    return folder


def _named(tensors: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    named = {
        "text_model.embeddings.token_embedding.weight": tensors["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": tensors["positional_embedding"],
        "text_projection.weight": tensors["text_projection"].T.contiguous(),
    }
    for kind in ("weight", "bias"):
        named[f"text_model.final_layer_norm.{kind}"] = tensors[f"ln_final.{kind}"]
        for i in range(layers):
            old, new = f"transformer.resblocks.{i}", f"text_model.encoder.layers.{i}"
            parts = tensors[f"{old}.attn.in_proj_{kind}"].chunk(3)
            named |= {f"{new}.self_attn.{n}_proj.{kind}": p for n, p in zip("qkv", parts, strict=True)}
            for theirs, ours in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                named[f"{new}.{ours}.{kind}"] = tensors[f"{old}.{theirs}.{kind}"]
    return {name: value.contiguous() for name, value in named.items()}


def write_config(folder: Path, **values: object) -> None:
    """Change what config.json says."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
