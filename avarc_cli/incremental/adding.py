"""Adding classes to a model, one after the other: fit, calibrate against the old ones, store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from avarc_cli import __version__
from avarc_cli.added_classes import AddedClassesModel, base_of
from avarc_cli.data.labels import normalize
from avarc_cli.incremental.closest import closest_classes
from avarc_cli.incremental.editing import Existing, NewClass, clean, open_or_new, store
from avarc_cli.incremental.examples import Examples
from avarc_cli.incremental.fit import MIN_TO_VALIDATE, FitOptions, Fitted, fit_class
from avarc_cli.incremental.fitting import fit_elsewhere
from avarc_cli.incremental.offsets import Calibration, calibrate
from avarc_cli.loaded import LoadedModel
from avarc_cli.loading import with_bank
from avarc_cli.progress import MetricsProgress, Notify, Progress, StartProgress, no_message, silent
from avarc_cli.settings import check_one_precision
from avarc_cli.storage import beside
from avarc_cli.words import counted
from avarc_cli.work import chunks
from avarc_cli.work.locks import only_writer
from avarc_cli.work.workers import HERE, Workers

ProgressOf = Callable[
    [str, int], AbstractContextManager[MetricsProgress]
]  # (class, steps) -> the progress of its training


@dataclass(frozen=True)
class AddingResult:
    """One class that was added."""

    name: str  # of the class
    images: int  # that it was fitted to, those held out included
    started_from: str  # name of the class that its fit started from
    fitted: Fitted  # the result of the fit
    calibration: Calibration | None  # None where no offset was fitted

    @property
    def offset(self) -> float:
        """Nats added to its score; 0 where none was fitted."""
        return self.calibration.offset if self.calibration else 0.0


def add_classes(
    model: LoadedModel,
    path: Path,
    examples: Mapping[str, Examples],
    options: FitOptions,
    *,
    fit_offset: bool,
    existing: Existing,
    progress_of: ProgressOf,
    searching: StartProgress = silent,
    workers: Workers = HERE,
    say: Notify = no_message,
) -> Iterator[AddingResult]:
    """Fit each class to its images, and store one after the other in the bank at `path`.

    Args:
        model: without a bank.
        examples: class name -> its images; names as `check_names` gave them.
        searching: shows the search for the classes that are closest to the new one, in pairs of image and class.
        fit_offset: also fit an offset that makes the scores of old and new classes comparable.
        workers: who fits the classes. Others than this process fit all of them before the first one is stored;
            meanwhile, finished fits are kept in the folder `BANK.fits`. Offsets are fitted by this process.
        say: called when a worker fails.
    Raises: UsageError for what cannot be added; AvarcError when a training diverges or the bank cannot be written, or
        another process keeps fits for the same bank.
    """
    check_one_precision(model.precision, "adding classes")
    clean(path)
    with _fits(model, path, examples, options, progress_of, searching, workers, say) as fits:
        for (name, images), fitted in zip(examples.items(), fits, strict=True):
            bank = open_or_new(path, model.as_base())
            others = tuple(a for a in bank.additions if normalize(a.name) != normalize(name))
            present = with_bank(model, replace(bank, additions=others))
            calibration = None
            if fit_offset:
                with searching(f"comparing {name} with all other classes", None) as bar:
                    calibration = _calibrate(present, images, fitted, options, bar.update)
            result = AddingResult(name, len(images), model.classes.names[fitted.closest], fitted, calibration)
            store(path, model.as_base(), [_new_class(result, options)], replacing=existing.replace)
            yield result


@contextmanager
def _fits(
    model: LoadedModel,
    path: Path,
    examples: Mapping[str, Examples],
    options: FitOptions,
    progress_of: ProgressOf,
    searching: StartProgress,
    workers: Workers,
    say: Notify,
) -> Iterator[Iterator[Fitted]]:
    """The fits of the classes, in order. What other processes keep of them is deleted after the block."""
    if not workers.elsewhere or not examples:
        yield _fit_here(model, examples, options, progress_of, searching)
        return
    folder = beside(path, ".fits")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(folder):
        with progress_of(counted(len(examples), "class"), options.recipe().steps * len(examples)) as report:

            def progress(done: int, total: int | None = None, note: str = "", /) -> None:
                report(done, {})

            fits = fit_elsewhere(model, folder, examples, options, workers, progress=progress, say=say)
        yield fits
        chunks.delete(folder)


def _fit_here(
    model: LoadedModel,
    examples: Mapping[str, Examples],
    options: FitOptions,
    progress_of: ProgressOf,
    searching: StartProgress,
) -> Iterator[Fitted]:
    base, device = base_of(model.likelihood), torch.device(model.device)
    for name, images in examples.items():
        with searching(f"comparing {name} with the model's classes", None) as bar:
            classes = range(base.num_classes)
            [closest] = closest_classes(base, images.tokens[:, 0], classes, 1, device=device, progress=bar.update)
        with progress_of(name, options.recipe().steps) as progress:
            fitted = fit_class(base, images, closest, options, progress)
        yield fitted


def _calibrate(
    present: LoadedModel, images: Examples, fitted: Fitted, options: FitOptions, progress: Progress
) -> Calibration:
    likelihood = present.likelihood
    earlier = likelihood.added if isinstance(likelihood, AddedClassesModel) else ()
    extended = AddedClassesModel(base_of(likelihood), [*earlier, fitted.added])
    validation_NL = images.tokens[torch.from_numpy(fitted.validation), 0]
    device = torch.device(present.device)
    return calibrate(extended, present.offsets, validation_NL, seed=options.seed, device=device, progress=progress)


def _new_class(result: AddingResult, options: FitOptions) -> NewClass:
    fitted = result.fitted
    facts = {
        "images": result.images,
        "held out": 0 if result.images < MIN_TO_VALIDATE else len(fitted.validation),
        "started from": result.started_from,
        "steps": fitted.steps,
        "bits per token before": round(fitted.bits_before, 4),
        "bits per token after": round(fitted.bits_after, 4),
        "parameters": sum(p.numel() for p in fitted.added.parameters()),
        "seed": options.seed,
        "avarc": __version__,
    }
    return NewClass(name=result.name, added=fitted.added, method=options.method, offset=result.offset, facts=facts)
