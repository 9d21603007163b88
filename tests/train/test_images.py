"""Images and tokens to train on: their order, those that cannot be read, those in memory, and those that changed."""

import threading

import h5py
import numpy as np
import pytest
import torch
from small_datasets import halves
from stub_tokenizer import StubTokenizer, make_images

from avarc_cli.data.datasets import open_images
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.data.views import TEN_CROP, Views
from avarc_cli.errors import AvarcError, CacheError, UsageError
from avarc_cli.layers.rows import Rows
from avarc_cli.tokens import encode, read
from avarc_cli.train.ahead import Ahead
from avarc_cli.train.images import Augment, TrainingImages, ValidationImages, first_readable
from avarc_cli.train.left_out import LeftOut
from avarc_cli.train.listing import Listing
from avarc_cli.train.token_batches import CachedOnce, CachedTokens, training_batches

BOTH = pytest.mark.parametrize("in_memory", [True, False])
BATCH = 7


def damage(*files):
    for file in files:
        file.write_bytes(file.read_bytes()[:60])


def batches(folder, steps=range(8), parts=1, **how):
    """Pixels and labels of these steps' batches."""
    images = TrainingImages(open_images([folder]), 8, Augment(mode="affine"), seed=5, **how)
    found = [[images.batch(step, rows) for rows in Rows.whole(BATCH).split(parts)] for step in steps]
    return [(torch.cat([x for x, _, _ in each]), each[-1][1]) for each in found]


def same(one, other):
    return all(torch.equal(a, b) for pair in zip(one, other, strict=True) for a, b in zip(*pair, strict=True))


@pytest.fixture
def set_memory(monkeypatch):
    return lambda in_memory: in_memory or monkeypatch.setattr("avarc_cli.train.images.IN_MEMORY_BYTES", 0)


def test_batches_do_not_depend_on_parts_on_memory_or_on_where_the_training_begins(tmp_path, set_memory):
    folder = halves(tmp_path / "img")
    damage(folder / "left" / "03.png", folder / "right" / "10.png")
    whole = batches(folder)
    assert same(whole, batches(folder, parts=3))
    assert same(whole[5:], batches(folder, steps=range(5, 8)))
    set_memory(False)
    assert same(whole, batches(folder)) and same(whole[5:], batches(folder, steps=range(5, 8), parts=2))


@BOTH
def test_another_image_of_its_class_stands_in_for_one_that_cannot_be_read(tmp_path, set_memory, in_memory):
    set_memory(in_memory)
    folder, left_out = halves(tmp_path / "img"), LeftOut()
    before = batches(folder)
    damage(folder / "left" / "03.png")
    after = batches(folder, left_out=left_out)
    assert left_out.reasons == {"left/03.png": "image file is truncated"}
    differ = [i for (x, _), (y, _) in zip(before, after, strict=True) for i in (x != y).flatten(1).any(1).tolist()]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(before, after, strict=True)), "labels stay"
    assert 1 <= sum(differ) <= 3, "56 images are 2 epochs of 24, and 8 more"
    plain = TrainingImages(open_images([folder]), 8, Augment(mode="none"), seed=5)
    for step in range(8):
        x, labels, _ = plain.batch(step, Rows.whole(BATCH))
        is_right = x[..., :4].mean((1, 2, 3)) < x[..., 4:].mean((1, 2, 3))
        assert torch.equal(is_right.long(), labels)


@BOTH
def test_without_a_readable_image_there_is_an_error(tmp_path, set_memory, in_memory):
    set_memory(in_memory)
    folder = halves(tmp_path / "img")
    damage(*(folder / "left").iterdir())
    with pytest.raises(AvarcError, match=r"no image of 'left' is readable\n.*'left/.*truncated"):
        batches(folder)
    assert len(batches(folder, within_class=False)) == 8, "a tokenizer does not need every class"
    damage(*(folder / "right").iterdir())
    with pytest.raises(AvarcError, match=r"none of the 24 images of .* is readable"):
        batches(folder, within_class=False)


@BOTH
def test_validation_leaves_unreadable_images_out(tmp_path, set_memory, in_memory):
    set_memory(in_memory)
    folder, left_out = halves(tmp_path / "img"), LeftOut()
    images = open_images([folder])
    damage(folder / "left" / "01.png", folder / "left" / "03.png")
    shown = ValidationImages(images, 8, Augment(mode="none"), batch_size=9, seed=0, left_out=left_out)
    labels = torch.cat([shown.batch(number, Rows.whole(size))[1] for number, size in enumerate((9, 9, 4))])
    assert len(shown) == 22 and labels.tolist() == [0] * 10 + [1] * 12 and len(left_out.reasons) == 2
    assert first_readable(images, 3).names == ("left/05.png", "left/07.png", "left/09.png")


def test_the_first_unreadable_images_are_said_once():
    said = []
    left_out = LeftOut(said.append)
    for number in (*range(12), 3):
        left_out.add(f"{number}.png", "broken")
    assert said == [f"left out {number}.png: broken" for number in range(10)] and len(left_out.reasons) == 12


def test_the_next_batch_is_begun_while_one_is_in_use():
    begun = threading.Event()

    def make(key):
        if key == 8:
            begun.set()
        if key == 9:
            raise AvarcError("nine")
        return key * key

    ahead = Ahead(make)
    assert ahead(7, 8) == 49 and begun.wait(60) and ahead(8, 9) == 64
    with pytest.raises(AvarcError, match="nine"):
        ahead(9, None)
    assert ahead(5, None) == 25, "anything may be asked for"


@pytest.fixture
def cache(tmp_path):
    """Ten views of each of 12 images of two classes."""
    views = Preprocess("fit", 8, views=Views(TEN_CROP, 1.5))
    encode(make_images(tmp_path / "img", 12), StubTokenizer(), views, tmp_path / "t.h5")
    return read(tmp_path / "t.h5")


def test_in_each_epoch_each_cached_image_shows_one_of_its_views(cache):
    stored_NSL, seen, orders = cache.tokens(range(12)), set(), []
    data = CachedTokens(cache, seed=3)
    for epoch in range(12):
        order = []
        for step in range(3 * epoch, 3 * epoch + 3):
            parts = [data.batch(step, rows) for rows in Rows.whole(4).split(3)]
            labels = parts[0][1]
            for tokens_L, label in zip(torch.cat([tokens for tokens, _, _ in parts]), labels.tolist(), strict=True):
                image, view = np.argwhere((stored_NSL == tokens_L.numpy()).all(-1))[0].tolist()
                assert cache.labels[image] == label
                order.append(image)
                seen.add((image, view))
        assert sorted(order) == list(range(12))
        orders.append(order)
    assert len({view for _, view in seen}) == 10 and len(seen) > 60 and orders[0] != orders[1]
    assert torch.equal(CachedTokens(cache, seed=3).batch(7, Rows.whole(4))[0], data.batch(7, Rows.whole(4))[0])


def test_a_part_of_a_cache_can_be_trained_on_and_another_validated_on(cache):
    part = cache.take([3, 5, 8])
    data, once = CachedTokens(part, seed=0), CachedOnce(part, batch_size=2, seed=0)
    labels = torch.cat([data.batch(0, Rows.whole(3))[1]])
    assert sorted(labels.tolist()) == sorted(cache.labels[[3, 5, 8]].tolist())
    shown = torch.cat([once.batch(0, Rows.whole(2))[0], once.batch(1, Rows.whole(1))[0]])
    assert np.array_equal(shown.numpy(), cache.tokens([3, 5, 8])[:, 0])


def test_smoothing_samples_are_not_trained_on(tmp_path):
    images, out = make_images(tmp_path / "img", 4), tmp_path / "t.h5"
    encode(images, StubTokenizer(), Preprocess("fit", 8), out, samples=3, sigma=0.5)
    assert CachedTokens(read(out), seed=0).views == [(0, 0)]


def test_tokens_that_cannot_be_are_found_and_so_are_those_of_another_tokenizer(cache):
    other = StubTokenizer()
    other.sha256 = "b" * 64
    with pytest.raises(CacheError, match="another tokenizer"):
        training_batches(cache, other, None, seed=0)
    with h5py.File(cache.path, "r+") as file:
        file["tokens"][:] = 64
    with pytest.raises(CacheError, match="token 64 in a vocabulary of 64"):
        CachedTokens(read(cache.path), seed=0).batch(0, Rows.whole(2))
    with pytest.raises(UsageError, match="no images to train on"):
        CachedTokens(cache.take([]), seed=0)


def test_a_listing_tells_which_images_have_changed():
    pixels = np.arange(4, dtype=np.uint32)
    labels = np.array([0, 0, 1, -1], np.int32)
    before = Listing(("a", "b", "c", "d"), labels, ("cat", "dog"), pixels)
    kept = Listing.from_state_dict(before.state_dict())
    assert kept.changes_since(before) == "" and list(kept.names) == ["a", "b", "c", "d"]
    now = Listing(
        ("b", "c", "d", "e\udcff", "f"), np.array([1, 1, -1, 0, 0], np.int32), ("cat", "dog"), pixels[[1, 0, 3, 0, 0]]
    )
    now = Listing.from_state_dict(now.state_dict())
    assert now.changes_since(kept) == (
        "2 added (e\udcff, f), 1 removed (a), 1 in another class (b), 1 with other pixels (c)"
    )
    unknown = Listing(("a", "b", "c", "d"), labels, ("cat", "dog"))
    assert unknown.changes_since(before) == before.changes_since(unknown) == "", "pixels are compared where known"
