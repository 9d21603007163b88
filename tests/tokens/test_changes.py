"""Images that change between two runs of the same request, and requests whose names are spelled in another way."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from avarc_cli.data import Preprocess, open_images
from avarc_cli.errors import CacheError, Interrupted
from avarc_cli.tokens import Shard, encode, merge, read

PRE = Preprocess("none", 8)
COUNT = 11


def png(brightness: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (brightness,) * 3).save(file, "PNG")
    return file.getvalue()


def write_folder(path: Path, images: list[bytes]) -> Path:
    path.mkdir(exist_ok=True)
    for number, data in enumerate(images):
        file = path / f"{number:03d}.png"
        if not file.exists() or file.read_bytes() != data:
            file.write_bytes(data)
    return path


def write_list(path: Path, images: list[bytes]) -> Path:
    write_folder(path, images)
    listed = path.with_suffix(".txt")
    listed.write_text("".join(f"{path.name}/{number:03d}.png\n" for number in range(len(images))))
    return listed


def write_tar(path: Path, images: list[bytes]) -> Path:
    with tarfile.open(path.with_suffix(".tar"), "w") as tar:
        for number, data in enumerate(images):
            member = tarfile.TarInfo(f"{number:03d}.png")  # whose time is always 0
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path.with_suffix(".tar")


def write_parquet(path: Path, images: list[bytes]) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": images}), path.with_suffix(".parquet"), row_group_size=4)
    return path.with_suffix(".parquet")


def write_arrow(path: Path, images: list[bytes]) -> Path:
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"image": images})
    with pa.OSFile(str(path.with_suffix(".arrow")), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return path.with_suffix(".arrow")


def write_table_of_paths(path: Path, images: list[bytes]) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    write_folder(path, images)
    rows = [{"bytes": None, "path": f"{path.name}/{number:03d}.png"} for number in range(len(images))]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    if not path.with_suffix(".parquet").exists():
        pq.write_table(pa.table({"image": pa.array(rows, kind)}), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


WRITERS = (write_folder, write_list, write_tar, write_parquet, write_arrow, write_table_of_paths)
Writer = Callable[[Path, list[bytes]], Path]


@pytest.fixture
def run(stub_tokenizer, tmp_path):
    """Encodes what was written to tmp_path/images, and collects messages to the user."""

    def run(data: Path, out: Path = tmp_path / "t.h5", **options):
        run.said = []
        images = open_images([data])
        return encode(images, stub_tokenizer(), PRE, out, **({"chunk_size": 2, "say": run.said.append} | options))

    return run


def age(path: Path) -> None:
    """Another modification time, as if the file had been written again."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


@pytest.mark.parametrize("write", WRITERS)
def test_changed_images_are_encoded_again_and_counted_and_the_others_are_kept(run, tmp_path, write: Writer):
    images = [png(10 * number) for number in range(COUNT)]
    run(write(tmp_path / "images", images))
    images[3], images[8] = png(200), png(210)
    data = write(tmp_path / "images", images)
    result = run(data)
    assert [said for said in run.said if "changed" in said] == ["2 images changed since; encoding them again"]
    assert result.encoded == 4, "two chunks of two"
    assert result.complete
    again = run(data)
    assert (again.already_done, run.said) == (True, [])
    fresh = run(data, tmp_path / "fresh.h5")
    assert result.path.read_bytes() == fresh.path.read_bytes()


@pytest.mark.parametrize("write", WRITERS)
def test_an_unreadable_image_is_tried_again_once_it_has_changed(run, tmp_path, write: Writer):
    images = [png(10 * number) for number in range(COUNT)]
    whole, images[4] = images[4], images[4][:40]
    data = write(tmp_path / "images", images)
    assert len(run(data).unreadable) == 1
    assert run(data).already_done
    images[4] = whole
    assert run(write(tmp_path / "images", images)).unreadable == []
    assert run.said == ["1 image changed since; encoding it again"] or "1 image changed" in run.said[-1]
    assert len(read(tmp_path / "t.h5")) == COUNT
    images[4] = whole[:30]
    result = run(write(tmp_path / "images", images))
    assert (len(result.unreadable), len(read(tmp_path / "t.h5"))) == (1, COUNT - 1)


@pytest.mark.parametrize("write", WRITERS[:4])
def test_a_file_that_was_only_touched_is_not_encoded_again(run, tmp_path, write: Writer):
    data = write(tmp_path / "images", [png(10 * number) for number in range(COUNT)])
    run(data)
    before = read(tmp_path / "t.h5").tokens(range(COUNT))
    for file in (data, *(tmp_path / "images").glob("*.png")):
        age(file)
    assert run(data).encoded == 0
    (said,) = run.said
    assert said.startswith("11 images: the file has another size or time, but the image is the same")
    assert np.array_equal(read(tmp_path / "t.h5").tokens(range(COUNT)), before)
    assert run(data).already_done and run.said == [], "the new times are recorded"


def test_images_that_vanish_or_appear_under_a_listed_name_count_as_changed(run, tmp_path):
    data = write_list(tmp_path / "images", [png(10 * number) for number in range(COUNT)])
    (tmp_path / "images" / "005.png").unlink()
    assert len(run(data).unreadable) == 1
    (tmp_path / "images" / "005.png").write_bytes(png(50))
    (tmp_path / "images" / "006.png").unlink()
    assert [name for name, _ in run(data).unreadable] == ["images/006.png"]
    assert run.said == ["2 images changed since; encoding them again"]


def test_unfinished_work_notices_changes_too(images, stub_tokenizer, tmp_path):
    calls = []

    def stop():
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="3 of 6 chunks"):
        encode(images, stub_tokenizer(stop), PRE, tmp_path / "t.h5", chunk_size=2)
    images.paths[0].write_bytes(png(255))
    age(images.paths[2])
    said: list[str] = []
    result = encode(images, stub_tokenizer(), PRE, tmp_path / "t.h5", chunk_size=2, say=said.append)
    assert result.encoded == 7 and [text.partition(" ")[0] for text in said] == ["1", "1"]
    assert (read(tmp_path / "t.h5").tokens([0]) == 63).all()
    encode(images, stub_tokenizer(), PRE, tmp_path / "fresh.h5", chunk_size=2)
    assert (tmp_path / "t.h5").read_bytes() == (tmp_path / "fresh.h5").read_bytes()


def test_each_shard_looks_after_its_own_images(images, stub_tokenizer, tmp_path):
    out = tmp_path / "t.h5"

    def shard(number: int):
        return encode(images, stub_tokenizer(), PRE, out, chunk_size=2, shard=Shard(number, 2))

    shard(1)
    shard(2)
    for row in (0, 10):
        images.paths[row].write_bytes(png(255))
    first = shard(1)
    assert (first.complete, first.encoded) == (True, 2)
    assert (read(out).tokens([0]) == 63).all() and not (read(out).tokens([10]) == 63).all()
    assert shard(2).encoded == 1
    assert (read(out).tokens([0, 10]) == 63).all()
    assert shard(1).already_done and shard(2).already_done


def test_merged_shards_notice_changes(images, stub_tokenizer, tmp_path):
    for number in (1, 2):
        encode(images, stub_tokenizer(), PRE, tmp_path / f"{number}.h5", chunk_size=2, shard=Shard(number, 2))
    out = tmp_path / "t.h5"
    merge([tmp_path / "2.h5", tmp_path / "1.h5"], out)
    images.paths[9].write_bytes(png(255))
    assert encode(images, stub_tokenizer(), PRE, out, chunk_size=2).encoded == 2
    assert (read(out).tokens([9]) == 63).all()


def forget(path: Path) -> None:
    """Make it a cache of an earlier version, which did not record what the files were like."""
    with h5py.File(path, "r+") as file:
        del file["stamps"], file["digests"]


def test_a_cache_that_does_not_record_files_is_done_and_this_is_said(images, stub_tokenizer, tmp_path):
    out, said = tmp_path / "t.h5", []
    encode(images, stub_tokenizer(), PRE, out)
    forget(out)
    images.paths[0].write_bytes(png(255))
    assert encode(images, stub_tokenizer(), PRE, out, say=said.append).already_done
    assert len(said) == 1 and "changes since cannot be detected" in said[0]


@pytest.mark.parametrize("spell", ["relative", "linked", "moved"])
@pytest.mark.parametrize("unfinished", [False, True])
def test_another_spelling_of_the_same_images_is_continued_with_a_note(
    images, stub_tokenizer, tmp_path, monkeypatch, spell, unfinished
):
    out, folder = tmp_path / "t.h5", tmp_path / "images"
    shard = Shard(1, 2) if unfinished else Shard()
    encode(open_images([folder]), stub_tokenizer(), PRE, out, chunk_size=2, shard=shard)
    if spell == "relative":
        monkeypatch.chdir(tmp_path)
        folder = Path("images")
    elif spell == "linked":
        folder = tmp_path / "link"
        folder.symlink_to("images")
    else:
        shutil.copytree(folder, tmp_path / "copy")
        folder = tmp_path / "copy"
        for file in folder.rglob("*.png"):
            age(file)
    said: list[str] = []
    result = encode(open_images([folder]), stub_tokenizer(), PRE, out, chunk_size=2, say=said.append)
    assert result.complete and result.encoded == (5 if unfinished else 0)
    assert any("was begun with" in text and "the same images" in text for text in said)
    (folder / "even" / "000.png").write_bytes(png(255))
    assert encode(open_images([folder]), stub_tokenizer(), PRE, out, chunk_size=2).encoded == 2


@pytest.mark.parametrize("recorded", [True, False])
def test_other_images_of_the_same_names_are_refused_and_nothing_is_lost(images, stub_tokenizer, tmp_path, recorded):
    out, other = tmp_path / "t.h5", tmp_path / "other"
    encode(images, stub_tokenizer(), PRE, out)
    if not recorded:
        forget(out)
    before = out.read_bytes()
    for name in images.names:
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_bytes(png(7))
    with pytest.raises(CacheError, match="made of other images") as error:
        encode(open_images([other]), stub_tokenizer(), PRE, out)
    assert f"source: {images.source} there, {other.as_posix()} here" in error.value.why
    assert out.read_bytes() == before
    assert encode(open_images([other]), stub_tokenizer(), PRE, out, overwrite=True).images == COUNT


def test_a_link_to_the_same_tokenizer_file_is_the_same_tokenizer(images, stub_tokenizer, tmp_path):
    encode(images, stub_tokenizer(), PRE, tmp_path / "t.h5")
    linked = stub_tokenizer()
    linked.file, linked.name = "/elsewhere/latest.safetensors", "latest"
    assert encode(images, linked, PRE, tmp_path / "t.h5").already_done


def test_reference_and_upright_decoding_do_not_mix(images, stub_tokenizer, tmp_path):
    encode(images, stub_tokenizer(), PRE, tmp_path / "t.h5")
    with pytest.raises(CacheError, match="preprocess: none 8; upright"):
        encode(images, stub_tokenizer(), dataclasses.replace(PRE, reference=True), tmp_path / "t.h5")
