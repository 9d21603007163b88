"""The training loop: batches, learning rate, checkpoints and exact resumption."""

import numpy as np
import pytest
import torch
from small_datasets import halves

from avarc_cli.data.datasets import open_images
from avarc_cli.errors import AvarcError, CheckpointError, Interrupted, UsageError
from avarc_cli.layers.rows import Rows
from avarc_cli.train.images import Augment, TrainingImages
from avarc_cli.train.loop import train
from avarc_cli.train.recipe import Recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return halves(tmp_path_factory.mktemp("halves"))


def test_augmentations_give_images_of_the_right_size_and_range(folder):
    images = open_images([folder])
    for mode in ("none", "crop", "affine"):
        sets = [TrainingImages(images, 8, Augment(mode=mode, flip=True), seed=s) for s in (1, 1, 2)]
        batches = [each.batch(3, Rows.whole(16)) for each in sets]
        x, labels, _ = batches[0]
        assert x.shape == (16, 3, 8, 8) and x.dtype == torch.float32 and x.abs().max() <= 1
        assert torch.equal(x, batches[1][0]) and not torch.equal(x, batches[2][0])
        assert labels.shape == (16,)
    with pytest.raises(UsageError, match="no augmentation"):
        Augment(mode="nonsense")


def test_every_image_comes_once_an_epoch(folder):
    images = TrainingImages(open_images([folder]), 8, Augment(mode="none"), seed=0)
    rows = images._rows(np.arange(7 * 24))
    assert all(sorted(rows[e * 24 : (e + 1) * 24]) == list(range(24)) for e in range(7))


def fit(steps_until_death, checkpoint, recipe, seed=0, **more):
    torch.manual_seed(seed)
    model = torch.nn.Linear(4, 1)

    def loss_of_rows(step, rows):
        if step == steps_until_death:
            raise KeyboardInterrupt
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        loss = (model(x)[:, 0] - x.sum(1)).square().mean()
        return loss, {"loss": loss.item()}

    train(model, loss_of_rows, recipe, checkpoint, lambda done, values: None, subject={"data": "sums"}, **more)
    return model


RECIPE = Recipe(steps=40, batch_size=8, lr=0.2, save_every=10, ema_decay=0.9)


def test_a_resumed_training_ends_with_the_same_weights(tmp_path):
    whole = fit(None, tmp_path / "a.ckpt", RECIPE)
    with pytest.raises(Interrupted, match=r"the last checkpoint is in '.*b\.ckpt'"):
        fit(27, tmp_path / "b.ckpt", RECIPE)
    resumed = fit(None, tmp_path / "b.ckpt", RECIPE, seed=99)
    assert torch.equal(whole.weight, resumed.weight) and torch.equal(whole.bias, resumed.bias)
    assert (whole.weight - 1).abs().max() < 0.2, "and it has learnt the sum"


def test_an_interruption_before_the_first_checkpoint_says_that_nothing_is_kept(tmp_path):
    with pytest.raises(Interrupted, match="nothing was saved yet"):
        fit(3, tmp_path / "a.ckpt", RECIPE)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_recipe_is_refused_with_both_values(tmp_path):
    fit(None, tmp_path / "a.ckpt", RECIPE)
    with pytest.raises(CheckpointError, match=r"lr: 0\.2 there, 0\.01 here"):
        fit(None, tmp_path / "a.ckpt", Recipe(steps=40, batch_size=8, lr=0.01, save_every=10, ema_decay=0.9))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The bytes of a whole checkpoint, and what is in it."""
    path = tmp_path_factory.mktemp("checkpoint") / "a.ckpt"
    fit(None, path, RECIPE)
    return path.read_bytes(), torch.load(path, weights_only=True)


def check_refused(path):
    with pytest.raises(CheckpointError, match=r"a\.ckpt is corrupt"):
        fit(None, path, RECIPE)


def test_a_checkpoint_with_any_byte_changed_is_refused(checkpoint, tmp_path):
    whole, _ = checkpoint
    last = range(len(whole) - 120, len(whole))  # the digest, and the end of the archive before it
    for at in [*range(0, len(whole), 97), *last]:
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        (tmp_path / "a.ckpt").write_bytes(changed)
        check_refused(tmp_path / "a.ckpt")


@pytest.mark.parametrize("cut", [1, 22, 64, 71, 72, 93, 1000, 10**9])
def test_a_checkpoint_that_is_cut_short_is_refused(checkpoint, tmp_path, cut):
    (tmp_path / "a.ckpt").write_bytes(checkpoint[0][:-cut])
    check_refused(tmp_path / "a.ckpt")


@pytest.mark.parametrize("more", [b"\0", b"sha256:", bytes(5000)])
def test_a_checkpoint_that_goes_on_is_refused(checkpoint, tmp_path, more):
    (tmp_path / "a.ckpt").write_bytes(checkpoint[0] + more)
    check_refused(tmp_path / "a.ckpt")


def test_a_checkpoint_without_a_digest_is_read_and_said_to_be_unverified(checkpoint, tmp_path):
    _, state = checkpoint
    torch.save({name: value for name, value in state.items() if name != "format"}, tmp_path / "a.ckpt")
    said = []
    model = fit(None, tmp_path / "a.ckpt", RECIPE, say=said.append)
    assert torch.equal(model.weight, fit(None, None, RECIPE).weight)
    assert len(said) == 1 and "a.ckpt" in said[0] and "without a digest" in said[0]


@pytest.mark.parametrize("key", ["identity", "step", "model", "optimizer", "averaged"])
@pytest.mark.parametrize(
    "value", [None, 10**12, "x", {}, [], torch.zeros(2), -5, {"state": {}}, {"weight": 1}], ids=str
)
def test_a_checkpoint_with_other_types_in_it_is_refused(checkpoint, tmp_path, key, value):
    state = {name: inner for name, inner in checkpoint[1].items() if name != "format"}
    torch.save(state | {key: value}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt"):
        fit(None, tmp_path / "a.ckpt", RECIPE)
    del state[key]
    torch.save(state, tmp_path / "a.ckpt")
    check_refused(tmp_path / "a.ckpt")


def test_divergence_is_reported(tmp_path):
    model = torch.nn.Linear(1, 1)
    with pytest.raises(AvarcError, match="nan at step 0"):
        train(model, lambda *_: (model.weight.sum() * float("nan"), {}), RECIPE, tmp_path / "c", print, subject={})


@pytest.mark.parametrize("lr", [0.0, -1.0, float("nan"), float("inf")])
def test_a_learning_rate_is_a_positive_number(lr):
    with pytest.raises(UsageError, match="learning rate is"):
        Recipe(steps=1, batch_size=1, lr=lr)


def test_the_learning_rate_warms_up_stays_and_falls():
    recipe = Recipe(steps=1000, batch_size=1, lr=1.0, warmup=0.1, hold=0.1, final=0.01)
    rates = [recipe.rate(step) for step in (0, 50, 100, 199, 600, 999)]
    assert rates[0] == pytest.approx(0.005) and rates[1] == pytest.approx(0.5025)
    assert rates[2] == rates[3] == 1.0 and rates[4] == pytest.approx(0.505) and rates[5] < 0.012
