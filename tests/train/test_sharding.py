"""Trainings by two processes, sharded and not, each on a machine of its own, against the same ones in one process."""

import json
import shutil
import socket
import subprocess
from contextlib import ExitStack

import pytest
import torch
from programs import start
from safetensors.torch import load_file
from small_datasets import halves

from avarc_cli.cli import main
from avarc_cli.layers.linears import CalledLinear, linear
from avarc_cli.train import loop

SCALES = "--image-size 8 --patch-nums 1,2,4 --vocab 16 --channels 4 --width 32 --multipliers 1,1 --blocks 1".split()
CODES = "--image-size 8 --vocab 16 --channels 4 --width 32 --multipliers 1,1 --blocks 1".split()
HOW = "--steps 4 --batch-size 7 --lr 1e-3 --augment affine --flip --save-every 2 --depth 2 --width 64".split()
EVERYTHING = "--accumulate 2 --checkpoint-activations --hold-out 0.25 --validate-every 2 --pictures-every 2".split()
VAR = ["train", "var", "img", "--tokenizer", "scales.st", *HOW]
LLAMAGEN = ["train", "llamagen", "img", "--tokenizer", "codes.st", *HOW]
RAR = ["train", "rar", "img", "--tokenizer", "raster.st", *HOW]
PLAIN = ["train", "tokenizer", "img", *SCALES, *"--steps 3 --batch-size 7 --lr 1e-3 --augment affine --flip".split()]
LOG = ["--log-to", "out/log", "--log-every", "1"]


def free_ports(count):
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("localhost", 0))
        return [each.getsockname()[1] for each in sockets]


def together(folders, commands):
    """Two processes run these, one in each folder. Returns: of each, its exit codes and what it printed."""
    given = json.dumps([[port, *words] for port, words in zip(free_ports(len(commands)), commands, strict=True)])
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | {"text": True}
    processes = [start("train_together", rank, 2, cwd=folder, **pipes) for rank, folder in enumerate(folders)]
    try:
        for process in processes:
            process.stdin.write(given)
            process.stdin.close()
            process.stdin = None
        said = [process.communicate(timeout=1800) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        ([int(line.split()[-1]) for line in out.splitlines() if line.startswith("ended with")], out + err)
        for out, err in said
    ]


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    """Two folders with images and tokenizers; the first one has out/, for the files of all trainings."""
    first = tmp_path_factory.mktemp("first")
    images = str(halves(first / "img"))
    for command, shape, name in (
        ("tokenizer", SCALES, "scales"),
        ("vq", CODES, "codes"),
        ("maskgit-vq", CODES, "raster"),
    ):
        assert main(["train", command, images, *shape, "--steps", "1", "--out", str(first / f"{name}.st")]) == 0
    shutil.copytree(first / "img", first / "other")
    second = tmp_path_factory.mktemp("machines") / "second"
    shutil.copytree(first, second)
    min((second / "other" / "left").iterdir()).unlink()
    (first / "out").mkdir()
    return first, second


@pytest.fixture(scope="module")
def ended(machines):
    """The folder of the first machine, the exit codes of all trainings in two processes, and what was printed."""
    first, _ = machines
    commands = {
        "other images": [0, "train", "var", "other", *VAR[3:], "--out", "out/x.st"],
        "not sharded": [0, *PLAIN, *"--log-to out/reconstructed --pictures-every 2 --out out/plain.st".split()],
        "var": [0, *VAR, *EVERYTHING, *LOG, "--shard", "--out", "out/var.st"],
        "llamagen, begun": [3, *LLAMAGEN, "--shard", "--out", "out/begun.st"],
        "rar, ended": [0, *RAR, "--precision", "bf16", "--shard", "--out", "out/ended.st"],
        "asked to end": [-1, *VAR, "--out", "out/asked.st"],
        "tokenizer": [0, "train", "vq", "img", *CODES, "--steps", "1", "--shard", "--out", "out/vq.st"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(first)
        interrupt_after(3, patch)
        assert main([*RAR, "--precision", "bf16", "--out", "out/ended.st"]) == 130
    result = together(machines, list(commands.values()))
    return first, {name: [codes[i] for codes, _ in result] for i, name in enumerate(commands)}, [x for _, x in result]


def interrupt_after(steps, patch):
    average, left = loop.average, [steps]

    def interrupted(*args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        average(*args)

    patch.setattr(loop, "average", interrupted)


def check_same(one, other, atol=1e-6):
    one, other = load_file(one), load_file(other)
    assert one.keys() == other.keys()
    assert all(torch.allclose(tensor, other[name], atol=atol) for name, tensor in one.items())


def run_alone(first, monkeypatch, words, out):
    monkeypatch.chdir(first)
    assert main([*words, "--out", str(out)]) == 0
    return out


def test_two_processes_learn_what_one_learns_and_one_of_them_speaks(ended, tmp_path, monkeypatch):
    first, codes, said = ended
    assert codes["not sharded"] == [0, 0]
    assert [text.count("out/plain.st: written") for text in said] == [1, 0]
    assert [text.count("3 steps in") for text in said] == [1, 0]
    assert not list((first / "out").glob("plain.st?*")), "neither checkpoint nor lock is left"
    assert [path.name for path in (first / "out" / "reconstructed" / "pictures").iterdir()] == ["00000002.png"]
    one, two = load_file(run_alone(first, monkeypatch, PLAIN, tmp_path / "one")), load_file(first / "out" / "plain.st")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        # The bias of a convolution before a norm has no gradient but rounding noise, which Adam scales up.
        if tensor.ndim > 1:
            assert torch.allclose(tensor, two[name], atol=2e-5, rtol=1e-4), name


def test_a_sharded_training_learns_what_one_process_learns(ended, tmp_path, monkeypatch):
    first, codes, _ = ended
    assert codes["var"] == [0, 0]
    alone = run_alone(
        first, monkeypatch, [*VAR, *EVERYTHING, "--log-to", str(tmp_path / "log"), *LOG[2:]], tmp_path / "one"
    )
    check_same(alone, first / "out" / "var.st")
    lines = [
        [json.loads(line) for line in (log / "metrics.jsonl").read_text().splitlines()[1:]]
        for log in (first / "out" / "log", tmp_path / "log")
    ]
    measured = {"images_per_second", "memory_bytes", "share_of_peak"}
    for here, there in zip(*lines, strict=True):
        assert here.keys() == there.keys() and ("accuracy" in here or "validation/accuracy" in here)
        assert all(here[name] == pytest.approx(there[name], rel=1e-4) for name in here.keys() - measured)
    assert sorted(path.name for path in (first / "out" / "log" / "pictures").iterdir()) == [
        "00000002.png",
        "00000004.png",
    ]


def test_what_was_begun_sharded_is_ended_by_one_process_and_the_reverse(ended, tmp_path, monkeypatch):
    first, codes, _ = ended
    assert codes["llamagen, begun"] == [130, 130] and codes["rar, ended"] == [0, 0]
    assert torch.load(first / "out" / "begun.st.ckpt", weights_only=True)["step"] == 2
    begun = run_alone(first, monkeypatch, LLAMAGEN, first / "out" / "begun.st")
    check_same(run_alone(first, monkeypatch, LLAMAGEN, tmp_path / "one"), begun)
    assert not (first / "out" / "ended.st.ckpt").exists()
    alone = run_alone(first, monkeypatch, [*RAR, "--precision", "bf16"], tmp_path / "rar")
    check_same(alone, first / "out" / "ended.st", atol=5e-4)  # bfloat16 rounds to 1/256


def test_a_signal_to_one_machine_ends_the_training_on_all_of_them_saved(ended):
    first, codes, _ = ended
    assert codes["asked to end"] == [130, 143]
    assert not (first / "out" / "asked.st").exists()
    assert torch.load(first / "out" / "asked.st.ckpt", weights_only=True)["step"] == 3, (
        "after the step in which it came"
    )


def test_only_the_first_machine_needs_the_folder_of_the_weights(machines, ended):
    _, second = machines
    assert not (second / "out").exists() and not list(second.glob("*.lock"))


def test_machines_with_other_images_are_told_apart(ended):
    _, codes, said = ended
    assert codes["other images"] == [2, 2]
    assert "process 1 trains something else than process 0" in said[0] and "Traceback" not in said[1]


def test_tokenizers_are_not_sharded(ended):
    _, codes, said = ended
    assert codes["tokenizer"] == [2, 2] and "UserWarning" not in said[0] + said[1]
    assert "--shard divides the weights of generators only" in said[0] and "Traceback" not in said[0] + said[1]


def test_one_process_cannot_shard(machines, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(machines[0])
    assert main([*VAR, "--shard", "--out", str(tmp_path / "x")]) == 2
    assert "torchrun" in capsys.readouterr().err


def test_a_called_linear_is_the_same():
    torch.manual_seed(0)
    plain, x, bias = torch.nn.Linear(4, 3), torch.randn(2, 4), torch.randn(3)
    expected = [linear(plain, x), linear(plain, x, bias)]
    plain.__class__ = CalledLinear
    assert all(torch.equal(a, b) for a, b in zip(expected, [linear(plain, x), linear(plain, x, bias)], strict=True))
    assert torch.equal(plain(x), expected[0])
