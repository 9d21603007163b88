"""What this machine has and what avarc uses on it, for `avarc doctor` and run.json."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

from avarc_cli import __version__
from avarc_cli.layers.precision import cpu_has_bf16, cpu_has_vnni, low_precision
from avarc_cli.layers.precision import missing as precision_missing
from avarc_cli.words import counted
from avarc_kernels import flash_missing, triton_missing

PACKAGES = ("torch", "numpy", "pillow", "h5py", "safetensors", "huggingface_hub")
_EXTRAS = (
    ("flash-attn", "flash", "attention for NVIDIA GPUs in half precision (--kernels flash)"),
    ("triton", "triton", "avarc's own GPU kernels (--kernels triton)"),
    ("pyarrow", "data", "reading Parquet and Arrow datasets, avarc export to Parquet"),
    ("peft", "peft", "using avarc's LoRA adapters in PEFT; avarc itself does not need it"),
    ("ray", "ray", "avarc encode --engine ray, on a cluster"),
    ("transformers", "text", "text encoders, for captions that are not encoded yet"),
    ("ftfy", "text", "the same"),
    ("scikit-learn", "digits", "the images that the digits model was trained on"),
)
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Extra:
    """An optional package."""

    package: str  # as pip names it
    version: str | None  # None if it is not installed
    install: str  # the command that installs it
    brings: str  # what it is for


@dataclass(frozen=True)
class Device:
    """A device that a model can run on."""

    name: str  # a value of --device
    description: str  # for people
    memory: int | None  # bytes; None if unknown


@dataclass(frozen=True)
class Choice:
    """What avarc uses by default, and why."""

    what: str
    picked: str
    why: str


@dataclass(frozen=True)
class Finding:
    """Something that costs speed, why, and what helps."""

    what: str
    why: str
    fix: str


def versions(*more: str) -> dict[str, str]:
    """Versions that results may depend on: avarc, Python, the packages that compute or read files, and these."""
    installed = {name: _version(name) for name in (*PACKAGES, *more)}
    known = {name: version for name, version in installed.items() if version is not None}
    return {"avarc": __version__, "python": platform.python_version()} | known | {"torch": torch.__version__}


def machine() -> dict[str, str | int | None]:
    """The operating system, the processor, the cores this process may use, torch's threads, and memory in bytes."""
    return {
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "cores": cores(),
        "torch_threads": torch.get_num_threads(),
        "memory": memory(),
    }


def memory() -> int | None:
    """Bytes of memory this process may use: the machine's, or its container's if that is less. None if unknown."""
    names = getattr(os, "sysconf_names", {})  # not on Windows
    if "SC_PHYS_PAGES" not in names or "SC_PAGE_SIZE" not in names:
        return None
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    texts = [Path(name).read_text().strip() for name in _CGROUP_LIMITS if os.access(name, os.R_OK)]
    return min([total, *(int(text) for text in texts if text.isdecimal())])


def devices() -> tuple[Device, ...]:
    """Every device a model can run on, the default first."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else range(0)
    found = [torch.cuda.get_device_properties(i) for i in gpus]
    cuda = tuple(
        Device(f"cuda:{i}", f"{p.name}, compute capability {p.major}.{p.minor}", p.total_memory)
        for i, p in enumerate(found)
    )
    return (*cuda, Device("cpu", _cpu_name(), memory()))


def choices() -> tuple[Choice, ...]:
    """Which device, attention, precision and kernels are used unless an option says otherwise."""
    cuda = torch.cuda.is_available()
    return (_device_choice(cuda), _attention_choice(cuda), _precision_choice(cuda), _kernel_choice(cuda))


def attention(kernels: str) -> str:
    """The attention that these kernels use, in words."""
    if kernels.startswith("flash"):
        return f"flash-attn {_version('flash-attn') or 'of unknown version'}, one unmasked or causal call a segment"
    if kernels == "triton":
        return "avarc's block-causal kernel, QK-norm inside"
    return "torch scaled_dot_product_attention, or two products where those are faster; one unmasked call a segment"


def findings() -> tuple[Finding, ...]:
    """What makes scoring slower on this machine than it could be, most costly first."""
    return tuple(
        finding for look in (_no_gpu, _busy, _threads, _waiting, _low_precision, _packages) for finding in look()
    )


def _no_gpu() -> Iterator[Finding]:
    if not torch.cuda.is_available():
        why = "var-d16 needs 0.3 T operations for a pair of image and class; a CPU core does 0.1 to 0.2 T per second"
        fix = f"--plan paper, which scores a third of the tokens; --precision {_fast_on_cpu()}; a smaller model"
        yield Finding("no GPU", why, fix)


def _busy() -> Iterator[Finding]:
    if hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > 1.5 * cores():
        why = f"{load:.1f} processes want {counted(cores(), 'core')}: the average of the last minute"
        yield Finding("other processes are running", why, "wait for them to end, or expect proportionally less speed")


def _threads() -> Iterator[Finding]:
    threads, usable = torch.get_num_threads(), cores()
    if threads != usable:
        why = "some cores are idle" if threads < usable else "threads wait for each other"
        yield Finding(
            f"{counted(threads, 'thread')} on {counted(usable, 'core')}", why, f"set OMP_NUM_THREADS={usable}"
        )


def _waiting() -> Iterator[Finding]:
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    if policy.upper() == "ACTIVE":
        why = "threads that spin while they wait are 4 to 6 times slower when another process runs"
        yield Finding(
            f"OMP_WAIT_POLICY is {policy}", why, "unset it: avarc lets threads spin for a few microseconds only"
        )


def _low_precision() -> Iterator[Finding]:
    if torch.cuda.is_available():
        capability = torch.cuda.get_device_capability(0)
        if capability < (8, 0):
            yield Finding("no bf16 and no tf32", f"compute capability {capability[0]}.{capability[1]}", "use fp16")
        elif capability < (8, 9):
            yield Finding("no fp8", f"compute capability {capability[0]}.{capability[1]}; fp8 needs 8.9", "use bf16")
        return
    if not cpu_has_vnni():
        why = "this CPU adds 8-bit products without VNNI: int8 has 7-bit weights, at less than twice the speed of fp32"
        yield Finding("int8 is inexact", why, f"use {_fast_on_cpu()}, or a CPU with AVX512-VNNI or AMX")
    if not cpu_has_bf16():
        if why_not := precision_missing("int16", torch.device("cpu")):
            why = f"{why_not}; int16 was 1.6 times as fast as fp32, and rounds little"
            yield Finding("no int16", why, "Linux on x86-64 with AVX2, and gcc")
        why = "this CPU has no bf16 products, torch converts each number: a third of the speed of fp32 when measured"
        yield Finding("bf16 and fp16 are slow", why, f"use fp32 or {_fast_on_cpu()}")


def _packages() -> Iterator[Finding]:
    if torch.cuda.is_available() and (why := triton_missing(torch.device("cuda"))):
        yield Finding("avarc's kernels do not run", why, "pip install 'avarc[triton]'")


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def extras() -> tuple[Extra, ...]:
    """The optional packages, installed or not."""
    return tuple(
        Extra(package, _version(package), f"pip install 'avarc[{extra}]'", brings) for package, extra, brings in _EXTRAS
    )


def _device_choice(cuda: bool) -> Choice:
    if cuda:
        return Choice(
            "device", "cuda:0", f"torch {torch.__version__} sees {counted(torch.cuda.device_count(), 'CUDA device')}"
        )
    built = torch.version.cuda
    why = f"torch {torch.__version__} " + (
        f"was built for CUDA {built}, but finds no usable GPU or driver" if built else "was built without CUDA"
    )
    return Choice("device", "cpu", why)


def _attention_choice(cuda: bool) -> Choice:
    why = "scale by scale needs no mask, so torch's fastest kernel for the shape and precision applies"
    if cuda:
        enabled = {
            "flash": torch.backends.cuda.flash_sdp_enabled(),
            "cuDNN": torch.backends.cuda.cudnn_sdp_enabled(),
            "memory-efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
            "math": torch.backends.cuda.math_sdp_enabled(),
        }
        why += f"; enabled are {', '.join(name for name, on in enabled.items() if on)}"
    return Choice("attention", attention("torch"), why)


def _fast_on_cpu() -> str:
    return low_precision(torch.device("cpu")) or "int8"


def _precision_choice(cuda: bool) -> Choice:
    if not cuda:
        fast = {
            "bf16": "1.7 (Zen 4) to 3.3 times (AMX)",
            "int16": "1.6 times (AVX2)",
            "int8": "1.4 to 1.9 (AVX2) or 2.4 times (VNNI)",
        }
        why = f"as in the reference; --precision {_fast_on_cpu()} was {fast[_fast_on_cpu()]} as fast"
        return Choice("precision", "fp32", why)
    half = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    why = f"as in the reference; on an H200 {half} was ten times as fast, and --precision cascade predicts as fp32 does"
    return Choice("precision", "fp32", why)


def _kernel_choice(cuda: bool) -> Choice:
    device = torch.device("cuda" if cuda else "cpu")
    missing = triton_missing(device)
    triton = missing or "on an H200 about twice as fast as torch in bf16, slower in fp32"
    flash = flash_missing(device) or "available, in half precision"
    chosen = "torch" if missing else "triton in half and 8-bit precisions, else torch"
    return Choice("kernels", chosen, f"--kernels triton: {triton}; --kernels flash: {flash}")


@cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return named[1] if named else platform.processor() or platform.machine()
