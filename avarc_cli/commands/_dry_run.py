"""--dry-run: what a command would do, take and write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avarc_cli import console
from avarc_cli.words import counted

if TYPE_CHECKING:
    from avarc_cli.cache_classifier import CacheClassifier
    from avarc_cli.forecast import EncodingForecast, ScoringForecast

DryRunOpt = Annotated[
    bool, typer.Option("--dry-run", help="Print what this would score, take and write; write nothing.")
]
Files = dict[Path, int | None]
"""Path -> bytes, None where that depends on the results; of a folder, of all its files."""


def run_files(
    out: Path | None, scoring: ScoringForecast, length: int, *, save_json: bool, save_likelihood: bool
) -> Files:
    """What a run of images with this many tokens writes."""
    if out is None:
        return {}
    own = ["run.json", "predictions.jsonl", "predictions.csv", "metrics.json", *(["json"] if save_json else [])]
    files: Files = {out / name: None for name in own}
    if save_likelihood:  # a plan of several stages saves the candidates of the last one only
        files[out / "likelihood"] = None if "," in scoring.plan else 4 * scoring.pairs * length
    return files


def show(
    files: Files,
    *,
    encoding: EncodingForecast | None = None,
    scoring: ScoringForecast | None = None,
    classifier: CacheClassifier | None = None,
) -> None:
    """Print a forecast."""
    data: dict[str, Any] = {"files": {str(path): size for path, size in files.items()}}
    shown: dict[str, str] = {}
    if encoding is not None:
        header = encoding.header
        data["encoding"] = {
            "images": encoding.images,
            "samples": header.samples,
            "tokens_per_sample": header.layout.num_tokens,
            "seconds": encoding.seconds,
            "measured_on_images": encoding.tried,
        }
        views = f"{header.samples} x " if header.samples > 1 else ""
        shown["encoding"] = (
            f"{counted(encoding.images, 'image')} to {views}{counted(header.layout.num_tokens, 'token')}"
        )
        shown["encoding takes"] = (
            f"about {console.duration(encoding.seconds)}, measured on {counted(encoding.tried, 'image')}"
        )
    if scoring is not None:
        data["scoring"] = scoring
        shown["plan"] = scoring.plan
        shown["pairs"] = f"{scoring.pairs:,}, {counted(scoring.images, 'image')} x {counted(scoring.classes, 'class')}"
        shown["tokens scored"] = f"{scoring.tokens:,}"
        shown["scoring takes"] = (
            f"about {console.duration(scoring.seconds)}, by the model's arithmetic and this machine's matrix products"
        )
        if scoring.drawn:
            shown["before"] = f"{counted(scoring.drawn, 'image')} drawn for a first cut, not included here"
        shown["memory"] = f"about {scoring.memory >> 20:,} MiB, and {scoring.weights >> 20:,} MiB of weights"
    if classifier is not None:
        model = classifier.model
        data["model"] = {"name": model.name, "precision": model.precision, "device": str(model.device)}
        shown["model"] = f"{model.name}, {model.precision} on {model.device}"
    rows = [[str(path), "" if size is None else _size(size)] for path, size in files.items()]
    listed = console.table("It would write", ["file", "size"], rows) if rows else "It would write no file."
    console.result(data, console.stack(console.fields("", shown), listed), brief=[[path] for path in files])


def _size(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB" if size >= 1 << 20 else f"{size / 2**10:,.1f} KiB"
