"""Text-conditional LlamaGen with features of captions, through the commands."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from golden import fill
from safetensors.numpy import save_file

from avarc_cli.cli import main


def avarc(*words: object) -> int:
    return main([str(word) for word in words])


def write(folder, name, **changes):
    """The weights of a golden file, its configuration beside them; (meta, arrays)."""
    meta, arrays = fill.load_golden(GOLDEN / f"{name}.npz")
    keys = meta["keys"] | {key: shape for key, shape in changes.items() if key in meta["keys"]}
    filled = fill.state_dict(keys, meta["seed"], meta["scales"])
    folder.mkdir()
    torch.save({"model": {key: torch.from_numpy(value) for key, value in filled.items()}}, folder / "w.pt")
    (folder / "config.json").write_text(json.dumps(meta["config"] | changes.get("config", {})))
    return meta, arrays


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t2i")
    meta, arrays = write(folder / "gpt", "llamagen_t2i_tiny")
    tokens, codes = arrays["tokens"], meta["config"]["vocab_size"]
    vq = fill.load_golden(GOLDEN / "llamagen_vq_tiny.npz")[0]
    shape = {"quantize.embedding.weight": [codes, vq["keys"]["quantize.embedding.weight"][1]]}
    size = {"codebook_size": codes, "image_size": 16 * round(tokens.shape[1] ** 0.5)}
    write(folder / "vq", "llamagen_vq_tiny", **shape, config=size)
    lines = [json.dumps({"class_id": -1, "tokens": row.tolist()}) for row in tokens]
    (folder / "t.jsonl").write_text("\n".join(lines) + "\n")
    models = ["--model", folder / "gpt" / "w.pt", "--tokenizer", folder / "vq" / "w.pt"]
    assert avarc("-q", "cache", "import", folder / "t.jsonl", *models[2:], "--out", folder / "t.h5") == 0
    names = [f"caption {i}" for i in range(len(arrays["lengths"]))]
    features = {"sequence": arrays["encoder_features"].astype(np.float32), "length": arrays["lengths"].astype(np.int64)}
    save_file(features, folder / "c.safetensors", {"names": json.dumps(names)})
    models += ["--captions", folder / "c.safetensors"]
    return SimpleNamespace(folder=folder, cache=folder / "t.h5", models=models, expected=arrays["logp"], names=names)


def test_likelihoods_under_captions_are_the_references(setting, tmp_path):
    words = ["-q", "classify", setting.cache, *setting.models, "--save-likelihood", "--out", tmp_path / "run"]
    assert avarc(*words, "--score", "pmi") == 0, "p(x) is that of the null caption in the checkpoint"
    for i, expected in enumerate(setting.expected):
        with np.load(tmp_path / "run" / "likelihood" / f"{i}.npz") as found:
            assert np.abs(found["log_likelihood"] - expected[found["candidates"]]).max() < 2e-4


def test_other_processes_score_the_same(setting, tmp_path):
    words = ["-q", "classify", setting.cache, *setting.models, "--out"]
    assert avarc(*words, tmp_path / "here") == 0
    assert avarc(*words, tmp_path / "there", "--devices", "cpu") == 0
    first, second = ((tmp_path / run / "predictions.jsonl").read_bytes() for run in ("here", "there"))
    assert first == second


def test_pictures_are_drawn_of_a_caption(setting, tmp_path):
    assert avarc("-q", "sample", setting.names[0], *setting.models, "--count", "1", "--out", tmp_path / "s.png") == 0


def test_the_settings_of_the_authors_demo_are_recorded(setting, tmp_path):
    words = ["-q", "sample", setting.names[0], *setting.models, "--per-class", "1", "--preset", "llamagen-t2i-xl-256"]
    assert avarc(*words, "--out", tmp_path / "drawn") == 0
    (record,) = tmp_path.glob("drawn/*.json")
    preset = json.loads(record.read_text())["sampling"]["preset"]
    assert (preset["guidance"], preset["top_k"], preset["stated"]) == (6.5, 1000, "cfg scale 7.5")
