"""How a classification run is announced and summarized on the console."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avarc_cli import console
from avarc_cli.commands import _images, _predictions
from avarc_cli.errors import UsageError, describe_differences
from avarc_cli.words import counted

if TYPE_CHECKING:
    from avarc_cli.cache_classifier import CacheClassifier
    from avarc_cli.results.folder import RunFolder
    from avarc_cli.results.run import Run, RunResult


def is_cache(data: Sequence[Path]) -> bool:
    """Whether the inputs are one token cache."""
    if len(data) != 1 or not data[0].is_file():
        return len(data) == 1 and data[0].suffix in {".h5", ".hdf5"}
    with data[0].open("rb") as file:
        return file.read(4) == b"\x89HDF" or data[0].suffix in {".h5", ".hdf5"}


def check_request(data: Sequence[Path], out: Path | None, saves: bool, *, images_only: Sequence[Any]) -> None:
    """Raises UsageError for options that do not go together."""
    if saves and out is None:
        raise UsageError(
            "nowhere to save to", "--save-json and --save-likelihood write into the run folder", "add --out"
        )
    if len(data) > 1 and any(is_cache([path]) for path in data):
        raise UsageError(
            "token caches are classified one at a time", f"there are {len(data)} inputs", "join them: avarc cache merge"
        )
    if is_cache(data) and any(value is not None for value in images_only):
        raise UsageError(
            f"'{data[0]}' is encoded already",
            "--dataset, --subset, --per-class, --workers, --preprocess, --flip and --ten-crop say how to read images, "
            "and a cache holds tokens",
            "use them with avarc encode; --classes chooses candidates",
        )


def check_same_plan(folder: RunFolder, plan: str) -> None:
    """Raises UsageError when the folder's run has another plan: its tokens may lack the samples for this one."""
    earlier = folder.recorded("plan")
    if earlier not in (None, plan):
        differences = describe_differences({"plan": earlier}, {"plan": plan})
        fix = "name another --out, or replace the run with --overwrite"
        raise UsageError(f"'{folder.path}' holds another run", differences, fix)


def announce(classifier: CacheClassifier, run: Run) -> None:
    """The plan in one line, and what may surprise the user about memory, candidates and labels."""
    import torch

    from avarc_cli.data.labels import human_name
    from avarc_cli.layers.precision import low_precision, missing
    from avarc_cli.scoring.batching import estimate

    device, precision = classifier.model.device, classifier.model.precision
    cost = estimate(run.model, run.request, len(run.cache), torch.device(device), precision)
    where = f"{precision} on {device}"
    images, classes = counted(len(run.cache), "image"), counted(len(run.request.candidates), "class")
    console.note(f"{images} x {classes}, {where}: {cost}")
    if run.cascade is not None:
        console.note(f"{run.cascade.cheap} decides where it is sure, {run.cascade.exact} elsewhere (docs/cascade.md)")
        if run.cascade.cheap == "int8" and device == "cpu":
            cpu = torch.device(device)
            suits = low_precision(cpu)
            fix = f"int16 would suit, but {missing('int16', cpu)}" if suits == "int8" else f"use {suits}+fp32"
            console.warn(f"int8 rounds so coarsely that a cascade may take longer than fp32: {fix}")
    if run.model.any_order:
        console.note(f"tokens are scored in {run.orders.describe(run.request.plan.orders, run.request.combine)}")
    if run.model.steps is not None:
        console.note(f"log p(x | class) is {run.protocol['likelihood']}")
    limit = run.request.max_cached_tokens
    if limit is not None and run.request.cached_tokens(run.model) > limit:
        console.warn("--memory is too small for the KV cache of an image's candidates: some tokens are scored again")
    if classifier.candidates_of:
        console.note(f"candidates: {classes} of {classifier.candidates_of}; --classes all for every class")
    named = run.cache.header.class_names
    _images.note_numbers(named, classifier.model.classes)
    unmatched = run.cache.labels[(run.cache.labels >= 0) & (run.labels < 0)].tolist()
    if named and unmatched:
        of = f"{len(unmatched):,} of {images}"
        shown = ", ".join(human_name(named[k]) for k in sorted(set(unmatched))[:3])
        console.warn(
            f"the labels of {of} are not used: their classes (like {shown}) are not among the model's "
            f"({classifier.model.classes.name}); --class-names can name those"
        )


def show(
    run: Run, result: RunResult, unreadable: list[tuple[str, str]], *, out: Path | None, results_file: Path | None
) -> None:
    """The result, also as `results_file`: the predictions of a few images, or those of many by class, and numbers."""
    from avarc_cli.results.prediction_files import document, write

    def all_of_it() -> dict[str, Any]:
        return document(run.protocol, result.metrics, result.records, unreadable=unreadable, out=out)

    if results_file is not None:
        write(results_file, all_of_it())
    few = len(run.cache) <= _predictions.FEW
    length = run.model.segment_ends[-1]
    parts: list[Any] = [_predictions.table(result.records, length) if few else _predictions.by_class(result.records)]
    if not few or result.metrics["labelled"]:
        parts.append(console.fields("", numbers(result.metrics)))
    if out:
        parts.append(console.path_and(out, "predictions.csv, predictions.jsonl, metrics.json, run.json"))
    if results_file is not None:
        parts.append(console.path_and(results_file, counted(len(run.cache), "prediction")))
    brief = ((record["path"], record["prediction_id"]) for record in result.records)
    console.result(all_of_it(), console.stack(*parts), brief=brief)


def numbers(metrics: dict[str, Any]) -> dict[str, str]:
    """metrics.json for people."""
    shown = {}
    if metrics["labelled"]:
        low, high = metrics["accuracy_95"]
        shown["accuracy"] = (
            f"{metrics['accuracy']:.2%} ({metrics['correct']} of {metrics['labelled']}; "
            f"95 % interval {low:.1%} to {high:.1%})"
        )
        shown |= {f"top-{k}": f"{value:.2%}" for k, value in metrics["top_k"].items() if k != "1"}
    if metrics["label_not_a_candidate"]:
        shown["not counted"] = f"{counted(metrics['label_not_a_candidate'], 'image')} of a class that is no candidate"
    if "orders" in metrics:
        shown["orders"] = f"{metrics['orders']}, combined by {metrics['combine']}"
    if "likelihood" in metrics:
        shown["log p(x | class)"] = metrics["likelihood"]
    shown["likelihood"] = f"{metrics['bits_per_token']:.3f} bits per token"
    seconds = metrics["seconds_per_image"]
    shown["speed"] = f"{1 / seconds:.1f} images/s" if seconds and seconds < 1 else f"{seconds or 0:.1f} s per image"
    shown["tokens scored"] = f"{metrics['tokens_scored_per_image']:,.0f} per image"
    shown["near-ties"] = str(metrics["near_ties"])
    if "cascade" in metrics:
        cascade = metrics["cascade"]
        shown["decided in fp32"] = f"{counted(cascade['decided_in_exact'], 'image')}, " + (
            f"{cascade['survivors_checked']} of them in earlier stages too"
        )
    if "expected_calibration_error" in metrics:
        error = f"{metrics['expected_calibration_error']:.4f}"
        shown["calibration error"] = f"{error} at temperature {metrics.get('temperature', 1.0):.3f}"
    return shown
