"""avarc doctor: facts about this machine, and about one that is not."""

import json
from types import SimpleNamespace

import pytest
import torch

from avarc_cli import __version__, environment
from avarc_cli.cli import main


@pytest.fixture
def gpu(monkeypatch):
    """A machine with two CUDA devices, as far as torch tells."""
    properties = SimpleNamespace(name="NVIDIA H100", major=9, minor=0, total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: properties)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)


def test_the_report_holds_versions_machine_choices_and_extras(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in (
        __version__,
        torch.__version__,
        "attention",
        "precision",
        "kernels",
        "cpu",
        "flash-attn",
        "scikit-learn",
    ):
        assert word in out


def test_json_says_the_same(capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["versions"]["torch"] == torch.__version__
    assert report["machine"]["cores"] >= 1
    assert report["devices"][-1]["name"] == "cpu"
    assert {choice["what"] for choice in report["choices"]} == {
        "device",
        "attention",
        "precision",
        "kernels",
        "float32 products",
    }
    assert all(choice["why"] for choice in report["choices"])


def test_an_available_gpu_is_chosen(gpu, capsys):
    assert environment.choices()[0].picked == environment.devices()[0].name == "cuda:0"
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "cuda:1" in out
    assert "NVIDIA H100, compute capability 9.0" in out
    assert "80.0 GiB" in out
    assert "bf16" in out


@pytest.mark.parametrize(("built", "why"), [(None, "built without CUDA"), ("12.8", "no usable GPU or driver")])
def test_the_reason_for_choosing_the_cpu_is_shown(monkeypatch, built, why):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    device = environment.choices()[0]
    assert device.picked == "cpu"
    assert why in device.why


def test_memory_is_limited_by_the_container(tmp_path, monkeypatch):
    whole = environment.memory()
    limit, none = tmp_path / "memory.max", tmp_path / "unlimited"
    limit.write_text("1048576\n")
    none.write_text("max\n")
    monkeypatch.setattr(environment, "_CGROUP_LIMITS", (str(none), str(limit), str(tmp_path / "missing")))
    assert environment.memory() == 2**20 < whole


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(environment, "_EXTRAS", (("no-such-package", "none", "nothing"), ("torch", "torch", "all")))
    missing, present = environment.extras()
    assert missing.version is None
    assert missing.install == "pip install 'avarc[none]'"
    assert present.version is not None


@pytest.mark.parametrize("why", [None, "it needs a C compiler"])
def test_doctor_says_what_int16_lacks(monkeypatch, capsys, why):
    monkeypatch.setattr(environment, "cpu_has_bf16", lambda: False)
    monkeypatch.setattr(environment, "precision_missing", lambda name, device: why)
    assert main(["doctor"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "bf16 and fp16 are slow" in out and ("no int16" in out) == ("it needs a C compiler" in out) == bool(why)
