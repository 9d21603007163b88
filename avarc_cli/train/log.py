"""What a training writes down as it goes: numbers and pictures, to files and to the trackers that are installed."""

from __future__ import annotations

import json
import math
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from avarc_cli.errors import UsageError
from avarc_cli.names import to_json
from avarc_cli.storage import replacing, write_bytes

METRICS = "metrics.jsonl"


class Writer(Protocol):
    """Where numbers and pictures go."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers after `step` steps."""
        ...

    def picture(self, step: int, pixels_HW3: np.ndarray) -> None:
        """A picture (H, W, 3), uint8, after `step` steps."""
        ...

    def close(self) -> None:
        """Write what is not written yet."""
        ...


class Folder:
    """A folder with metrics.jsonl, one line for each report, and pictures/STEP.png."""

    def __init__(self, folder: Path, training: str, start: int) -> None:
        """Continue the log of a training after `start` steps: what was reported later is dropped.

        Args:
            training: a digest that tells one training from another.
        Raises: UsageError when there is the log of another training.
        """
        self.folder, self.path = folder, folder / METRICS
        folder.mkdir(exist_ok=True)
        header = to_json({"training": training})
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        if lines and lines[0] != header:
            raise UsageError(f"'{self.path}' is the log of another training", fix="name another folder with --log-to")
        kept = [line for line in lines[1:] if _step_of(line) <= start]
        write_bytes(self.path, "".join(f"{line}\n" for line in [header, *kept]).encode())
        self._file = self.path.open("a", encoding="utf-8")

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self._file.write(to_json({"step": step, **values}) + "\n")
        self._file.flush()

    def picture(self, step: int, pixels_HW3: np.ndarray) -> None:
        pictures = self.folder / "pictures"
        pictures.mkdir(exist_ok=True)
        with replacing(pictures / f"{step:08}.png") as temporary:
            Image.fromarray(pixels_HW3).save(temporary, format="png")

    def close(self) -> None:
        self._file.close()


def _step_of(line: str) -> float:
    """The step of a line; of one that was cut off, infinity."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


class TensorBoard:
    """Event files of TensorBoard."""

    def __init__(self, folder: Path, start: int) -> None:
        """Raises: UsageError where it is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise missing("tensorboard") from None
        self._writer: Any = SummaryWriter(str(folder), purge_step=start + 1)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, pixels_HW3: np.ndarray) -> None:
        self._writer.add_image("pictures", pixels_HW3, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, which continues when the training does."""

    def __init__(self, project: str, training: str) -> None:
        """Raises: UsageError where it is not installed."""
        try:
            import wandb
        except ImportError:
            raise missing("wandb") from None
        self._wandb: Any = wandb
        self._run: Any = wandb.init(project=project, id=training, resume="allow")

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, step: int, pixels_HW3: np.ndarray) -> None:
        self._run.log({"pictures": self._wandb.Image(pixels_HW3)}, step=step)

    def close(self) -> None:
        self._run.finish()


def missing(package: str) -> UsageError:
    """The error for a tracker that is not installed."""
    return UsageError(f"{package} is not installed", fix=f"pip install {package}, or leave out --{package}")


class Means:
    """Means of numbers since the last report, and how fast the training goes."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}
        self._count, self._since = 0, time.monotonic()

    def add(self, values: Mapping[str, float]) -> None:
        """The numbers of a step; the mean of each is over the steps that have it. Overflows of fp16 are left out."""
        self._count += 1
        for name, value in values.items():
            if math.isfinite(value):
                self._values.setdefault(name, []).append(value)

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """What is done here does not count as training."""
        started = time.monotonic()
        yield
        self._since += time.monotonic() - started

    def take(self, batch_size: int, device: torch.device) -> dict[str, float]:
        """The means, images per second and bytes of memory; then the next report begins."""
        seconds = time.monotonic() - self._since
        means = {name: statistics.fmean(values) for name, values in self._values.items()}
        means["images_per_second"] = self._count * batch_size / max(seconds, 1e-9)
        means["memory_bytes"] = float(most_memory(device))
        self._values, self._count, self._since = {}, 0, time.monotonic()
        return means


def most_memory(device: torch.device) -> int:
    """The most bytes that were in use: of a GPU's memory, else by the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
