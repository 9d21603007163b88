"""Text encoders: goldens of the original, truncation, what is computed once, and folders that are not whole."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import fill
from tiny_encoders import clip_tokenizer, golden_clip, tiny_clip, tiny_t5, write_config

from avarc_cli.errors import AvarcError, CheckpointError, UsageError
from avarc_cli.text import encoders, feature_file
from avarc_cli.text.clip import CLIP
from avarc_cli.text.encoder import encode

GOLDEN = Path(__file__).parents[1] / "golden"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return tiny_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AVARC_HOME", str(tmp_path / "home"))


def test_all_three_features_of_clip_are_those_of_the_original(tmp_path):
    meta, arrays = fill.load_golden(GOLDEN / "clip_text_tiny.npz")
    clip = encoders.find(golden_clip(tmp_path / "clip", GOLDEN / "clip_text_tiny.npz")).load(CPU)
    ids = [row[: row.argmax() + 1].tolist() for row in arrays["ids"]]  # padding is the encoder's business
    found = clip.encode(ids)
    for ours, theirs in (
        ("sequence", "maskgen_sequence"),
        ("pooled", "maskgen_pooled"),
        ("guidance", "tatitok_guidance"),
    ):
        expected = arrays[theirs].reshape(found[ours].shape)
        assert np.abs(found[ours].numpy() - expected).max() < meta["tolerance"]["default"], ours


def test_clip_reads_the_tokens_that_the_original_reads(clip, monkeypatch):
    golden = json.loads((GOLDEN / "clip_tokens.json").read_text())
    encoder = CLIP(clip, "", 77, CPU)
    encoder.tokenizer = clip_tokenizer(golden["vocab"], [tuple(merge) for merge in golden["merges"]])
    encoder.begin, encoder.end = 49406, 49407
    for case in golden["texts"]:
        assert encoder.cut(encoder.tokens(case["text"])) == case["ids"], case["text"]


def test_clip_features_have_all_positions_and_no_padding(clip):
    encoded = encode(encoders.find(clip).load(CPU), ["a cat", "x " * 200])
    features = encoded.features
    assert features.sequence_RTD.shape == (2, 77, 16) and features.pooled_RE.shape == (2, 8)
    assert features.length_R.tolist() == [77, 77] and features.empty.guidance_RTD.shape == (1, 77, 16)
    assert encoded.cut == (1,)


def test_t5_features_are_the_last_states_of_cleaned_captions(t5):
    from transformers import T5EncoderModel

    found = encoders.find(t5)
    encoder = found.load(CPU)
    captions = ["A photo of the digit <b>three</b>", "nine", "zero " * 130]
    encoded = encode(encoder, captions)
    features = encoded.features
    assert features.length_R.tolist() == [7, 2, 120] and encoded.cut == (2,)
    assert "1 caption was cut to 120 positions" in encoded.note(found.positions)
    assert encoder.cut(encoder.tokens(captions[2]))[-1] == encoder.end
    network = T5EncoderModel.from_pretrained(t5).eval()
    with torch.no_grad():
        alone = network(torch.tensor([encoder.tokens("a photo of the digit three")])).last_hidden_state[0]
    assert torch.allclose(features.sequence_RTD[0, :7], alone, atol=1e-5)
    assert not features.sequence_RTD[0, 7:].any(), "padding is zero"
    assert features.empty.length_R.tolist() == [1] and features.empty.sequence_RTD.shape == (1, 1, 16)


def test_the_published_files_hold_the_other_half_of_the_model_too(tmp_path):
    """flan-t5-xl is a whole T5, CLIP's file is a pickle with the vision tower; only the text encoders are read."""
    from transformers import AutoConfig, CLIPConfig, CLIPModel, T5ForConditionalGeneration

    t5, clip = tiny_t5(tmp_path / "t5"), tiny_clip(tmp_path / "clip")
    torch.manual_seed(0)
    whole = T5ForConditionalGeneration(AutoConfig.from_pretrained(t5))
    (t5 / "model.safetensors").unlink()
    whole.save_pretrained(t5)
    text = json.loads((clip / "config.json").read_text())
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    both = CLIPModel(CLIPConfig(text_config=text, vision_config=vision | {"image_size": 28}, projection_dim=8))
    (clip / "model.safetensors").unlink()
    both.config.save_pretrained(clip)
    torch.save(both.state_dict(), clip / "pytorch_model.bin")
    for folder in (t5, clip):
        write_config(folder, architectures=["Whole"])
    found = encode(encoders.find(t5).load(CPU), ["nine"]).features.sequence_RTD[0]
    ids = encoders.find(t5).load(CPU).tokens("nine")
    with torch.no_grad():
        expected = whole.eval().encoder(torch.tensor([ids])).last_hidden_state[0]
    assert torch.allclose(found, expected, atol=1e-6)
    encoder = encoders.find(clip).load(CPU)
    pooled = encode(encoder, ["nine"]).features.pooled_RE[0]
    filled = encoder.tokens("nine")
    with torch.no_grad():
        states = both.eval().text_model(torch.tensor([filled + [0] * (77 - len(filled))])).last_hidden_state
        expected = both.text_projection(states[0, len(filled) - 1])
    assert torch.allclose(pooled, expected, atol=1e-6)


def test_features_are_computed_once(t5, monkeypatch):
    found, texts = encoders.find(t5), ["three", "nine", "three"]
    first = encoders.encode_once(found, texts, CPU)
    assert torch.equal(first.features.sequence_RTD[0], first.features.sequence_RTD[2])
    monkeypatch.setattr(encoders.Found, "load", lambda *_: pytest.fail("it was encoded again"))
    again = encoders.encode_once(found, texts, CPU)
    assert torch.equal(first.features.sequence_RTD, again.features.sequence_RTD)
    assert torch.equal(first.features.empty.sequence_RTD, again.features.empty.sequence_RTD)
    assert again.features.captions == tuple(texts)


def test_damaged_features_are_computed_again(t5, tmp_path):
    found = encoders.find(t5)
    first = encoders.encode_once(found, ["three"], CPU)
    (kept,) = (tmp_path / "home" / "captions").iterdir()
    kept.write_bytes(kept.read_bytes()[:-9])
    again = encoders.encode_once(found, ["three"], CPU)
    assert torch.equal(first.features.sequence_RTD, again.features.sequence_RTD)
    feature_file.load(kept)


def test_another_encoder_or_caption_is_another_entry(t5, tmp_path):
    other = tiny_t5(tmp_path / "other", seed=1)
    for folder, text in ((t5, "three"), (t5, "nine"), (other, "three")):
        encoders.encode_once(encoders.find(folder), [text], CPU)
    assert len(list((tmp_path / "home" / "captions").iterdir())) == 3


def test_features_survive_a_file(clip, tmp_path):
    encoded = encode(encoders.find(clip).load(CPU), ["a cat", "a dog"])
    feature_file.write(tmp_path / "f.safetensors", encoded.features, ("cat", "dog"), {})
    read, _ = feature_file.load(tmp_path / "f.safetensors")
    for name in ("sequence_RTD", "length_R", "pooled_RE", "guidance_RTD"):
        assert torch.equal(getattr(read, name), getattr(encoded.features, name))
        assert torch.equal(getattr(read.empty, name), getattr(encoded.features.empty, name))
    assert feature_file.read_header(tmp_path / "f.safetensors").names == ("cat", "dog")


def test_an_encoder_that_is_not_here_names_the_command():
    with pytest.raises(AvarcError) as error:
        encoders.find("flan-t5-xl")
    assert "avarc download flan-t5-xl" in error.value.fix
    with pytest.raises(UsageError, match="did you mean flan-t5-xl"):
        encoders.find("flan-t5-xxl")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json"),
        (lambda f: (f / "config.json").write_text("["), "config.json"),
        (lambda f: write_config(f, model_type="bert"), "model_type 'bert'"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 100), "cannot be loaded"),
        (lambda f: write_config(f, num_layers=2), "is not complete"),
        (lambda f: write_config(f, d_ff=32), "lacks|cannot be loaded"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(tmp_path, spoil, says):
    folder = tiny_t5(tmp_path / "t5")
    spoil(folder)
    with pytest.raises(CheckpointError) as error:
        encoders.find(folder).load(CPU)
    assert any(each in str(error.value) for each in says.split("|"))


def test_a_clip_with_another_activation_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="another CLIP"):
        encoders.find(tiny_clip(tmp_path / "clip", act="gelu")).load(CPU)


@pytest.mark.parametrize("missing", ["ftfy", "transformers"])
def test_without_the_extra_the_message_names_it(t5, monkeypatch, missing):
    import sys

    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UsageError) as error:
        encoders.find(t5).load(CPU)
    assert error.value.fix == "pip install 'avarc[text]'" and missing in error.value.why
