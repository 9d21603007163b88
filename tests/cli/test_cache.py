"""avarc cache, and avarc encode --shard, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

import avarc_cli
from avarc_cli.cli import main
from avarc_cli.tokens import read

DIGITS = Path(avarc_cli.__file__).parent / "assets" / "digits" / "test"


@pytest.fixture(scope="module")
def encode(tiny_files, models):
    def run(out, *options):
        words = [
            "encode",
            str(tiny_files / "img"),
            *models,
            "--preprocess",
            "none",
            "--samples",
            "2",
            "--out",
            str(out),
        ]
        return main(["--quiet", *words, *options])

    return run


@pytest.fixture(scope="module")
def cache(encode, tmp_path_factory):
    out = tmp_path_factory.mktemp("cache") / "t.h5"
    assert encode(out, "--batch-size", "1") == 0
    return out


def asked(capsys, *words):
    capsys.readouterr()
    code = main(["--json", "cache", *map(str, words)])
    shown = capsys.readouterr()
    return code, json.loads(shown.out) if code == 0 else shown.err


def test_info_says_how_a_cache_was_made(cache, tiny, capsys):
    code, facts = asked(capsys, "info", cache)
    assert code == 0
    assert (facts["images"], facts["samples"], facts["part"], facts["dataset"]) == (2, 2, None, None)
    assert facts["scales"] == list(tiny.patch_nums)
    assert facts["bytes"] == cache.stat().st_size
    assert main(["cache", "info", str(cache)]) == 0
    assert "VAE.pth" in capsys.readouterr().out


@pytest.mark.parametrize("dataset", ["tokens", "paths"])
def test_verify_names_the_rows_that_changed(cache, tmp_path, capsys, dataset):
    code, facts = asked(capsys, "verify", cache)
    assert (code, facts["damaged"], facts["checksums"]) == (0, [], 5)  # of each dataset
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(cache.read_bytes())
    with h5py.File(damaged, "r+") as file:
        file[dataset][0] = file[dataset][1]
    code, said = asked(capsys, "verify", damaged)
    assert code == 1 and f"/{dataset} of rows 0 to 1 differs" in said
    assert main(["cache", "info", str(damaged)]) == 1
    shown, said = capsys.readouterr()
    assert "tokenizer sha256" in shown and f"/{dataset} of rows 0 to 1 differs" in said


def test_head_does_not_show_tokens_that_changed(cache, tmp_path, capsys):
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(cache.read_bytes())
    with h5py.File(damaged, "r+") as file:
        file["tokens"][1] ^= 1
    code, said = asked(capsys, "head", damaged, "--rows", "1")
    assert code == 1 and "/tokens of rows 0 to 1 differs" in said


def test_verify_recognizes_a_cache_without_checksums(cache, tiny, tmp_path, capsys):
    old = tmp_path / "old.h5"
    old.write_bytes(cache.read_bytes())
    with h5py.File(old, "r+") as file:
        for name in file:
            del file[name].attrs["crc32"]
        header = json.loads(file.attrs["avarc"]) | {"format": 1, "patch_nums": list(tiny.patch_nums)}
        for name in ("layout", "inferred", "dataset", "precision"):  # came later, too
            del header[name]
        file.attrs["avarc"] = json.dumps(header)
    assert asked(capsys, "verify", old)[1]["checksums"] == 0
    assert (read(old).header.dataset, read(old).header.precision) == ("", "fp32")
    assert main(["cache", "verify", str(old)]) == 0
    assert "too old to have checksums" in capsys.readouterr().out


def test_shards_through_the_command_line(encode, cache, tmp_path, capsys):
    for i in (1, 2):
        assert encode(tmp_path / f"{i}.h5", "--shard", f"{i}/2", "--batch-size", "1") == 0
        assert encode(tmp_path / "same.h5", "--shard", f"{i}/2", "--batch-size", "1") == 0
    assert (tmp_path / "same.h5").read_bytes() == cache.read_bytes()
    parts = [tmp_path / "1.h5", tmp_path / "2.h5"]
    assert asked(capsys, "info", parts[0])[1]["part"] == "1 of 2 chunks of 1"
    code, facts = asked(capsys, "merge", *parts, "--out", tmp_path / "all.h5")
    assert (code, facts["images"]) == (0, 2)
    assert (tmp_path / "all.h5").read_bytes() == cache.read_bytes()
    assert "exists" in asked(capsys, "merge", *parts, "--out", tmp_path / "all.h5")[1]
    assert asked(capsys, "merge", *parts, "--out", tmp_path / "all.h5", "--overwrite")[0] == 0
    assert encode(tmp_path / "x.h5", "--shard", "3/2") == 2
    assert "no shard 3/2" in capsys.readouterr().err


def test_a_part_of_a_cache_is_not_classified(encode, models, tmp_path, capsys):
    encode(tmp_path / "1.h5", "--shard", "1/2", "--batch-size", "1")
    assert main(["classify", str(tmp_path / "1.h5"), *models]) == 1
    assert "avarc cache merge" in capsys.readouterr().err


def test_head_shows_rows_and_draws_their_reconstructions(cache, models, tiny, tmp_path, capsys):
    picture = tmp_path / "rows.png"
    code, shown = asked(capsys, "head", cache, "--rows", "1", "--start", "1", "--picture", picture, *models)
    assert code == 0
    (row,) = shown["rows"]
    assert (row["row"], row["name"], row["label"]) == (1, "001.png", None)
    assert row["tokens"][0] == tiny.tokens()[1].tolist()
    assert len(row["tokens"]) == 2
    side = 128  # 64 pixels, enlarged
    drawn = np.asarray(Image.open(picture))[16:, -16 - 2 * side - 6 : -16]
    first = drawn[:side:2, :side:2].astype(float)
    expected = (tiny.vqvae().reconstruct(tiny.tokens()[1:]).detach()[0].permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.abs(first - expected).max() <= 1
    assert main(["cache", "head", str(cache), "--start", "2"]) == 2
    assert main(["cache", "head", str(cache), "--picture", str(picture)]) == 2
    assert "exists" in capsys.readouterr().err
    other = str(tmp_path / "other.png")
    assert main(["cache", "head", str(cache), "--picture", other, "--model", "digits"]) == 1
    assert "another tokenizer" in capsys.readouterr().err


def test_caches_of_different_images_are_concatenated(models, tmp_path, capsys):
    rng = np.random.default_rng(0)
    caches = []
    for folder, classes in (("a", ("cat", "dog")), ("b", ("ant", "dog"))):
        for i, name in enumerate(classes):
            path = tmp_path / folder / name / f"{folder}{i}.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        caches.append(tmp_path / f"{folder}.h5")
        words = ["encode", str(tmp_path / folder), *models, "--preprocess", "none", "--out", str(caches[-1])]
        assert main(["--quiet", *words]) == 0
    capsys.readouterr()
    out = tmp_path / "both.h5"
    assert asked(capsys, "merge", *caches, "--out", out)[0] == 0
    both, a, b = read(out), *map(read, caches)
    assert both.header.class_names == ("ant", "cat", "dog")
    assert both.labels.tolist() == [1, 2, 0, 2]
    assert both.paths == a.paths + b.paths
    assert np.array_equal(both.tokens(range(4)), np.concatenate([a.tokens(range(2)), b.tokens(range(2))]))
    assert (both.header.images, both.header.source) == (4, f"{tmp_path}/a, {tmp_path}/b")
    assert asked(capsys, "verify", out)[0] == 0
    assert "'cat/a0.png' is in" in asked(capsys, "merge", caches[0], out, "--out", tmp_path / "x.h5")[1]


def test_several_devices_make_the_same_file_also_of_a_shard(tmp_path, capsys):
    out = {name: tmp_path / f"{name}.h5" for name in ("alone", "devices", "shards")}

    def encode_digits(name, *options):
        return main(["encode", str(DIGITS), "--per-class", "2", "--batch-size", "4", "--out", str(out[name]), *options])

    assert encode_digits("alone") == 0
    assert encode_digits("devices", "--devices", "cpu:2") == 0
    assert encode_digits("shards", "--shard", "1/2") == 0
    assert encode_digits("shards", "--shard", "2/2", "--devices", "cpu:1", "--workers", "0") == 0
    assert out["alone"].read_bytes() == out["devices"].read_bytes() == out["shards"].read_bytes()
    capsys.readouterr()
    assert encode_digits("alone", "--devices", "cpu:2", "--device", "cpu") == 2
    assert "no use for --device beside --devices" in capsys.readouterr().err


def test_shards_that_had_nothing_to_encode_are_joined_and_explained(encode, cache, tmp_path, capsys):
    parts = [tmp_path / f"{i}.h5" for i in (1, 2, 3)]
    for i, part in enumerate(parts, start=1):
        assert encode(part, "--batch-size", "1", "--shard", f"{i}/3") == 0
    assert [part.exists() for part in parts] == [False, True, True], "two images are two chunks"
    assert main(["cache", "merge", *map(str, parts), "--out", str(tmp_path / "all.h5")]) == 0
    shown, message = capsys.readouterr()
    assert "2 images of 3 shards" in shown
    assert "1.h5: no cache, since there are more shards than chunks; nothing is missing" in message
    assert (tmp_path / "all.h5").read_bytes() == cache.read_bytes()
    assert main(["cache", "merge", *map(str, parts[:2]), "--out", str(tmp_path / "part.h5")]) == 1
    assert "a shard is missing" in capsys.readouterr().err


def test_one_shard_with_every_image_and_empty_ones_are_joined(encode, cache, tmp_path):
    parts = [tmp_path / f"{i}.h5" for i in (1, 2)]
    for i, part in enumerate(parts, start=1):
        assert encode(part, "--shard", f"{i}/2", "--batch-size", "2") == 0
    assert main(["--quiet", "cache", "merge", *map(str, parts), "--out", str(tmp_path / "all.h5")]) == 0
    assert (tmp_path / "all.h5").read_bytes() == parts[1].read_bytes()


def test_a_shard_without_a_chunk_says_so(tiny_files, models, tmp_path, capsys):
    words = ["encode", str(tiny_files / "img"), *models, "--preprocess", "none", "--shard", "1/9"]
    assert main([*words, "--out", str(tmp_path / "x.h5")]) == 0
    assert "shard 1/9 has nothing to encode" in capsys.readouterr().out


def test_the_unfinished_work_of_another_request_is_not_an_empty_shard(encode, cache, tmp_path, capsys):
    assert encode(tmp_path / "other.h5", "--seed", "5", "--shard", "1/9") == 0
    assert main(["cache", "merge", str(cache), str(tmp_path / "other.h5"), "--out", str(tmp_path / "x.h5")]) == 1
    assert "other.h5' does not exist yet" in capsys.readouterr().err
