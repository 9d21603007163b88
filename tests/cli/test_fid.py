"""avarc fid: what it reads and refuses, and what it says."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
from golden_features import GOLDEN, GoldenNetwork, images, save
from PIL import Image

from avarc_cli.cli import main
from avarc_cli.metrics import inception, protocol
from avarc_cli.zoo import networks


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """fake.npz, real.npz and weights.pth in the current folder; the network that is loaded gives golden features."""
    monkeypatch.chdir(tmp_path)
    save("fake", tmp_path / "fake.npz")
    save("real", tmp_path / "real.npz", compressed=True)
    (tmp_path / "weights.pth").write_bytes(b"weights")
    monkeypatch.setattr(inception, "load", lambda path, device: GoldenNetwork())
    monkeypatch.setattr(protocol, "POOLED", 12)
    monkeypatch.setattr(protocol, "SPATIAL", 7)
    return tmp_path


@pytest.fixture
def evaluate(archives, capsys):
    """Runs the command; gives the exit code, standard output and the rest in one line."""

    def do(samples="fake.npz", reference="real.npz", *options, few=True):
        capsys.readouterr()
        words = ["fid", samples, "--reference", reference, "--inception", "weights.pth", *options]
        code = main([*words, "--allow-few"] if few else words)
        shown = capsys.readouterr()
        return code, shown.out, " ".join(shown.err.split())

    return do


def test_the_table_has_all_scores_and_says_what_they_are_of(evaluate):
    code, shown, said = evaluate()
    assert code == 0
    rows = dict(line.split("  ", 1) for line in shown.splitlines()[1:])
    assert {name.strip(): value.strip() for name, value in rows.items()} == {
        "FID": f"{GOLDEN.arrays['fid']:.2f}",
        "sFID": f"{GOLDEN.arrays['sfid']:.2f}",
        "Inception Score": rows["Inception Score"].strip(),
        "precision": f"{GOLDEN.arrays['precision']:.2f}",
        "recall": f"{GOLDEN.arrays['recall']:.2f}",
        "samples": "330 images of 16 x 16 pixels",
        "FID, sFID against": "statistics of 240 images",
        "precision, recall against": "240 images",
        "Inception Score over": "parts of 5,000 images in their order, without the bias of the outputs",
    }
    assert "fake.npz: 330 images; with fewer than 50,000 FID is biased upwards" in said
    assert "real.npz: 240 images" in said


def test_saved_statistics_are_a_reference_without_images(evaluate, archives):
    assert evaluate("fake.npz", "real.npz", "--save-statistics", "stored.npz")[0] == 0
    with np.load("stored.npz") as stored:
        assert np.abs(stored["sigma"] - GOLDEN.arrays["sigma"]).max() < 1e-4
    code, shown, _ = evaluate("fake.npz", "stored.npz", "--json")
    found = json.loads(shown)
    assert code == 0 and found["fid"] == pytest.approx(GOLDEN.arrays["fid"].item(), abs=1e-5)
    assert found["sfid"] == pytest.approx(GOLDEN.arrays["sfid"].item(), abs=1e-5)
    assert (found["precision"], found["reference_images"], found["stored_statistics"]) == (None, 240, True)
    code, _, said = evaluate("fake.npz", "real.npz", "--save-statistics", "stored.npz")
    assert code == 2 and "'stored.npz' exists" in said
    code, _, said = evaluate("fake.npz", "real.npz", "--save-statistics", "real.npz", "--overwrite")
    assert code == 2 and "this command reads it" in said


def test_few_images_need_an_option(evaluate):
    code, shown, said = evaluate(few=False)
    assert code == 2 and not shown
    assert "fake.npz: 330 images" in said and "FID is biased upwards" in said and "--allow-few" in said


def test_a_reference_of_few_images_needs_the_option_too(evaluate, monkeypatch):
    monkeypatch.setattr(protocol, "ENOUGH", 300)
    code, _, said = evaluate(few=False)
    assert code == 2 and "real.npz: 240 images" in said


ARRAYS = {
    "floats": (np.zeros((5, 16, 16, 3), np.float32), "how floats were meant"),
    "channels first": (np.zeros((5, 3, 16, 16), np.uint8), "its channels come first"),
    "gray": (np.zeros((5, 16, 16), np.uint8), "gray images"),
    "one channel": (np.zeros((5, 16, 16, 1), np.uint8), "gray images"),
    "four channels": (np.zeros((5, 16, 16, 4), np.uint8), "transparency"),
    "oblong": (np.zeros((5, 16, 18, 3), np.uint8), "(5, 16, 18, 3)"),
    "none": (np.zeros((0, 16, 16, 3), np.uint8), "(0, 16, 16, 3)"),
    "objects": (np.array([{}]), "the type object"),
    "columns": (np.asfortranarray(images("fake")), "column by column"),
}


@pytest.mark.parametrize("array", ARRAYS)
def test_arrays_of_another_kind_are_refused(array, evaluate):
    values, why = ARRAYS[array]
    np.savez("other.npz", arr_0=values)
    for names in (("other.npz", "real.npz"), ("fake.npz", "other.npz")):
        code, shown, said = evaluate(*names)
        assert code == 2 and not shown and why in said, said


def test_archives_without_images_and_files_that_are_none_are_refused(evaluate, archives):
    np.savez("named.npz", pictures=images("fake"))
    code, _, said = evaluate("named.npz")
    assert code == 2 and "no array arr_0" in said and "pictures" in said
    code, _, said = evaluate("fake.npz", "named.npz")
    assert code == 2 and "neither images (arr_0) nor statistics" in said
    (archives / "text.npz").write_text("text")
    code, _, said = evaluate("text.npz")
    assert code == 2 and "not an archive of numpy" in said
    np.savez("stored.npz", mu=np.zeros(11), sigma=np.eye(11))
    code, _, said = evaluate("fake.npz", "stored.npz")
    assert code == 2 and "(11,)" in said and "(12,)" in said
    np.savez("stored.npz", mu=np.zeros(12), sigma=np.full((12, 12), np.nan))
    code, _, said = evaluate("fake.npz", "stored.npz")
    assert code == 2 and "not finite" in said
    for covariance in (-np.eye(12), np.triu(np.ones((12, 12)))):
        np.savez("stored.npz", mu=np.zeros(12), sigma=covariance)
        code, _, said = evaluate("fake.npz", "stored.npz")
        assert code == 2 and "sigma is no covariance" in said
    code, _, said = evaluate("absent.npz")
    assert code == 2 and "'absent.npz' does not exist" in said


@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_archive_is_one_message(compressed, evaluate, archives):
    data = bytearray(save("fake", archives / "damaged.npz", compressed=compressed).read_bytes())
    data[len(data) // 2] ^= 255
    (archives / "damaged.npz").write_bytes(data)
    code, shown, said = evaluate("damaged.npz")
    assert code == 1 and not shown and "'damaged.npz' is damaged" in said and "Traceback" not in said
    (archives / "damaged.npz").write_bytes(data[: len(data) // 2])
    code, _, said = evaluate("damaged.npz")
    assert code == 1 and "'damaged.npz' is damaged" in said


@pytest.mark.parametrize(
    "header", ["{'descr': '|u1', 'fortran_order': False, 'shape': (-5, 16, 16, 3)}", "{'descr': (", "{}", "\x93"]
)
def test_a_wrong_header_is_one_message(header, evaluate):
    encoded = header.encode("latin1") + b"\n"
    with zipfile.ZipFile("wrong.npz", "w") as archive:
        archive.writestr("arr_0.npy", b"\x93NUMPY\x01\x00" + len(encoded).to_bytes(2, "little") + encoded + bytes(99))
    code, shown, said = evaluate("wrong.npz")
    assert code in (1, 2) and not shown and "wrong.npz" in said and "a bug in avarc" not in said


def test_images_of_different_sizes_are_refused(evaluate, archives):
    np.savez("large.npz", arr_0=np.zeros((9, 32, 32, 3), np.uint8))
    code, _, said = evaluate("fake.npz", "large.npz")
    assert code == 2 and "16 and 32 pixels a side" in said
    (archives / "mixed").mkdir()
    for name, size in (("a", (16, 16)), ("b", (16, 17))):
        Image.new("RGB", size).save(archives / "mixed" / f"{name}.png")
    code, _, said = evaluate("mixed")
    assert code == 2 and "'a.png' is 16 x 16 pixels, 'b.png' 16 x 17" in said
    (archives / "mixed" / "a.png").unlink()
    code, _, said = evaluate("mixed")
    assert code == 2 and "'b.png' is not square" in said
    (archives / "mixed" / "b.png").write_text("no picture")
    code, _, said = evaluate("mixed")
    assert code == 2 and "cannot read 'b.png'" in said


def test_samples_in_jpeg_are_warned_of(evaluate, archives):
    (archives / "lossy").mkdir()
    for number in range(5):
        picture = Image.fromarray(np.full((16, 16, 3), 255 * np.array([number == 9, 0, 0]), np.uint8))
        picture.save(archives / "lossy" / f"{number}.jpg")
    code, _, said = evaluate("lossy")
    assert code == 0 and "5 samples stored as JPEG" in said


def test_images_sorted_by_class_are_warned_of(evaluate, monkeypatch):
    from avarc_cli.metrics import fid as library

    monkeypatch.setattr(library, "SORTED", -1)
    assert "sorted by class" in evaluate()[2]
    code, shown, _ = evaluate("fake.npz", "real.npz", "--shuffle", "--json")
    assert code == 0 and json.loads(shown)["shuffled"]


def test_unreadable_images_of_the_reference_are_listed(evaluate, archives):
    (archives / "val").mkdir()
    for number, picture in enumerate(images("real")[:20]):
        Image.fromarray(picture).save(archives / "val" / f"{number:02d}.png")
    (archives / "val" / "07.png").write_text("no picture")
    code, shown, said = evaluate("fake.npz", "val", "--features", "kept")
    assert code == 3 and "statistics of 19 images" in shown and "left out 07.png" in said
    assert sorted(path.name for path in (archives / "kept").iterdir()) == ["reference", "samples"]
    code, _, said = evaluate("fake.npz", "val", "--features", "weights.pth")
    assert code == 2 and "not a folder" in said


def test_other_processes_need_a_folder_and_devices_of_their_own(evaluate):
    code, _, said = evaluate("fake.npz", "real.npz", "--devices", "cpu:2")
    assert code == 2 and "--devices needs a folder" in said and "add --features FOLDER" in said
    code, _, said = evaluate("fake.npz", "real.npz", "--devices", "cpu:2", "--device", "cpu", "--features", "kept")
    assert code == 2 and "no use for --device beside --devices" in said


def test_processes_on_devices_give_the_same_scores(evaluate):
    evaluate("fake.npz", "real.npz", "--save-statistics", "stored.npz")
    whole = evaluate("fake.npz", "stored.npz", "--json")[1]
    code, shown, _ = evaluate("fake.npz", "stored.npz", "--json", "--features", "kept", "--devices", "cpu:2")
    assert code == 0 and shown == whole


def test_the_downloaded_network_is_used(archives, capsys, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(archives))
    (archives / "hub" / "checkpoints").mkdir(parents=True)
    file = archives / "hub" / "checkpoints" / networks.find(networks.INCEPTION).weights.filename
    file.write_bytes(b"weights")
    read = []
    monkeypatch.setattr(inception, "load", lambda path, device: read.append(path) or GoldenNetwork())
    assert main(["fid", "fake.npz", "--reference", "real.npz", "--allow-few"]) == 0
    assert read == [file]


def test_without_the_network_the_command_says_where_it_is(archives, capsys, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(archives))
    assert main(["fid", "fake.npz", "--reference", "real.npz", "--allow-few"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "the Inception network is not on this machine" in said and "run avarc download inception" in said
    assert main(["fid", "fake.npz", "--reference", "real.npz", "--inception", "absent.pth"]) == 2
    assert "'absent.pth' does not exist" in capsys.readouterr().err


def test_images_against_themselves_with_the_real_network(tmp_path, inception_file, capsys):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", arr_0=pictures)
    np.savez_compressed(tmp_path / "b.npz", arr_0=pictures[::-1])
    words = ["fid", str(tmp_path / "a.npz"), "-r", str(tmp_path / "b.npz"), "--inception", str(inception_file)]
    assert main([*words, "--allow-few", "--json"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["fid"] < 1e-6 and found["sfid"] < 1e-6 and (found["precision"], found["recall"]) == (1, 1)
    assert found["inception_score"] >= 1
    assert "does not have the published weights" in " ".join(shown.err.split())
