"""Settings of all tests, and fixtures for the golden cases: as models in memory and as checkpoints on disk."""

from __future__ import annotations

import atexit
import functools
import gc
import math
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Benchmarks import this file too, for the golden files: they see a GPU, and choose threads and products as runs do.
if "PYTEST_VERSION" in os.environ:
    os.fsync = lambda fd: None  # what was written survives a kill; only a power cut could lose it
    if "PYTEST_XDIST_WORKER" in os.environ:
        gc.disable()  # until all tests are collected: nearly all that is made before stays
    os.environ["AVARC_PRODUCTS"] = "torch"  # no measurement decides about numbers, or takes time
    # The same bits alone and in parallel (pytest -n); and a fork of a process that has used several may wait for ever.
    os.environ["OMP_NUM_THREADS"] = "1"
    if "AVARC_TEST_GPU" not in os.environ:  # as `make test-gpu` sets it; other tests compare numbers of a CPU
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("NO_COLOR", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # processes that tests start need not compile avarc again, each of them
os.environ["AVARC_HOME"] = tempfile.mkdtemp(prefix="avarc-tests-")  # without the names this user has registered
os.environ["TORCH_HOME"] = os.environ["AVARC_HOME"] + "/torch"  # nor the networks this user has downloaded
os.environ["HF_HOME"] = os.environ["AVARC_HOME"] + "/hf"  # nor the models
os.environ.pop("HF_HUB_CACHE", None)
os.environ.pop("HUGGINGFACE_HUB_CACHE", None)

import numpy as np
import pytest
import quick_processes
import torch
from golden import fill
from hypothesis import settings
from torch import Tensor

from avarc_cli import devices
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.models.var.config import read_config
from avarc_cli.models.var.likelihood import VARLikelihood
from avarc_cli.models.var.network import VAR
from avarc_cli.tokenizers.vqvae.family import FAMILY as VQVAE_FAMILY
from avarc_cli.tokenizers.vqvae.network import VQVAE

atexit.register(shutil.rmtree, os.environ["AVARC_HOME"], ignore_errors=True)
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)  # tables are as wide alone and in parallel, in any terminal
for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[name]  # the servers of tests are on this machine
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # so do jobs under nohup

pytest_plugins = ["driven_browser", "fake_hub", "flash_stand_in"]

# The same examples in every run, so that a failure points to the change; HYPOTHESIS_PROFILE=explore draws new ones.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

GOLDEN = Path(__file__).parent / "golden"
TINY = ("var_tiny", "var_tiny_shared_aln", "var_tiny_no_qk_norm")


def read_var(tensors: dict[str, torch.Tensor], source: str = "the state dict") -> VAR:
    """A VAR with these tensors, its configuration read off them."""
    return VAR.from_state_dict(read_config(tensors, ConfigSources(), source), tensors, source=source)


@dataclass
class Golden:
    """One golden file; golden/fill.py describes the format."""

    name: str
    """File name without suffix."""
    meta: dict[str, Any]
    """Configuration, seed, scales and keys of the weights, tolerances."""
    arrays: dict[str, np.ndarray]
    """Inputs, and the outputs of the original implementation."""

    @property
    def patch_nums(self) -> tuple[int, ...]:
        return tuple(self.meta["config"]["patch_nums"])

    @property
    def tolerances(self) -> dict[str, Any]:
        return dict(self.meta["tolerances"])

    def tensors(self, part: str) -> dict[str, Tensor]:
        """State dict of "var" or "vae" under the published keys, with the buffers that published files carry."""
        filled = fill.state_dict(self.meta[f"keys_{part}"], self.meta["seed"], self.meta["scales"])
        tensors = {key[4:]: torch.from_numpy(value) for key, value in filled.items()}
        if part == "vae":
            tensors["quantize.ema_vocab_hit_SV"] = torch.zeros(10, self.meta["config"]["vocab_size"])
            return tensors
        level = torch.cat([torch.full((p * p,), i) for i, p in enumerate(self.patch_nums)]).view(1, -1)
        tensors["lvl_1L"] = level
        seen = level.view(1, -1, 1) >= level.view(1, 1, -1)
        tensors["attn_bias_for_masking"] = torch.where(seen, 0.0, -math.inf)[:, None]
        for i in range(self.meta["config"]["depth"]):
            tensors[f"blocks.{i}.attn.zero_k_bias"] = torch.zeros(self.meta["config"]["embed_dim"])
        return tensors

    def var(self) -> VAR:
        return read_var(self.tensors("var"), source=self.name)

    def vqvae(self) -> VQVAE:
        stated = ConfigSources((("the golden file", {"patch_nums": list(self.patch_nums)}),))
        return VQVAE_FAMILY.build(self.tensors("vae"), stated, self.name)

    def likelihood(self) -> VARLikelihood:
        return VARLikelihood(self.var(), self.vqvae().quantize)

    def images(self) -> Tensor:
        return torch.from_numpy(self.arrays["image_uint8"]).permute(0, 3, 1, 2).float() / 255 * 2 - 1

    def tokens(self) -> Tensor:
        return torch.from_numpy(self.arrays["tokens"]).long()


def pytest_collection_finish() -> None:
    """Python looks for cycles among new objects only: to go through imported ones took 5 % of the tests' time."""
    gc.enable()
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """At the end all objects count again: some libraries complain of those that are left."""
    gc.unfreeze()


def load_golden(name: str) -> Golden:
    return Golden(name, *fill.load_golden(GOLDEN / f"{name}.npz"))


@pytest.fixture(scope="session", autouse=True)
def quick_device_processes() -> Iterator[None]:
    """Processes of --devices start quickly; those of an avarc that a test starts as a process are spawned."""
    with quick_processes.instead_of_spawned():
        yield


@pytest.fixture(scope="session", autouse=True)
def one_measurement_of_the_machine() -> Iterator[None]:
    """Benchmarks and logged trainings compare with the machine's rate of products, which takes half a second."""
    measured = functools.cache(devices.product_rate)
    with pytest.MonkeyPatch.context() as patch:
        for user in ("avarc_cli.bench.measure", "avarc_cli.train.loop"):
            patch.setattr(f"{user}.product_rate", measured)
        yield


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Number of torch's threads during the test; one in all others."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=TINY)
def golden(request: pytest.FixtureRequest) -> Golden:
    """Each tiny golden case in turn."""
    return load_golden(request.param)


@pytest.fixture(scope="session")
def tiny() -> Golden:
    """One tiny golden case, for tests that need no more."""
    return load_golden("var_tiny")


@pytest.fixture(scope="session")
def tiny_files(tiny: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with VAR.pth and VAE.pth in published form, and img/ with the golden images as PNG."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("tiny")
    torch.save({"trainer": {"var_wo_ddp": tiny.tensors("var")}, "epoch": 3}, folder / "VAR.pth")
    torch.save(tiny.tensors("vae"), folder / "VAE.pth")
    (folder / "img").mkdir()
    for i, image in enumerate(tiny.arrays["image_uint8"]):
        Image.fromarray(image).save(folder / "img" / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of FID's Inception network, filled at random, under the published keys."""
    meta = load_golden("inception_tiny").meta
    filled = fill.state_dict(meta["keys"], meta["seed"], meta["scales"])
    tensors = {key: torch.from_numpy(value) for key, value in filled.items()}
    tensors |= {
        key.replace("running_mean", "running_var"): torch.ones_like(value)
        for key, value in tensors.items()
        if key.endswith("running_mean")
    }
    file = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(tensors, file)
    return file
