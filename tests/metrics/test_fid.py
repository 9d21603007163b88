"""All scores of a set of images, computed in chunks, kept, continued; what counts of a reference."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from golden_features import GOLDEN, GoldenNetwork, images, save
from PIL import Image

from avarc_cli.data.datasets import open_images as open_set
from avarc_cli.errors import AvarcError, Interrupted, UsageError
from avarc_cli.metrics import arrays, features, fid, pixels, protocol
from avarc_cli.metrics.moments import Gaussian
from avarc_cli.metrics.protocol import Reference


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(features, "CHUNK", 64)


@pytest.fixture
def samples(tmp_path):
    return arrays.open_images(save("fake", tmp_path / "fake.npz", compressed=True))


@pytest.fixture
def reference(tmp_path):
    found = arrays.open_images(save("real", tmp_path / "real.npz"))
    return Reference("real.npz", found)


def evaluate(samples, reference, network, **options):
    return fid.evaluate(samples, reference, network, part=GOLDEN.meta["config"]["split"], **options)


def check(found):
    """That the scores are those of the original evaluator."""
    values, tolerance = GOLDEN.arrays, GOLDEN.meta["tolerance"]
    for name in ("fid", "sfid", "inception_score", "precision", "recall"):
        assert getattr(found, name) == pytest.approx(values[name].item(), abs=tolerance[name]), name


def test_all_scores_are_those_of_the_original_evaluator(samples, reference):
    seen = []

    def bar(name, total):
        class Bar:
            update = staticmethod(lambda done, total, note="": seen.append((name, done, total)))

            def __enter__(self):
                return self

            def __exit__(self, *_):
                return None

        return Bar()

    found = evaluate(samples, reference, GoldenNetwork(), batch_size=10, bar=bar)
    check(found)
    assert (found.images, found.reference_images, found.compared_images) == (330, 240, 240)
    assert seen[-1] == ("features of the reference", 240, 240)


def test_stored_statistics_win_over_the_images(samples, reference):
    stored = Gaussian(GOLDEN.arrays["mu"] + 10, GOLDEN.arrays["sigma"])
    moved = Reference(reference.source, reference.pixels, stored, count=1_281_167)
    found = evaluate(samples, moved, GoldenNetwork())
    assert found.fid > 500 and found.sfid is None and found.reference_images == 1_281_167
    assert found.precision == GOLDEN.arrays["precision"].item()
    without_images = evaluate(samples, Reference("stored", None, stored), GoldenNetwork())
    assert without_images.fid == found.fid and without_images.precision is None
    assert without_images.reference_images is None


def test_shuffled_images_have_another_inception_score_and_the_same_distances(samples, reference):
    plain, mixed = (evaluate(samples, reference, GoldenNetwork(), shuffle=each) for each in (False, True))
    assert plain.inception_score != mixed.inception_score
    assert (plain.fid, plain.precision, plain.recall) == (mixed.fid, mixed.precision, mixed.recall)


def test_kept_features_are_continued_after_a_stop_and_used_again(samples, reference, tmp_path):
    keep = tmp_path / "features"
    with pytest.raises(Interrupted, match="128 of 330 images are kept in"):
        evaluate(samples, reference, GoldenNetwork(fails_at=5), keep=keep, batch_size=32)
    assert len(list((keep / "samples").glob("*.npz"))) == 2  # 64 images each
    again = GoldenNetwork()
    check(evaluate(samples, reference, again, keep=keep, batch_size=32))
    assert sum(again.seen) == 330 - 128 + 240
    (keep / "samples" / "000001.npz").write_bytes(b"cut short")
    third = GoldenNetwork()
    check(evaluate(samples, reference, third, keep=keep, batch_size=32))
    assert sum(third.seen) == 64


def test_without_a_folder_an_interruption_says_nothing_of_kept_features(samples, reference):
    with pytest.raises(KeyboardInterrupt):
        evaluate(samples, reference, GoldenNetwork(fails_at=5), batch_size=32)


def test_the_work_can_be_sent_to_another_process(samples):
    task = features.FeatureTask(samples, GoldenNetwork(), batch_size=10)
    sent = pickle.loads(pickle.dumps(task.loader()))("cpu")
    chunks = {1: range(64, 128)}
    (_, one), (_, other) = (next(each.run(chunks, lambda items: None)) for each in (task, sent))
    assert one.pooled.shape == (64, 12) and np.array_equal(one.pooled, other.pooled)
    assert np.array_equal(one.spatial, other.spatial)


def test_kept_features_of_other_images_are_not_used(samples, reference, tmp_path):
    evaluate(samples, reference, GoldenNetwork(), keep=tmp_path / "features")
    other = arrays.open_images(save("real", tmp_path / "fake.npz"))
    with pytest.raises(UsageError, match="features of something else") as caught:
        evaluate(other, reference, GoldenNetwork(), keep=tmp_path / "features")
    assert "images.crc" in caught.value.why
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "samples").write_text("mine")
    with pytest.raises(AvarcError, match="not a folder of avarc's"):
        evaluate(samples, reference, GoldenNetwork(), keep=tmp_path / "mine")


def test_a_folder_of_pictures_is_what_an_archive_of_them_is(reference, tmp_path):
    for number, picture in enumerate(images("fake")):
        Image.fromarray(picture).save(tmp_path / f"{number:06d}.png")
    check(evaluate(pixels.of_samples(open_set([tmp_path], "none")), reference, GoldenNetwork()))


def test_unreadable_images_of_a_reference_are_left_out_and_precision_compares_with_some(samples, tmp_path, monkeypatch):
    monkeypatch.setattr(protocol, "COMPARED", 60)
    for number, picture in enumerate(images("real")):
        Image.fromarray(picture).save(tmp_path / f"{number:06d}.png")
    (tmp_path / "000007.png").write_bytes(b"no picture")
    found = evaluate(samples, protocol.reference_of_images(open_set([tmp_path]), 16), GoldenNetwork())
    assert [name for name, _ in found.unreadable] == ["000007.png"]
    assert (found.reference_images, found.compared_images) == (239, 60)
    assert found.fid == pytest.approx(GOLDEN.arrays["fid"].item(), rel=0.05)


def test_an_unreadable_sample_is_an_error(reference, tmp_path):
    for number, picture in enumerate(images("fake")[:9]):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    data = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(data[:60])  # the header is whole
    opened = pixels.of_samples(open_set([tmp_path], "none"))
    with pytest.raises(AvarcError, match=r"cannot read the sample '3\.png'"):
        evaluate(opened, reference, GoldenNetwork())


def test_images_of_several_classes_are_taken_in_turn():
    labels = np.array([1, 1, 1, 0, 0, -1, 2])
    assert pixels.in_turn(labels).tolist() == [5, 3, 0, 6, 4, 1, 2]
    assert pixels.in_turn(np.array([0, 0, 0])).tolist() == [0, 1, 2]
