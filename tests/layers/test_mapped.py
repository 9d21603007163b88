"""Memory of weights that are mapped from a file is given back, and nothing is lost by it."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from avarc_cli.layers import mapped
from avarc_cli.layers.linears import convert_linears
from avarc_cli.layers.precision import PRECISIONS, cpu_has_bf16
from avarc_cli.loading import load_tokenizer

linux = pytest.mark.skipif(sys.platform != "linux", reason="the memory of other systems is left as it is")


@pytest.fixture
def weights(tmp_path: Path) -> tuple[Tensor, Tensor]:
    """A tensor, and the same mapped from a file."""
    expected = torch.randn(1024, 1025)
    save_file({"x": expected, "y": torch.zeros(3)}, tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        return expected, file.get_tensor("x")


def resident() -> int:
    """Bytes of files of weights that are mapped and in memory; libraries come into memory by parts, too."""
    maps = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    sizes = [re.search(r"^Rss: +(\d+) kB", each, re.MULTILINE) for each in maps if "w.safetensors" in each]
    return sum(1024 * int(size[1]) for size in sizes if size)


@linux
def test_pages_of_a_file_are_given_back_and_read_again(weights):
    expected, tensor = weights
    assert torch.equal(tensor, expected)
    before = resident()
    mapped.give_back(tensor)
    assert before - resident() > tensor.nbytes // 2
    assert torch.equal(tensor, expected)


@linux
def test_what_was_written_to_stays(weights):
    expected, tensor = weights
    tensor[500] += 1
    mapped.give_back(tensor)
    assert torch.equal(tensor[500], expected[500] + 1)


@pytest.mark.parametrize("tensor", [torch.ones(3), torch.ones(300, 400), torch.ones(300, 400).T, torch.ones(0)])
def test_memory_of_the_process_stays(tensor):
    mapped.give_back(tensor)
    assert bool((tensor == 1).all())


def test_without_a_map_of_pages_nothing_happens(weights, monkeypatch):
    expected, tensor = weights
    monkeypatch.setattr(mapped, "PAGEMAP", "/nowhere")
    mapped.give_back(tensor)
    assert torch.equal(tensor, expected)


@linux
def test_converted_linears_give_back_what_they_were_made_of(weights):
    expected, tensor = weights
    block = nn.ModuleDict({"fc": nn.Linear(1025, 1024)})
    block["fc"].weight = nn.Parameter(tensor, requires_grad=False)
    assert torch.equal(tensor, expected)
    before = resident()
    convert_linears(block, ["fc"], PRECISIONS["bf16"])
    assert before - resident() > tensor.nbytes // 2
    assert torch.equal(block["fc"].weight.to_dense(), expected.bfloat16())
    assert block["fc"].weight.is_mkldnn == cpu_has_bf16()


@linux
def test_a_tokenizer_gives_its_weights_back(weights):
    expected, tensor = weights
    network = nn.Linear(1025, 1024)
    network.weight = nn.Parameter(tensor, requires_grad=False)
    tokenizer = replace(load_tokenizer("digits"), network=network)
    assert torch.equal(tensor, expected)
    before = resident()
    tokenizer.free_memory()
    assert before - resident() > tensor.nbytes // 2
    assert torch.equal(tensor, expected)
