"""Images in memory that several processes share."""

import os
import re
import subprocess
import sys

import pytest
import torch
from programs import TESTS
from safetensors.torch import load_file
from small_datasets import halves

from avarc_cli.cli import main
from avarc_cli.data.datasets import open_images
from avarc_cli.train.images import Augment, TrainingImages

SHAPE = "--image-size 8 --patch-nums 1,2,4 --vocab 16 --channels 4 --width 32 --multipliers 1,1 --blocks 1".split()
STEPS = ["--steps", "3", "--batch-size", "4", "--lr", "1e-3"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="processes share memory on Linux")
def test_two_processes_train_on_the_only_readable_image_of_two_and_have_its_pixels_once(tmp_path):
    images = halves(tmp_path / "img", 2)
    (images / "left" / "01.png").write_bytes(b"no image")
    words = ["train", "tokenizer", str(images), *SHAPE, *STEPS]
    assert main([*words, "--out", str(tmp_path / "one.st")]) == 3
    variables = os.environ | {"OMP_NUM_THREADS": "1"}
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, (str(TESTS), variables.get("PYTHONPATH"))))
    command = [*TORCHRUN, "-m", "programs.train_shared", *words, "--out", str(tmp_path / "two.st")]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, "torchrun takes any other code for a failure"
    assert done.stderr.count("left out left/01.png") == 1 and done.stderr.count("1 image could not be read") == 1
    mapped = re.findall(r"mapped (\d+) (\d+)\n", done.stdout)  # perhaps within a line of the other process
    pixels = TrainingImages(open_images([images]), 8, Augment(), seed=0, within_class=False).pixels.memory
    assert len(mapped) == 2 and mapped[0] == mapped[1], "both map the same memory"
    assert mapped[0][1] == str(int(pixels.sum())), "and see what either has decoded"
    one, two = load_file(tmp_path / "one.st"), load_file(tmp_path / "two.st")
    for name, tensor in one.items():
        if tensor.ndim > 1:  # biases before a norm have no gradient but rounding noise
            assert torch.allclose(tensor, two[name], atol=2e-5, rtol=1e-4), name
