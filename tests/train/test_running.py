"""How trainings run: signals, checkpoints, validation, logs, dry runs, and what is refused."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small_datasets import halves

from avarc_cli.cli import main
from avarc_cli.data.datasets import open_images
from avarc_cli.errors import AvarcError, CheckpointError
from avarc_cli.train import loop
from avarc_cli.train.best import Best
from avarc_cli.train.log import Means
from avarc_cli.train.loop import train
from avarc_cli.train.recipe import Recipe
from avarc_cli.train.run import Run
from avarc_cli.train.state import State, numbered
from avarc_cli.train.updates import Updates
from avarc_cli.train.validation import hold_out
from avarc_cli.train.watch import grid

SHAPE = "--image-size 8 --patch-nums 1,2,4 --vocab 16 --channels 4 --width 32 --multipliers 1,1 --blocks 1".split()
RECIPE = Recipe(steps=12, batch_size=6, lr=0.1, save_every=3, ema_decay=0.9)
ALWAYS = {"data": "sums"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return halves(tmp_path_factory.mktemp("running") / "img")


def command(images, out, *more):
    shown = ["--steps", "12", "--batch-size", "6", "--save-every", "5", "--lr", "1e-3", "--augment", "affine"]
    return ["train", "tokenizer", str(images), *SHAPE, *shown, *map(str, more), "--out", str(out)]


def killed_after(steps, monkeypatch):
    """From now on, SIGTERM comes in the middle of this step."""
    average, step = loop.average, itertools.count()

    def kill(averaged, model, kept):
        if next(step) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        average(averaged, model, kept)

    monkeypatch.setattr(loop, "average", kill)


@pytest.mark.parametrize("more", [[], ["--accumulate", "2", "--hold-out", "0.25", "--validate-every", "4"]])
def test_a_training_that_is_asked_to_end_saves_and_goes_on_to_the_same_bits(
    images, tmp_path, monkeypatch, more, capsys
):
    assert main(command(images, tmp_path / "whole", *more)) == 0
    with monkeypatch.context() as patch:
        killed_after(7, patch)
        assert main(command(images, tmp_path / "cut", *more)) == 128 + signal.SIGTERM
    err = capsys.readouterr().err
    assert "training was interrupted" in err and "cut.ckpt" in err
    assert torch.load(tmp_path / "cut.ckpt", weights_only=True)["step"] == 8, "not only every five"
    assert main(command(images, tmp_path / "cut", *more)) == 0
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]


def test_a_process_that_gets_sigterm_ends_with_143_and_leaves_a_checkpoint(images, tmp_path):
    log = tmp_path / "log"
    words = command(images, tmp_path / "x", "--steps", "100000", "--log-to", log, "--log-every", "1")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "avarc_cli", *words], env=environment, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while not (log / "metrics.jsonl").exists() or (log / "metrics.jsonl").read_bytes().count(b"\n") < 3:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 143 and b"x.ckpt" in err
    assert (tmp_path / "x.ckpt").exists() and not (tmp_path / "x").exists() and not (tmp_path / "x.lock").exists()


def fit(checkpoint, *, run=None, subject=ALWAYS, dies=None, loss=1.0, recipe=RECIPE):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)

    def loss_of_rows(step, rows):
        if step == dies:
            raise KeyboardInterrupt
        x = torch.randn(rows.of, 4, generator=torch.Generator().manual_seed(step))
        scale = loss if step == 8 else 1.0
        return (model(rows.take(x))[:, 0] - rows.take(x).sum(1)).square().mean() * scale, {}

    train(model, loss_of_rows, recipe, checkpoint, lambda done, values: None, subject=subject, run=run)
    return model


def test_the_last_checkpoints_are_kept_and_training_can_go_on_from_each(tmp_path):
    path = tmp_path / "a.ckpt"
    with pytest.raises(AvarcError):
        fit(path, run=Run(keep=2), dies=11)
    assert [file.name for file in numbered(path)] == ["a.ckpt.00000006", "a.ckpt.00000009"]
    assert path.read_bytes() == (tmp_path / "a.ckpt.00000009").read_bytes()
    os.replace(tmp_path / "a.ckpt.00000006", path)
    assert torch.equal(fit(path).weight, fit(None).weight)


def test_the_last_checkpoints_are_kept_beside_later_ones_of_an_earlier_training(tmp_path):
    path = tmp_path / "a.ckpt"
    for step in (30, 40):
        (tmp_path / f"a.ckpt.{step:08}").touch()
    with pytest.raises(AvarcError):
        fit(path, run=Run(keep=2), dies=8)
    assert [file.name[-2:] for file in numbered(path)] == ["03", "06", "30", "40"]


def test_a_checkpoint_has_the_scale_of_fp16(tmp_path):
    """On a CPU, where no command trains in fp16."""

    def state(scale):
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.ones(2)).backward()
        optimizer.step()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=7)
        scaler.scale(torch.zeros(()))  # it makes its tensors in the first step
        return State({"steps": 9}, model, optimizer, model.state_dict(), scaler, None, Best())

    state(512.0).save(tmp_path / "a.ckpt", 3)
    resumed = state(2.0)
    assert resumed.resume(tmp_path / "a.ckpt", print) == 3
    assert resumed.scaler.get_scale() == 512.0


def test_a_training_that_has_made_no_update_can_go_on(tmp_path):
    skipping = replace(RECIPE, skip_norm=0.0)
    with pytest.raises(AvarcError):
        fit(tmp_path / "a.ckpt", recipe=skipping, dies=4)
    assert torch.equal(fit(tmp_path / "a.ckpt", recipe=skipping).weight, fit(None, recipe=skipping).weight)


def test_an_update_that_is_skipped_in_fp16_does_not_end_the_training():
    """On a CPU, where no command trains in fp16."""
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    updates = Updates(model, lambda step, rows: (model(torch.ones(1, 2)).sum(), {}), optimizer, Run(), batch_size=1)
    updates.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = model.weight.detach().clone()
    updates.gradients(0, None)
    updates.skip()
    assert torch.equal(model.weight, before)
    updates.gradients(1, None)
    updates.apply()
    assert torch.allclose(model.weight, before - 0.1)


def test_a_mean_is_over_the_steps_that_have_the_number():
    means = Means()
    for values in ({"loss": 1.0}, {"loss": 3.0, "d_loss": 5.0}, {"loss": 5.0, "d_loss": math.inf}):
        means.add(values)
    taken = means.take(1, torch.device("cpu"))
    assert taken["loss"] == 3.0 and taken["d_loss"] == 5.0


def test_divergence_names_the_step_and_the_last_good_checkpoint(tmp_path):
    with pytest.raises(AvarcError, match=r"nan at step 8\n.*last good checkpoint is '.*a\.ckpt'"):
        fit(tmp_path / "a.ckpt", loss=float("nan"))
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["step"] == 6
    with pytest.raises(AvarcError, match=r"norm is inf at step 8"):
        fit(None, loss=1e38)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    path = tmp_path / "a.ckpt"
    with pytest.raises(AvarcError):
        fit(path, dies=4)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("avarc_cli.train.checkpoint_file.torch.save", full)
    with pytest.raises(
        AvarcError, match=r"checkpoint of step 6 .*\n.*No space left on device; the one before is still"
    ):
        fit(path)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


def test_what_changed_since_the_checkpoint_is_said_in_words(tmp_path):
    with pytest.raises(AvarcError):
        fit(tmp_path / "a.ckpt", subject={"images": "24 of img", "tokenizer": "a"}, dies=5)
    with pytest.raises(CheckpointError, match=r"images have changed since .*\n.*24 of img there, 25 of img here"):
        fit(tmp_path / "a.ckpt", subject={"images": "25 of img", "tokenizer": "a"})
    with pytest.raises(CheckpointError, match="a training with another tokenizer"):
        fit(tmp_path / "a.ckpt", subject={"images": "24 of img", "tokenizer": "b"})


def test_a_folder_that_changed_is_noticed_even_if_only_pixels_did(tmp_path, monkeypatch, capsys):
    images = halves(tmp_path / "img", 8)
    with monkeypatch.context() as patch:
        killed_after(3, patch)
        assert main(command(images, tmp_path / "x")) == 143
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(images / "left" / "01.png")
    assert main(command(images, tmp_path / "x")) == 1
    assert "the training images have changed since" in capsys.readouterr().err


def test_a_second_run_into_the_same_file_is_refused(images, tmp_path):
    holder = "import sys, time; from pathlib import Path; from avarc_cli.work.locks import only_writer\n"
    holder += "with only_writer(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", holder, tmp_path / "x"], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        assert main(command(images, tmp_path / "x")) == 1
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_logs_hold_numbers_and_pictures_and_go_on_after_an_interruption(images, tmp_path, monkeypatch, capsys):
    more = ["--log-to", tmp_path / "log", "--log-every", "2", "--pictures-every", "6", "--hold-out", "0.25"]
    with monkeypatch.context() as patch:
        killed_after(5, patch)
        assert main(command(images, tmp_path / "x", *more)) == 143
    assert main(command(images, tmp_path / "x", *more)) == 0
    assert "the best on validation data" in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "log" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines[1:]] == [2, 4, 6, 8, 10, 12, 12]
    assert {"loss", "rmse", "vq", "gradient_norm", "learning_rate", "images_per_second", "memory_bytes"} < set(lines[1])
    assert all(0 < line["share_of_peak"] < 1 for line in lines[1:-1])
    assert set(lines[-1]) == {"step", "validation/loss", "validation/rmse", "validation/vq"}
    pictures = sorted((tmp_path / "log" / "pictures").iterdir())
    assert [path.name for path in pictures] == ["00000006.png", "00000012.png"]
    with Image.open(pictures[0]) as picture:
        assert picture.size == (6 * 9 - 1, 3 * 9 - 1), (
            "six held-out images: themselves, reconstructed, and the difference"
        )
    assert main(command(images, tmp_path / "y", *more, "--seed", "1")) == 2
    assert "log of another training" in capsys.readouterr().err


def test_the_best_weights_are_written_where_there_is_validation_data(images, tmp_path, monkeypatch):
    losses = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(
        "avarc_cli.train.validation.Validation.measure", lambda self, network, averaged: {"loss": next(losses)}
    )
    more = ["--hold-out", "0.25", "--validate-every", "4"]
    assert main(command(images, tmp_path / "best", *more)) == 0
    with monkeypatch.context() as patch:
        killed_after(7, patch)  # the weights after eight steps, at the same rates
        losses = iter([3.0, 1.0, 2.0])
        assert main(command(images, tmp_path / "cut", *more)) == 143
    averaged = torch.load(tmp_path / "cut.ckpt", weights_only=True)["averaged"]
    from safetensors.torch import load_file

    written = load_file(tmp_path / "best")
    assert all(torch.equal(written[name], averaged[name]) for name in written)


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(images, tmp_path, capsys):
    assert main([*command(images, tmp_path / "x", "--log-to", tmp_path / "log"), "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 24 and found["tokens"] == 24 * 21 and found["steps_per_epoch"] == 4
    assert found["steps"] == 12 and found["seconds"] > 0 and found["memory"] > 0 and found["parameters"] > 1000
    assert found["files"] == [str(tmp_path / name) for name in ("x", "x.ckpt", "log")]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--hold-out", "1"], "a fraction between 0 and 1"),
        (["--hold-out", "0.1", "--validation", "{images}"], "cannot be used together"),
        (["--pictures-every", "5"], "nowhere to write"),
        (["--log-to", "nowhere/log"], "'nowhere' is not a folder"),
        (["--precision", "fp8"], "fp8"),
        (["--precision", "fp16", "--device", "cpu"], "CUDA devices only"),
        (["--accumulate", "7"], "too small for 7 parts"),
        (["--wandb", "project"], "wandb is not installed"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_wrong_options_are_one_message(images, tmp_path, capsys, options, says):
    given = [option.format(images=images) for option in options]
    assert main(command(images, tmp_path / "x", *given)) == 2
    err = capsys.readouterr().err
    assert says in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_each_class_gives_its_share_to_validation_but_never_its_only_image(images, tmp_path):
    every = open_images([images])
    rest, held = hold_out(every, 0.25, seed=3)
    assert np.bincount(held.labels).tolist() == [3, 3] and sorted((*rest.names, *held.names)) == sorted(every.names)
    lonely = every.take(np.array([0, *np.flatnonzero(every.labels != every.labels[0])]))
    rest, held = hold_out(lonely, 0.5, seed=3)
    assert set(held.labels) == {1 - every.labels[0]} and len(rest) + len(held) == len(lonely)


def test_a_grid_of_images_has_lines_between_them():
    pixels = grid(torch.stack([torch.full((2, 3, 4, 4), -1.0), torch.zeros(2, 3, 4, 4)]))
    assert pixels.shape == (9, 9, 3) and (pixels[:4, :4] == 0).all() and (pixels[5:, :4] == 128).all()
    assert (pixels[4] == 255).all() and (pixels[:, 4] == 255).all()
