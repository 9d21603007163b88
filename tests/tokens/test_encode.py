from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from programs import start

from avarc_cli.data import ImageSet, Preprocess, open_images
from avarc_cli.errors import AvarcError, CacheError, Interrupted, UsageError
from avarc_cli.tokens import encode, read, sample_noise

PRE = Preprocess("none", 8)


class Stop:
    """Raises at the n-th call."""

    def __init__(self, at: int, error: type[BaseException]) -> None:
        self.at, self.error = at, error

    def __call__(self) -> None:
        self.at -= 1
        if self.at == 0:
            raise self.error


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "images")


def test_tokens_are_those_of_the_tokenizer_in_the_order_of_the_images(images, stub_tokenizer, tmp_path):
    result = encode(images, stub_tokenizer(), PRE, tmp_path / "t.h5", chunk_size=4, batch_size=3)
    assert (result.images, result.encoded, result.unreadable, result.already_done) == (11, 11, [], False)
    tokens = read(result.path).tokens(range(11))[:, 0]
    for row, path in enumerate(images.paths):
        x = np.asarray(Image.open(path), dtype=np.float64) / 255 * 2 - 1
        assert tokens[row, 0] == int((x.mean() + 1) * 31.5)
        assert tokens[row, 4] == int((x[4:, 4:].mean() + 1) * 31.5)
    assert left(tmp_path) == ["t.h5"]


def test_bytes_depend_neither_on_workers_nor_on_chunks_nor_on_batches(images, stub_tokenizer, tmp_path):
    made = []
    for number, options in enumerate(
        ({}, {"workers": 2, "chunk_size": 4}, {"chunk_size": 1}, {"chunk_size": 5, "batch_size": 2})
    ):
        out = tmp_path / f"{number}.h5"
        encode(images, stub_tokenizer(), PRE, out, samples=3, seed=5, latents=True, **options)
        made.append(out.read_bytes())
    assert all(other == made[0] for other in made)


def test_smoothing_samples_are_noisy_latents_quantized_again(images, stub_tokenizer, tmp_path):
    encode(images, stub_tokenizer(), PRE, tmp_path / "t.h5", samples=3, sigma=0.5, seed=9, latents=True)
    cache = read(tmp_path / "t.h5")
    tokens = cache.tokens(range(11))
    for sample in (1, 2):
        noise = np.stack([sample_noise(9, index, sample, (3, 2, 2)) for index in range(11)])
        images_B3HW = torch.from_numpy(np.stack([PRE(path) for path in images.paths])).permute(0, 3, 1, 2) / 255 * 2 - 1
        latents = stub_tokenizer().encode(images_B3HW) + 0.5 * torch.from_numpy(noise)
        assert (tokens[:, sample] != tokens[:, 0]).any()
        assert np.abs(tokens[:, sample] - stub_tokenizer().quantize(latents).numpy()).max() <= 1  # a rounding apart
    assert (cache.header.sigma, cache.header.seed) == (0.5, 9)


def test_an_unreadable_image_is_listed_and_changes_no_other(images, stub_tokenizer, tmp_path):
    encode(images, stub_tokenizer(), PRE, tmp_path / "complete.h5", samples=2)
    images.paths[2].write_bytes(images.paths[2].read_bytes()[:50])
    images.paths[6].unlink()
    result = encode(images, stub_tokenizer(), PRE, tmp_path / "holes.h5", samples=2, chunk_size=3)
    assert [name for name, _ in result.unreadable] == [images.names[2], images.names[6]]
    assert not any(str(tmp_path) in reason for _, reason in result.unreadable)
    rows = [row for row in range(11) if row not in {2, 6}]
    holes = read(result.path)
    assert np.array_equal(holes.tokens(range(9)), read(tmp_path / "complete.h5").tokens(rows))
    assert holes.paths == tuple(images.names[row] for row in rows)
    assert holes.labels.tolist() == images.labels[rows].tolist()
    again = encode(images, stub_tokenizer(), PRE, tmp_path / "holes.h5", samples=2, chunk_size=3)
    assert again.already_done
    assert again.unreadable == result.unreadable


def test_when_nothing_is_readable_the_next_run_looks_again(images, stub_tokenizer, tmp_path):
    kept = [path.read_bytes() for path in images.paths]
    for path in images.paths:
        path.write_text("nothing")
    with pytest.raises(AvarcError, match="none of the 11 images"):
        encode(images, stub_tokenizer(), PRE, tmp_path / "t.h5")
    assert left(tmp_path) == []
    for path, data in zip(images.paths, kept, strict=True):
        path.write_bytes(data)
    assert encode(images, stub_tokenizer(), PRE, tmp_path / "t.h5").images == 11


def test_ctrl_c_keeps_finished_chunks_and_a_rerun_does_the_rest(images, stub_tokenizer, tmp_path):
    encode(images, stub_tokenizer(), PRE, tmp_path / "complete.h5", chunk_size=2)
    with pytest.raises(Interrupted, match="3 of 6 chunks are kept"):
        encode(images, stub_tokenizer(Stop(4, KeyboardInterrupt)), PRE, tmp_path / "t.h5", chunk_size=2)
    seen = []
    result = encode(
        images,
        stub_tokenizer(),
        PRE,
        tmp_path / "t.h5",
        chunk_size=2,
        workers=1,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert result.encoded == 5
    assert seen == [(6, 11), (8, 11), (10, 11), (11, 11)]
    assert (tmp_path / "t.h5").read_bytes() == (tmp_path / "complete.h5").read_bytes()


def test_corrupt_chunks_are_encoded_again_and_leftovers_are_deleted(images, stub_tokenizer, tmp_path):
    encode(images, stub_tokenizer(), PRE, tmp_path / "complete.h5", chunk_size=2)
    with pytest.raises(Interrupted):
        encode(images, stub_tokenizer(Stop(6, KeyboardInterrupt)), PRE, tmp_path / "t.h5", chunk_size=2)
    parts = tmp_path / "t.h5.parts"
    names = [f"00000{number}.npz" for number in range(5)]
    assert left(parts) == [*names, "request.json"]
    part = (parts / names[0]).read_bytes()
    (parts / names[0]).write_bytes(part[: len(part) // 2])
    (parts / names[1]).write_bytes(b"")
    (parts / names[2]).write_bytes(part)  # complete, but of another chunk
    flipped = bytearray((parts / names[3]).read_bytes())
    flipped[200] ^= 1
    (parts / names[3]).write_bytes(flipped)
    for half in ("000005.npz.0123abcd.tmp", "000005.npz.tmp", "cache.h5.tmp"):  # of this and of earlier versions
        (parts / half).write_bytes(b"half")
    (tmp_path / "t.h5.0123abcd.tmp").write_bytes(b"half")
    result = encode(images, stub_tokenizer(), PRE, tmp_path / "t.h5", chunk_size=2)
    assert result.encoded == 9
    assert (tmp_path / "t.h5").read_bytes() == (tmp_path / "complete.h5").read_bytes()
    assert left(tmp_path) == ["complete.h5", "t.h5"]


def test_chunks_without_a_request_are_not_used(images, stub_tokenizer, tmp_path):
    with pytest.raises(Interrupted):
        encode(images, stub_tokenizer(Stop(3, KeyboardInterrupt)), PRE, tmp_path / "t.h5", chunk_size=2)
    (tmp_path / "t.h5.parts" / "request.json").write_text("{")
    assert encode(images, stub_tokenizer(), PRE, tmp_path / "t.h5", chunk_size=2).encoded == 11


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"samples": 2}, "samples: 1 there, 2 here"),
        ({"latents": True}, "latents: false there, true here"),
    ],
)
def test_unfinished_work_of_another_request_is_refused_with_both_values(
    images, stub_tokenizer, tmp_path, options, shown
):
    with pytest.raises(Interrupted):
        encode(images, stub_tokenizer(Stop(3, KeyboardInterrupt)), PRE, tmp_path / "t.h5", chunk_size=2)
    with pytest.raises(CacheError) as error:
        encode(images, stub_tokenizer(), PRE, tmp_path / "t.h5", **({"chunk_size": 2} | options))
    assert shown in error.value.why
    result = encode(images, stub_tokenizer(), PRE, tmp_path / "t.h5", **({"chunk_size": 2} | options), overwrite=True)
    assert result.encoded == 11


def test_a_finished_cache_is_left_alone_unless_the_request_differs(images, stub_tokenizer, tmp_path):
    out = tmp_path / "t.h5"
    encode(images, stub_tokenizer(), PRE, out)
    before = out.stat().st_mtime_ns
    result = encode(images, stub_tokenizer(Stop(1, AssertionError)), PRE, out, sigma=0.7, seed=3)  # neither matters
    assert (result.already_done, result.images, result.encoded) == (True, 11, 0)
    assert out.stat().st_mtime_ns == before
    other = stub_tokenizer()
    other.sha256 = "b" * 64
    with pytest.raises(CacheError, match="made by another request") as error:
        encode(images, other, PRE, out)
    assert f"{'a' * 64} there, {'b' * 64} here" in error.value.why
    fewer = images.select(None, None, 4)
    with pytest.raises(CacheError, match="images: 11 there, 4 here"):
        encode(fewer, stub_tokenizer(), PRE, out)
    assert encode(fewer, stub_tokenizer(), PRE, out, overwrite=True).images == 4
    assert left(tmp_path) == ["t.h5"]


def test_an_overwrite_that_was_stopped_is_continued(images, stub_tokenizer, tmp_path):
    out = tmp_path / "t.h5"
    encode(images, stub_tokenizer(), PRE, out, chunk_size=2)
    old = read(out).tokens([0])
    Image.new("RGB", (8, 8), "white").save(images.paths[0])
    with pytest.raises(Interrupted):
        encode(images, stub_tokenizer(Stop(3, KeyboardInterrupt)), PRE, out, chunk_size=2, overwrite=True)
    assert np.array_equal(read(out).tokens([0]), old)
    assert encode(images, stub_tokenizer(), PRE, out, chunk_size=2).encoded == 7
    assert (read(out).tokens([0]) == 63).all()


def test_a_folder_left_by_a_kill_while_cleaning_up_is_deleted(images, stub_tokenizer, tmp_path):
    encode(images, stub_tokenizer(), PRE, tmp_path / "t.h5")
    (tmp_path / "t.h5.parts").mkdir()
    (tmp_path / "t.h5.parts" / "000000.npz").write_bytes(b"")
    assert encode(images, stub_tokenizer(), PRE, tmp_path / "t.h5").already_done
    assert left(tmp_path) == ["t.h5"]


@pytest.mark.parametrize(
    "options",
    [
        {"samples": 0},
        {"batch_size": 0},
        {"chunk_size": 0},
        {"workers": -1},
        {"seed": -1},
        {"seed": 2**64},
        {"sigma": -0.1},
    ],
)
def test_numbers_out_of_range_are_usage_errors(images, stub_tokenizer, tmp_path, options):
    with pytest.raises(UsageError):
        encode(images, stub_tokenizer(), PRE, tmp_path / "t.h5", **options)
    assert left(tmp_path) == []


def test_a_vocabulary_beyond_16_bits_and_a_wrong_image_size_are_refused(images, stub_tokenizer, tmp_path):
    large = stub_tokenizer()
    large.vocab_size = 65537
    with pytest.raises(CacheError, match="65537"):
        encode(images, large, PRE, tmp_path / "t.h5")
    with pytest.raises(UsageError, match="does not fit"):
        encode(images, stub_tokenizer(), Preprocess("fit", 16), tmp_path / "t.h5")


def test_places_that_cannot_be_written_to_are_errors_not_crashes(images, stub_tokenizer, tmp_path):
    with pytest.raises(AvarcError, match="is not a folder"):
        encode(images, stub_tokenizer(), PRE, tmp_path / "none" / "t.h5")
    with pytest.raises(AvarcError, match="it is a folder"):
        encode(images, stub_tokenizer(), PRE, tmp_path)
    with pytest.raises(AvarcError, match="cannot write"):
        encode(images, stub_tokenizer(), PRE, Path("/proc/t.h5"))


def test_two_processes_cannot_write_the_same_cache(images, stub_tokenizer, tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    holder = start("hold_lock", "file", tmp_path / "t.h5", **pipes)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(AvarcError, match="written by another process"):
            encode(images, stub_tokenizer(), PRE, tmp_path / "t.h5")
    finally:
        holder.kill()
        holder.communicate()
    assert encode(images, stub_tokenizer(), PRE, tmp_path / "t.h5").images == 11  # the lock died with its holder
    assert left(tmp_path) == ["t.h5"]


def test_where_memory_runs_out_batches_are_halved_and_the_tokens_are_the_same(images, stub_tokenizer, tmp_path):
    class Small(stub_tokenizer):
        room = 2

        def encode(self, batch):
            if len(batch) > self.room:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return super().encode(batch)

    encode(images, stub_tokenizer(), PRE, tmp_path / "a.h5", batch_size=8)
    encode(images, Small(), PRE, tmp_path / "b.h5", batch_size=8)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    Small.room = 0
    with pytest.raises(AvarcError, match="not enough memory to encode one image"):
        encode(images, Small(), PRE, tmp_path / "c.h5", batch_size=8)


def test_names_that_are_no_utf_8_survive(images, stub_tokenizer, tmp_path):
    folder = tmp_path / "odd-names"
    folder.mkdir()
    for name in (b"caf\xe9.png", "ünï.png".encode()):
        os.link(os.fsencode(images.paths[0]), os.path.join(os.fsencode(folder), name))
    result = encode(open_images([folder]), stub_tokenizer(), PRE, tmp_path / "t.h5")
    assert [os.fsencode(name) for name in read(result.path).paths] == [b"caf\xe9.png", "ünï.png".encode()]


def test_many_class_names_and_unreadable_images_fit_the_header(images: ImageSet, stub_tokenizer, tmp_path):
    names = tuple(f"class with a long name {number}" for number in range(21_000))
    large = dataclasses.replace(images, class_names=names)
    encode(large, stub_tokenizer(), PRE, tmp_path / "t.h5")
    assert read(tmp_path / "t.h5").header.class_names == names
