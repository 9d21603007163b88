"""Text encoders as weights: listed, downloaded with models of captions, verified, and found offline."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from fake_hub import COMMIT, sha256
from safetensors.torch import load_file, save_file
from tiny_encoders import tiny_t5

from avarc_cli.cli import main
from avarc_cli.text import encoders
from avarc_cli.zoo import cards, local_files

T5 = "google/flan-t5-xl"


def git_digest(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def folder(tmp_path):
    """A tiny T5 in two shards, as the card says."""
    made = tiny_t5(tmp_path / "t5")
    tensors = sorted(load_file(made / "model.safetensors").items())
    (made / "model.safetensors").unlink()
    places = {}
    for number, part in enumerate((tensors[:3], tensors[3:]), 1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file(dict(part), made / name, {"format": "pt"})
        places |= dict.fromkeys(dict(part), name)
    index = {"metadata": {}, "weight_map": places}
    (made / "model.safetensors.index.json").write_text(json.dumps(index))
    return made


@pytest.fixture
def published(hub, folder):
    """The hub with this T5. As on the real one, small files have git's digest for an ETag, and no sha256."""
    for name in cards.text_encoder_card("flan-t5-xl").weights.filenames:
        hub.files[T5, name] = (folder / name).read_bytes()

    @hub.rule
    def small_file(request):
        if not request.path.endswith(".json") or request.is_blob or T5 not in request.path:
            return False
        name = request.path.rpartition("/")[2]
        content = hub.files[T5, name]
        headers = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{git_digest(content)}"'}
        headers |= {"X-Linked-Size": str(len(content)), "Location": f"{hub.cdn_url}/cdn/{T5}/{name}"}
        return request.reply(302, headers)

    return hub


def test_a_text_encoder_is_downloaded_verified_and_loaded(published, capsys, folder):
    assert main(["download", "flan-t5-xl", "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert [file["filename"] for file in files] == list(cards.text_encoder_card("flan-t5-xl").weights.filenames)
    assert all(file["sha256"] == sha256((folder / file["filename"]).read_bytes()) for file in files)
    found = encoders.find("flan-t5-xl")
    assert found.name == "flan-t5-xl" and found.load(torch.device("cpu")).tokens("nine")
    assert main(["models", "verify", "flan-t5-xl", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["files"]
    assert {each["status"] for each in results} == {"whole"} and len(results) == 5
    assert main(["download", "flan-t5-xl", "--offline"]) == 0


@pytest.mark.parametrize("name", ["config.json", "model-00002-of-00002.safetensors"])
def test_damage_is_found(published, capsys, name):
    assert main(["download", "flan-t5-xl"]) == 0
    blob = (local_files.locate_folder(cards.text_encoder_card("flan-t5-xl").weights) / name).resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    assert main(["models", "verify", "flan-t5-xl"]) == 1
    assert f"{name} is damaged" in capsys.readouterr().err
    assert main(["download", "flan-t5-xl"]) == 0
    assert main(["models", "verify", "flan-t5-xl"]) == 0


def test_a_small_file_that_is_not_what_the_hub_says_is_deleted(published, capsys):
    content = published.files[T5, "config.json"]

    @published.rule
    def spoilt(request):
        is_config = request.is_blob and request.path.endswith("/config.json")
        return is_config and request.reply(200, {}, content[:-1] + b"?")

    assert main(["download", "flan-t5-xl"]) == 1
    error = capsys.readouterr().err
    assert "its git digest is" in error and "is corrupt and has been deleted" in error


def test_a_model_of_captions_brings_its_text_encoder(published, capsys):
    for repo, name in (("peizesun/llamagen_t2i", "t2i_XL_stage1_256.pt"), ("peizesun/llamagen_t2i", "vq_ds16_t2i.pt")):
        published.files[repo, name] = published.files["FoundationVision/var", "vae_ch160v4096z32.pth"]
    assert main(["download", "llamagen-t2i-xl-256", "--json"]) == 0
    names = [file["name"] for file in json.loads(capsys.readouterr().out)["files"]]
    assert names[:2] == ["llamagen-t2i-xl-256", "llamagen-vq16-t2i-256"] and set(names[2:]) == {"flan-t5-xl"}


def test_with_yes_a_missing_text_encoder_is_downloaded(published, tmp_path, capsys):
    (tmp_path / "c.txt").write_text("nine\nthree\n")
    words = ["captions", "encode", str(tmp_path / "c.txt"), "--encoder", "flan-t5-xl"]
    out = tmp_path / "f.safetensors"
    assert main([*words, "--out", str(out), "--yes"]) == 0, capsys.readouterr().err
    assert load_file(out)["sequence"].shape == (2, 2, 16)
    assert main(["-q", *words, "--out", str(out), "--overwrite"]) == 0


def test_a_revision_is_remembered(published, capsys):
    assert main(["download", "flan-t5-xl", "--revision", "v1"]) == 0
    assert cards.text_encoder_card("flan-t5-xl").weights.revision is not None


@pytest.mark.parametrize("name", ["flan-t5-xl", "clip-vit-l-14-336"])
def test_they_are_listed_and_shown(home, capsys, name):
    assert main(["models"]) == 0
    assert name in capsys.readouterr().out
    assert main(["models", "show", name]) == 0
    said = capsys.readouterr().out
    assert f"avarc download {name}" in said and "not on this machine" in said
    assert main(["models", "add", name, "nowhere.pt"]) == 2
    assert "is taken" in capsys.readouterr().err
