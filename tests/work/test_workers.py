import sys

import pytest
import torch

from avarc_cli.errors import UsageError
from avarc_cli.work.workers import HERE, Workers, parse_devices


@pytest.fixture
def gpus(monkeypatch):
    """Three GPUs, as far as torch tells."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        (None, ()),
        ("cpu", ("cpu",)),
        ("cpu:3", ("cpu", "cpu", "cpu")),
        ("all", ("cuda:0", "cuda:1", "cuda:2")),
        ("2, 0", ("cuda:2", "cuda:0")),
        ("cuda:1,1", ("cuda:1", "cuda:1")),
    ],
)
def test_devices_are_named_as_torch_does(gpus, text, devices):
    assert parse_devices(text) == devices


@pytest.mark.parametrize("text", ["", "x", "cpu:0", "cpu:x", "cpu:99999", "cpu,0", "0,", "-1", "cuda", "9" * 5000, "²"])
def test_other_words_are_usage_errors_without_torch(monkeypatch, text):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match="cannot read --devices"):
        parse_devices(text)


def test_a_gpu_that_is_not_there_is_a_usage_error(gpus, monkeypatch):
    with pytest.raises(UsageError, match=r"there is no GPU 3.*\n.*there are 3 CUDA devices"):
        parse_devices("0,3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for text in ("all", "0"):
        with pytest.raises(UsageError, match=f"there is no GPU for --devices {text}"):
            parse_devices(text)


def test_who_computes():
    assert Workers() == HERE and HERE.count == 1 and HERE.first_device("auto") == "auto"
    assert Workers(devices=("cuda:1", "cuda:2")).first_device("auto") == "cuda:1"
    with pytest.raises(UsageError, match="there are local, ray"):
        Workers("cluster")
    with pytest.raises(UsageError, match="does not go with --engine ray"):
        Workers("ray", ("cpu",))
