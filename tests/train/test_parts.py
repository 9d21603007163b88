"""A batch in several parts learns what the whole batch teaches; test_sharding.py and test_shared.py start processes."""

import pytest
import torch
from safetensors.torch import load_file
from small_datasets import halves

from avarc_cli.cli import main
from avarc_cli.errors import UsageError
from avarc_cli.layers import vq_loss
from avarc_cli.layers.rows import Rows
from avarc_cli.train.loop import train
from avarc_cli.train.recipe import Recipe
from avarc_cli.train.run import Run

TOKENIZER = "--image-size 8 --patch-nums 1,2,4 --vocab 16 --channels 4 --width 32 --multipliers 1,1 --blocks 1".split()
TITOK = "--image-size 8 --patch 2 --tokens 4 --vocab 16 --channels 4 --width 64 --depth 1".split()
CODES = "--image-size 8 --vocab 16 --channels 4 --width 32 --multipliers 1,1 --blocks 1".split()
STEPS = ["--steps", "3", "--batch-size", "7", "--lr", "1e-3", "--augment", "affine", "--flip"]
SMALL = ["--depth", "2", "--width", "64"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with images in img/ and three tokenizers."""
    folder = tmp_path_factory.mktemp("parts")
    images = str(halves(folder / "img"))
    for command, shape in {"tokenizer": TOKENIZER, "vq": CODES, "titok": TITOK}.items():
        assert main(["train", command, images, *shape, "--steps", "1", "--out", str(folder / f"{command}.st")]) == 0
    return folder


def command_of(name, folder):
    own = {
        "tokenizer": TOKENIZER,
        "var": ["--tokenizer", str(folder / "tokenizer.st"), *SMALL],
        "randar": ["--tokenizer", str(folder / "vq.st"), *SMALL],
        "maskgit": ["--tokenizer", str(folder / "titok.st"), *SMALL],
    }
    return ["train", name, str(folder / "img"), *STEPS, *own[name]]


def check_same(one, other):
    one, other = load_file(one), load_file(other)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        # The bias of a convolution before a norm has no gradient but rounding noise, which Adam scales up.
        if tensor.ndim > 1:
            assert torch.allclose(tensor, other[name], atol=2e-5, rtol=1e-4), name


@pytest.mark.parametrize("name", ["tokenizer", "var", "randar", "maskgit"])
def test_passes_of_parts_learn_what_the_whole_batch_teaches(folder, tmp_path, name):
    words = command_of(name, folder)
    assert main([*words, "--out", str(tmp_path / "one.st")]) == 0
    assert main([*words, "--accumulate", "3", "--out", str(tmp_path / "three.st")]) == 0
    check_same(tmp_path / "one.st", tmp_path / "three.st")


def test_measures_against_unused_codes_are_the_same_in_parts(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(vq_loss, "REVIVE_EVERY", 2)
    monkeypatch.setattr(vq_loss, "REVIVE_UNTIL", 1.0)
    words = [*command_of("tokenizer", folder), "--scale-dropout", "0.5", "--perturb", "0.5"]
    assert main([*words, "--out", str(tmp_path / "one.st")]) == 0
    assert main([*words, "--accumulate", "3", "--out", str(tmp_path / "three.st")]) == 0
    check_same(tmp_path / "one.st", tmp_path / "three.st")


def test_more_parts_than_images_are_refused(monkeypatch):
    with pytest.raises(UsageError, match="a batch of 7 images is too small for 8 parts"):
        Run(accumulate=8).check_batch(7)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="2 processes with 4 passes a step"):
        Run(accumulate=4).check_batch(7)


def test_rows_split_without_gap_or_overlap():
    for parts in range(1, 9):
        split = Rows.whole(7).split(parts)
        assert [row for rows in split for row in range(rows.start, rows.stop)] == list(range(7))
        assert sum(rows.share for rows in split) == pytest.approx(1)


def fit(run, width=4):
    torch.manual_seed(0)
    blocks = [torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Tanh()) for _ in range(3)]
    model = torch.nn.Sequential(*blocks)
    saved = []

    def loss_of_rows(step, rows):
        x = torch.randn(rows.of, width, generator=torch.Generator().manual_seed(step))
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            return (model(rows.take(x)) - rows.take(x)).square().mean(), {}

    recipe = Recipe(steps=4, batch_size=6, lr=1e-2)
    train(model, loss_of_rows, recipe, None, lambda done, values: None, subject={}, run=run)
    return model, len(saved)


def test_recomputed_activations_change_no_bit_and_fewer_are_kept():
    (plain, many), (recomputed, few) = fit(Run()), fit(Run(recompute=True))
    assert few < many
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), recomputed.parameters(), strict=True))
    assert "forward" not in vars(recomputed[0]), "afterwards the blocks are as they were"


def test_half_precision_rounds_products_but_not_weights():
    (plain, _), (half, _) = fit(Run()), fit(Run(precision="bf16"))
    pairs = list(zip(plain.parameters(), half.parameters(), strict=True))
    assert all(b.dtype == torch.float32 and torch.allclose(a, b, atol=0.05) for a, b in pairs)
    assert not any(torch.equal(a, b) for a, b in pairs)


def test_fp16_needs_a_cuda_device_and_other_precisions_do_not_exist():
    with pytest.raises(UsageError, match="CUDA devices only"):
        fit(Run(precision="fp16"))
    with pytest.raises(UsageError, match="no training precision 'fp8'"):
        Run(precision="fp8")
