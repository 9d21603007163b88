"""The registry: what a checkpoint is recognized by, what is read beside it, and families of other packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import programs
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from avarc_cli import families, tokens
from avarc_cli.cli import main
from avarc_cli.errors import CheckpointError, UsageError
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layout import TokenLayout
from avarc_cli.loading import ModelSpec, load_model, load_tokenizer

TOY = Path(__file__).with_name("toy")


def test_a_checkpoint_is_recognized_by_its_tensors(tiny):
    assert families.GENERATORS.recognize(tiny.tensors("var"), None, "x").name == "var"
    assert families.TOKENIZERS.recognize(tiny.tensors("vae"), None, "x").name == "vqvae"


def test_what_every_family_misses_is_listed(tiny):
    tensors = tiny.tensors("var")
    del tensors["pos_1LC"], tensors["lvl_embed.weight"]
    with pytest.raises(CheckpointError, match="not a generator that avarc knows") as error:
        families.GENERATORS.recognize(tensors, None, "x.pth")
    assert "lvl_embed.weight, pos_1LC of a VAR transformer" in error.value.why


def test_metadata_takes_precedence_over_tensors(tiny, tmp_path):
    save_file(tiny.tensors("var"), tmp_path / "x.safetensors", {"family": "llama-3000"})
    with pytest.raises(CheckpointError, match="unknown family 'llama-3000'"):
        load_model(ModelSpec(str(tmp_path / "x.safetensors"), "digits-vqvae"))


def test_two_families_that_fit_are_both_named(tiny, monkeypatch):
    own = dict(families.GENERATORS.own, twin=families.GENERATORS.own["var"])
    monkeypatch.setattr(families.GENERATORS, "own", own)
    with pytest.raises(CheckpointError, match="fits several generator families") as error:
        families.GENERATORS.recognize(tiny.tensors("var"), None, "x.pth")
    assert "--model-config" in error.value.fix
    assert families.GENERATORS.recognize(tiny.tensors("var"), "twin", "x.pth").name == "var"


def test_an_unknown_family_is_answered_with_the_known_ones():
    with pytest.raises(UsageError, match="no generator family 'gpt'") as error:
        families.GENERATORS.get("gpt")
    assert "var" in error.value.why


@pytest.fixture
def scaleless(tiny, tmp_path):
    """A tokenizer's file that does not state its scales."""
    save_file(tiny.tensors("vae"), tmp_path / "vae.safetensors")
    return tmp_path / "vae.safetensors"


def test_scales_that_are_stated_nowhere_are_asked_for(scaleless):
    with pytest.raises(CheckpointError, match=r"scales of .*vae\.safetensors are unknown") as error:
        load_tokenizer(str(scaleless))
    assert "--patch-nums" in error.value.fix


def test_what_tensors_cannot_tell_is_read_in_order_of_precedence(tiny, scaleless, tmp_path):
    def sides(layout=None, **options):
        return load_tokenizer(ModelSpec(str(scaleless), **options), layout=layout).layout.sides

    save_file(tiny.tensors("vae"), scaleless, {"patch_nums": "1,2"})
    assert sides() == (1, 2)
    beside = tmp_path / "config.json"
    beside.write_text(json.dumps({"v_patch_nums": [1, 3]}))
    assert sides() == (1, 3), "a config.json of the reference beside the weights comes before the metadata"
    chosen = tmp_path / "mine.json"
    chosen.write_text(json.dumps({"patch_nums": [1, 2, 4]}))
    assert sides(tokenizer_config=chosen) == (1, 2, 4)
    assert sides(tokenizer_config=chosen, layout=TokenLayout.multi_scale((1, 4))) == (1, 4)


def test_a_configuration_beside_generator_and_tokenizer_serves_both(tiny, scaleless, tmp_path):
    save_file(tiny.tensors("var"), tmp_path / "var.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"family": "var", "patch_nums": tiny.patch_nums}))
    assert load_model(ModelSpec(str(tmp_path / "var.safetensors"), str(scaleless))).family == "var"
    assert load_tokenizer(str(scaleless)).family == "vqvae"
    with pytest.raises(UsageError, match="is a generator, not a tokenizer"):
        load_tokenizer(str(tmp_path / "var.safetensors"))


def test_a_tokenizer_named_without_a_model_encodes_alone(tiny_files, tmp_path, capsys):
    encode = ["encode", str(tiny_files / "img"), "--tokenizer", str(tiny_files / "VAE.pth"), "--preprocess", "none"]
    assert main([*encode, "--out", str(tmp_path / "t.h5")]) == 1
    assert "the scales of" in capsys.readouterr().err, "they are not those of the default model"
    assert main([*encode, "--patch-nums", "1,2,3,4", "--out", str(tmp_path / "t.h5")]) == 0
    assert tokens.read(tmp_path / "t.h5").header.layout.sides == (1, 2, 3, 4)


@pytest.mark.parametrize(
    "text", ["[1, 2]", "{", '{"patch_nums": "one"}', '{"patch_nums": [0]}', '{"patch_nums": true}']
)
def test_a_configuration_that_makes_no_sense_is_named(scaleless, tmp_path, text):
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"mine\.json"):
        load_tokenizer(ModelSpec(str(scaleless), tokenizer_config=tmp_path / "mine.json"))


def test_heads_that_no_tensor_tells_are_inferred_and_recorded(tiny_files, tmp_path):
    from conftest import load_golden

    golden = load_golden("var_tiny_no_qk_norm")
    var, vae = tmp_path / "var.safetensors", tmp_path / "vae.safetensors"
    save_file(golden.tensors("var"), var)
    save_file(golden.tensors("vae"), vae)
    loaded = load_model(ModelSpec(str(var), str(vae)))
    assert loaded.likelihood.config.heads == 2
    assert "64 channels" in loaded.inferred["heads"] and loaded.protocol()["inferred"] == loaded.inferred
    (tmp_path / "config.json").write_text(json.dumps({"num_heads": 4}))
    stated = load_model(ModelSpec(str(var), str(vae)))
    assert stated.likelihood.config.heads == 4
    assert stated.inferred == {} and "inferred" not in stated.protocol()
    (tmp_path / "config.json").write_text(json.dumps({"num_heads": 3}))
    with pytest.raises(CheckpointError, match="cannot have 3 heads"):
        load_model(ModelSpec(str(var), str(vae)))


def test_a_run_with_a_stated_configuration_is_reported_with_it(tiny_files, tmp_path, capsys):
    from conftest import load_golden

    golden, heads = load_golden("var_tiny_no_qk_norm"), tmp_path / "heads.json"
    for part in ("var", "vae"):
        save_file(golden.tensors(part), tmp_path / f"{part}.safetensors")
    heads.write_text(json.dumps({"num_heads": 4}))
    files = ["--model", str(tmp_path / "var.safetensors"), "--tokenizer", str(tmp_path / "vae.safetensors")]
    stated, cache, run = [*files, "--model-config", str(heads)], str(tmp_path / "t.h5"), str(tmp_path / "run")
    assert main(["encode", str(tiny_files / "img"), *stated, "--preprocess", "none", "--out", cache]) == 0
    assert main(["classify", cache, *stated, "--out", run]) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["stated"] == {"num_heads": 4}
    capsys.readouterr()
    assert main(["report", run, "--tokens", cache, *stated, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["explained"] == 2
    for words in (["report", run, "--tokens", cache], ["classify", cache, "--out", run]):
        assert main([*words, *files]) == 2, "other heads, another model"
        assert "stated" in capsys.readouterr().err


def test_the_published_shape_tells_the_scales():
    from avarc_cli.tokenizers.vqvae.config import PUBLISHED, read_config

    with torch.device("meta"):
        from avarc_cli.tokenizers.vqvae.network import VQVAE

        tensors = VQVAE(PUBLISHED).state_dict()
    config = read_config(tensors, ConfigSources(), "vae_ch160v4096z32.pth")
    assert config == PUBLISHED and "256-pixel" in config.inferred["scales"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder into which pip has installed the toy package."""
    folder = tmp_path_factory.mktemp("toy")
    wheel = folder / "avarc_toy-1.0-py3-none-any.whl"
    info = "avarc_toy-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(TOY / "avarc_toy" / "__init__.py", "avarc_toy/__init__.py")
        archive.write(TOY / "entry_points.txt", f"{info}/entry_points.txt")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: avarc-toy\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--target", str(folder / "site"), str(wheel)], check=True, capture_output=True)
    return folder / "site"


@pytest.fixture(scope="module")
def toy_files(tmp_path_factory):
    """Two images, one dark and one bright, and a pair of toy checkpoints that tell them apart."""
    folder = tmp_path_factory.mktemp("toys")
    for name, gray in (("bright", 220), ("dark", 30)):
        (folder / "img" / name).mkdir(parents=True)
        Image.fromarray(np.full((32, 32, 3), gray, np.uint8)).save(folder / "img" / name / "0.png")
    levels = torch.linspace(-1, 1, 8)
    table = torch.stack([levels.expand(16, 8), -levels.expand(16, 8), torch.zeros(16, 8)]).contiguous() * 3
    names = json.dumps(["bright", "dark"])
    save_file({"gray_levels": levels}, folder / "vq.safetensors", {"preprocess": "fit"})
    save_file({"token_table": table}, folder / "toy.safetensors", {"class_names": names})
    return folder


def test_a_family_of_another_package_works_like_one_of_ours(site, toy_files, tmp_path):
    model = ["--model", str(toy_files / "toy.safetensors"), "--tokenizer", str(toy_files / "vq.safetensors")]
    cache, run = str(tmp_path / "t.h5"), str(tmp_path / "run")
    lines = [
        ["encode", str(toy_files / "img"), *model, "--samples", "2", "--out", cache],
        ["classify", cache, *model, "--plan", "2:2,4:1:2", "--out", run],
        ["sample", "dark", *model, "--out", str(tmp_path / "s.png")],
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(site), *sys.path)))}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = programs.start("avarc_commands", env=environment, **pipes)
    _, err = process.communicate(json.dumps(lines))
    assert process.returncode == 0, err
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["accuracy"] == 1.0
    assert (tmp_path / "s.png").exists()


def test_without_the_package_its_checkpoints_are_unknown(toy_files, capsys):
    model = ["--model", str(toy_files / "toy.safetensors"), "--tokenizer", str(toy_files / "vq.safetensors")]
    assert main(["classify", str(toy_files / "img"), *model]) == 1
    err = capsys.readouterr().err
    assert "not a generator that avarc knows" in err and "Traceback" not in err
