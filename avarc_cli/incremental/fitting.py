"""Fits of many classes by other processes: one class is one chunk of work, since no fit depends on another.

Shapes: N images, S samples, L tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from avarc_cli.added_classes import AddedClass, base_of
from avarc_cli.errors import Interrupted
from avarc_cli.incremental.closest import closest_classes
from avarc_cli.incremental.examples import Examples
from avarc_cli.incremental.fit import FitOptions, Fitted, fit_class
from avarc_cli.loaded import LoadedModel
from avarc_cli.progress import Notify, Progress, no_message
from avarc_cli.storage import remove_leftovers_of
from avarc_cli.trainable import TrainableModel
from avarc_cli.words import are, counted
from avarc_cli.work.chunks import ChunkFolder, Chunks, TaskLoader, Tick, recorded_request
from avarc_cli.work.run import compute, recompute_corrupt
from avarc_cli.work.workers import Workers

TENSOR = "tensor "  # what the arrays of an added class's tensors begin with


@dataclass(frozen=True, eq=False)
class FittedArrays:
    """A `Fitted` without torch, which processes exchange."""

    tensors: Mapping[str, np.ndarray]
    """`AddedClass.tensors`."""
    validation: np.ndarray
    """As in `Fitted`."""
    numbers: Mapping[str, float]
    """The others of its fields, and `scale`, that of the class."""

    @classmethod
    def of(cls, fitted: Fitted) -> FittedArrays:
        """A fit as arrays."""
        tensors = {key: tensor.cpu().numpy() for key, tensor in fitted.added.tensors().items()}
        bits = {"bits_before": fitted.bits_before, "bits_after": fitted.bits_after}
        counts = {"closest": fitted.closest, "steps": fitted.steps, "scale": fitted.added.scale}
        return cls(tensors, fitted.validation, bits | counts)

    def on(self, base: TrainableModel, name: str) -> Fitted:
        """The fit for this base. Raises: CheckpointError when it does not fit."""
        numbers, tensors = self.numbers, {key: torch.from_numpy(array) for key, array in self.tensors.items()}
        return Fitted(
            added=AddedClass.from_tensors(base, tensors, numbers["scale"], f"the fit of '{name}'"),
            closest=int(numbers["closest"]),
            steps=int(numbers["steps"]),
            bits_before=numbers["bits_before"],
            bits_after=numbers["bits_after"],
            validation=self.validation,
        )


@dataclass(frozen=True)
class ClassFitter:
    """Fits classes (`work.chunks.ChunkTask`). The items of a chunk are the steps of one class, counted over all."""

    model: LoadedModel
    """Without a bank."""
    images: Mapping[int, npt.NDArray[np.uint16]]
    """Number of a class -> its images, as in a token cache (N, S, L)."""
    options: FitOptions

    @property
    def uses_gpu(self) -> bool:
        """Whether the model is on a GPU."""
        return torch.device(self.model.device).type == "cuda"

    def loader(self) -> TaskLoader[FittedArrays]:
        """Makes this task in another process, with a model of its own."""
        return partial(_on_device, self.model.loader(), self.images, self.options)

    def run(self, chunks: Mapping[int, range], tick: Tick) -> Iterator[tuple[int, FittedArrays]]:
        """Number and result of each of these chunks. Raises: as `fit_class`."""
        for number, items in chunks.items():
            done = 0

            def report(steps: int, values: Mapping[str, float]) -> None:
                nonlocal done
                tick(steps - done)
                done = steps

            yield number, self._fit(self.images[items.start // self.options.recipe().steps], report)
            tick(len(items) - done)  # of a fit that ended early

    def _fit(self, images: npt.NDArray[np.uint16], report: Callable[[int, dict[str, float]], None]) -> FittedArrays:
        base, device = base_of(self.model.likelihood), torch.device(self.model.device)
        tokens_NSL = torch.from_numpy(images.astype(np.int64))
        examples = Examples(tokens_NSL, np.zeros(len(images), dtype=np.int64), ("",))
        [closest] = closest_classes(base, tokens_NSL[:, 0], range(base.num_classes), 1, device=device)
        return FittedArrays.of(fit_class(base, examples, closest, self.options, report))


def _on_device(
    load: Callable[[str], LoadedModel],
    images: Mapping[int, npt.NDArray[np.uint16]],
    options: FitOptions,
    device: str,
) -> ClassFitter:
    return ClassFitter(load(device), images, options)


class _FitFormat:
    """The files of chunks (`work.chunks.ChunkFormat`)."""

    def to_arrays(self, result: FittedArrays) -> dict[str, np.ndarray]:
        numbers = {name: np.array(value) for name, value in result.numbers.items()}
        tensors = {f"{TENSOR}{key}": array for key, array in result.tensors.items()}
        return {"validation": result.validation, **numbers, **tensors}

    def from_arrays(self, items: range, arrays: Mapping[str, np.ndarray]) -> FittedArrays:
        names = ("closest", "steps", "scale", "bits_before", "bits_after")
        tensors = {key.removeprefix(TENSOR): arrays[key] for key in arrays if key.startswith(TENSOR)}
        return FittedArrays(tensors, arrays["validation"], {name: arrays[name].item() for name in names})


def fit_elsewhere(
    model: LoadedModel,
    folder: Path,
    examples: Mapping[str, Examples],
    options: FitOptions,
    workers: Workers,
    *,
    progress: Progress,
    say: Notify = no_message,
) -> Iterator[Fitted]:
    """Fit each class to its images.

    Args:
        model: without a bank.
        folder: keeps finished fits; the caller, who alone may use it, deletes it (`work.chunks.delete`). A later call
            with some of the same classes continues.
        progress: called with steps.
        say: called when a worker fails.
    Returns: the fits in order.
    Raises: Interrupted on Ctrl-C; AvarcError as `work.run.compute`.
    """
    classes = [[name, _digest(images)] for name, images in examples.items()]
    about = {"model": model.as_base().sha256, "options": asdict(options)}
    remove_leftovers_of(folder)
    there = recorded_request(folder) or {}
    known = there.get("classes", []) if {**there, "classes": None} == {**about, "classes": None} else []
    goes_on = all(one in known for one in classes)
    numbering = known if goes_on else classes
    numbers = [numbering.index(one) for one in classes]
    steps = options.recipe().steps
    parts = ChunkFolder(folder, Chunks(steps * len(numbering), steps), _FitFormat())
    if not goes_on:
        parts.create({**about, "classes": classes})
    images = {n: each.tokens.numpy().astype(np.uint16) for n, each in zip(numbers, examples.values(), strict=True)}
    fitter = ClassFitter(model, images, options)
    try:
        missing = set(numbers) - parts.finished()
        compute(parts, fitter, missing, of=numbers, workers=workers, progress=progress, say=say)
        recompute_corrupt(parts, fitter, numbers, workers=workers, progress=progress, say=say)
    except KeyboardInterrupt:
        done = len(set(numbers) & parts.finished())
        what = f"interrupted; the fits of {done:,} of {counted(len(numbers), 'class')} {are(done)} kept in '{folder}'"
        raise Interrupted(what, fix="run the same command again to continue") from None
    base = base_of(model.likelihood)
    return (fitted.on(base, name) for name, fitted in zip(examples, parts.stream(numbers), strict=True))


def _digest(images: Examples) -> str:
    tokens = images.tokens.numpy().astype("<u2")
    return hashlib.sha256(json.dumps(tokens.shape).encode() + tokens.tobytes()).hexdigest()
