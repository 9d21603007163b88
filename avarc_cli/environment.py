"""What this machine has, and what avarc picks on it: facts for `avarc doctor` and for run.json."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from avarc_cli import __version__

PACKAGES = ("torch", "numpy", "pillow", "h5py", "safetensors", "huggingface_hub")
_EXTRAS = (
    ("flash-attn", "flash", "attention kernels for NVIDIA GPUs; not used by this version"),
    ("triton", "triton", "our own GPU kernels; not used by this version"),
    ("peft", "peft", "training LoRA adapters; reading them needs nothing; not used by this version"),
    ("ray", "ray", "work spread over a cluster; not used by this version"),
    ("matplotlib", "plots", "plots in reports; not used by this version"),
    ("scikit-learn", "digits", "training the embedded digits model again"),
)
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Extra:
    """An optional package."""

    package: str
    version: str | None  # None where it is not installed
    install: str
    brings: str


@dataclass(frozen=True)
class Device:
    """A place where a model can run."""

    name: str  # as --device takes it
    description: str
    memory: int | None  # bytes; None where it cannot be told


@dataclass(frozen=True)
class Choice:
    """What avarc uses unless an option says otherwise, and why."""

    what: str
    picked: str
    why: str


def versions() -> dict[str, str]:
    """Versions that a number may depend on: avarc, python and the packages that compute or read."""
    installed = {name: _version(name) for name in PACKAGES}
    known = {name: version for name, version in installed.items() if version is not None}
    return {"avarc": __version__, "python": platform.python_version()} | known | {"torch": torch.__version__}


def machine() -> dict[str, str | int | None]:
    """The operating system, the processor, the cores this process may use, torch's threads, and memory in bytes."""
    return {
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory": memory(),
    }


def memory() -> int | None:
    """Bytes of memory this process may use: the machine's, or its container's if that is less; None if unknown."""
    names = getattr(os, "sysconf_names", {})  # not on Windows
    if "SC_PHYS_PAGES" not in names or "SC_PAGE_SIZE" not in names:
        return None
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    texts = [Path(name).read_text().strip() for name in _CGROUP_LIMITS if os.access(name, os.R_OK)]
    return min([total, *(int(text) for text in texts if text.isdecimal())])


def lacks_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out: allocators on the CPU and the CUDA libraries say so in words."""
    words = ("out of memory", "allocate memory", "ALLOC_FAILED")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(word in str(error) for word in words)


def devices() -> tuple[Device, ...]:
    """Every device a model can run on, the one picked by default first."""
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
    return (_device_choice(cuda), _attention_choice(cuda), _precision_choice(cuda), _kernel_choice())


def extras() -> tuple[Extra, ...]:
    """The optional packages, here or not."""
    return tuple(
        Extra(package, _version(package), f"pip install 'avarc[{extra}]'", brings) for package, extra, brings in _EXTRAS
    )


def _device_choice(cuda: bool) -> Choice:
    if cuda:
        return Choice("device", "cuda:0", f"torch {torch.__version__} sees {torch.cuda.device_count()} CUDA device(s)")
    built = torch.version.cuda
    why = f"torch {torch.__version__} " + (
        f"was built for CUDA {built}, but finds no usable GPU or driver" if built else "was built without CUDA"
    )
    return Choice("device", "cpu", why)


def _attention_choice(cuda: bool) -> Choice:
    why = "scale by scale no mask is needed, so the fastest kernel for the shape and precision applies"
    if cuda:
        enabled = {
            "flash": torch.backends.cuda.flash_sdp_enabled(),
            "cuDNN": torch.backends.cuda.cudnn_sdp_enabled(),
            "memory-efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
            "math": torch.backends.cuda.math_sdp_enabled(),
        }
        why += f"; enabled are {', '.join(name for name, on in enabled.items() if on)}"
    return Choice("attention", "torch scaled_dot_product_attention", why)


def _precision_choice(cuda: bool) -> Choice:
    if not cuda:
        return Choice("precision", "fp32", "the reference's own; --precision bf16 also runs on a CPU, seldom faster")
    half = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return Choice("precision", "fp32", f"the reference's own; this GPU is faster with --precision {half} or tf32")


def _kernel_choice() -> Choice:
    return Choice("kernels", "torch", "this version has no kernels of its own beside the definitions in torch")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return named[1] if named else platform.processor() or platform.machine()
