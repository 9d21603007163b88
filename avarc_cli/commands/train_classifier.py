"""avarc train classifier: from one folder of photos to one folder with a classifier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avarc_cli import console
from avarc_cli.commands import _completion as complete
from avarc_cli.commands import _dry_run, _images
from avarc_cli.commands import _options as opt
from avarc_cli.commands import _training as common
from avarc_cli.errors import EXIT_UNREADABLE, shorten_list
from avarc_cli.settings import check_device
from avarc_cli.words import counted

if TYPE_CHECKING:
    from avarc_cli.own_model.decisions import Decisions
    from avarc_cli.own_model.make import Task
    from avarc_cli.own_model.survey import Survey


def classifier(
    data: opt.DataArg,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write, for --model; OUT.training resumes.")],
    time: Annotated[float, opt.training_option("--time", help="Minutes that training may take.")] = 15.0,
    hold_out: Annotated[
        float, opt.training_option("--hold-out", help="Fraction of the images to measure on, of each class.")
    ] = 0.1,
    image_size: Annotated[
        int | None, opt.training_option("--image-size", min=4, help="Side of the images in pixels. Default: chosen.")
    ] = None,
    augment: Annotated[
        str,
        opt.training_option(
            "--augment",
            help="auto, crop, affine (small objects) or none.",
            autocompletion=complete.one_of("auto", "crop", "affine", "none"),
        ),
    ] = "auto",
    flip: Annotated[bool, opt.training_option("--flip", help="Mirror half of the images.")] = False,
    seed: opt.SeedOpt = 0,
    device: opt.DeviceOpt = "auto",
    allow_outside: opt.AllowOutsideOpt = False,
    overwrite: opt.OverwriteOpt = False,
    dry_run: _dry_run.DryRunOpt = False,
    as_json: opt.JsonOpt = False,
) -> None:
    """Train a classifier on a folder with one sub-folder a class, in the time you give, and measure how good it is.

    Looks at the images, chooses sizes for this machine, says what it will do, trains a tokenizer and a generator, tunes
    a plan, and writes all of it with a model card into one folder.

    Example: avarc train classifier photos/ --out mine/
    """
    from avarc_cli.own_model import folder
    from avarc_cli.own_model.request import Request

    request = Request(minutes=time, hold_out=hold_out, image_size=image_size, augment=augment, flip=flip, seed=seed)
    check_device(device)
    folder.check_out(out, overwrite=overwrite)
    with nullcontext() if dry_run else folder.reserved(out, overwrite=overwrite):
        survey = _survey(data, allow_outside)
        from avarc_cli.own_model import make  # imports torch: only now, after all that may be wrong

        task = make.Task.of(survey, request, out, device)
        decisions, is_continued = task.choose()
        _announce(task, decisions, is_continued=is_continued, dry_run=dry_run)
        if dry_run:
            return
        facts = make.make(task, decisions, training_bar=_training_bar, bar=console.progress, say=console.warn)
        _show(out, facts)
    if survey.unreadable:
        raise typer.Exit(EXIT_UNREADABLE)


def _survey(data: list[Path], allow_outside: bool) -> Survey:
    """Look at all images; says what is left out, and which classes are small."""
    from avarc_cli.own_model.survey import survey

    images = _images.open_noted(data, allow_outside=allow_outside)
    with console.progress("looking at the images", len(images)) as bar:
        found = survey(images, bar.update)
    _images.list_unreadable(found.unreadable)
    return found


@contextmanager
def _training_bar(description: str, steps: int) -> Iterator[Any]:
    with common.progress(description, steps) as report:
        yield report


def _announce(task: Task, decisions: Decisions, *, is_continued: bool, dry_run: bool) -> None:
    """Say what will be done; with `dry_run`, as the result."""
    survey, sizes, held = task.survey, decisions.sizes, 0 if task.held_out is None else len(task.held_out)
    smallest = min(survey.counts, key=lambda name: survey.counts[name])
    shown = {
        "images": f"{len(survey.images):,} of {counted(len(survey.counts), 'class')}, from {survey.counts[smallest]:,} "
        f"('{smallest}') to {max(survey.counts.values()):,} each; {'gray' if survey.is_gray else 'in colour'}, "
        f"about {survey.edge} pixels",
        "held out": f"{counted(held, 'image')}, to measure on" if held else "no image: the classes have too few",
        "read at": f"{sizes.image_size} x {sizes.image_size} pixels, {sizes.grid**2} tokens; changed at random: "
        f"{decisions.augment}{' and mirrored' if task.request.flip else ''}",
        "tokenizer": f"{sizes.tokenizer['vocab_size']} codes, width {sizes.tokenizer['ch']}; "
        f"{counted(decisions.tokenizer_steps, 'step')} of {counted(sizes.tokenizer_batch, 'image')}",
        "generator": f"depth {sizes.generator['depth']}, width {sizes.generator['width']}; "
        f"{counted(decisions.generator_steps, 'step')} of {counted(sizes.generator_batch, 'image')}",
        "training takes": f"about {console.duration(decisions.seconds)} on {task.device}, "
        "by a few steps that were measured",
    }
    if is_continued:
        shown["continued"] = "as the interrupted training began"
    if dry_run:
        data = {"decisions": decisions.to_dict(), "training_images": len(task.training), "held_out_images": held}
        console.result(data, console.fields("", shown), brief=str(round(decisions.seconds)))
    else:
        for name, value in shown.items():
            console.note(f"{name}: {value}")
    if few := [name for name, count in survey.counts.items() if count == 1]:
        verb = "has" if len(few) == 1 else "have"
        console.warn(
            f"{shorten_list(few)} {verb} one image: it is trained on, and how well it is recognized is unknown"
        )
    if decisions.is_short:
        console.warn("the time is too short for a good model: give it more with --time")


def _show(out: Path, facts: Mapping[str, Any]) -> None:
    from avarc_cli.own_model.card import accuracy_text

    held_out = facts["held_out"]
    shown = {"accuracy": "unknown: no image was held out" if held_out is None else accuracy_text(held_out)}
    if held_out and held_out["confused"]:
        worst = held_out["confused"][0]
        times = counted(worst["images"], "time")
        shown["most confused"] = f"'{worst['is']}' taken for '{worst['taken_for']}', {times}"
    if facts["tuned"]:
        shown["plan"] = f"{facts['tuned']['share_of_exhaustive']:.0%} of the tokens with --plan auto"
    parts = [console.fields("on images that it was not trained on", shown)]
    parts.append(console.path_and(out, "for --model; README.md in it says more"))
    console.result({**facts, "out": out}, console.stack(*parts), brief=str(out))
