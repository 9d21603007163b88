"""avarc add-class: a class that the model does not know, learned from a few images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _examples
from avarc_cli.commands import _option_groups as groups
from avarc_cli.commands import _options as opt
from avarc_cli.commands._groups import with_option_groups
from avarc_cli.errors import EXIT_UNREADABLE
from avarc_cli.settings import check_exists
from avarc_cli.words import counted

if TYPE_CHECKING:
    from avarc_cli.incremental.adding import AddingResult


@with_option_groups
def add_class(
    context: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME] DATA...",
            help="The class's name and its images: a folder, files, a token cache, or a list (.txt: one path on each "
            "line). Without a name: a folder with one sub-folder a class, or a list of path<TAB>class lines.",
        ),
    ],
    *,
    bank: Annotated[Path, typer.Option("--bank", help="Folder of the added classes; created if it does not exist.")],
    offset: Annotated[
        bool, typer.Option("--offset/--no-offset", help="Fit an offset that makes old and new scores comparable.")
    ] = True,
    replace: Annotated[bool, typer.Option("--replace", help="Fit classes again that the bank has already.")] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Skip classes that the bank has: continue after a stop.")
    ] = False,
    work: groups.WorkersOptions,
    as_json: opt.JsonOpt = False,
    model: groups.NamedModelOptions,
    learning: _examples.LearningOptions,
) -> None:
    """Teach a model a new class from a few images.

    The scores of the classes it had do not change, bit for bit.

    Example: avarc add-class okapi photos/okapi --model var-d16 --bank animals
    """
    name, data = (words[0], words[1:]) if len(words) > 1 else (None, words)
    for word in data:
        check_exists(word, "DATA")
    _examples.check_options(context, [Path(word) for word in data])
    from avarc_cli.incremental.editing import Existing, check_names, open_or_new, read_if_any
    from avarc_cli.incremental.source import by_class
    from avarc_cli.known_classes import seems_made_for

    existing = Existing(replace=replace, skip=skip_existing)
    there = read_if_any(bank)
    source = _examples.open_source([Path(word) for word in data], allow_outside=learning.allow_outside)
    rows = by_class(source, name, data[0])
    if there is None or seems_made_for(there, model.model):
        check_names(list(rows), model.known_classes(), there, existing)
    spec = work.place(context, model).fetch()
    from avarc_cli.incremental import adding  # imports torch: only now, after all that may be wrong
    from avarc_cli.incremental.fit import few_images
    from avarc_cli.loading import load_model

    options, variation = learning.fit(), learning.variation()
    loaded = load_model(spec, unbound=True)  # which `adding` refuses, with the reason
    opt.note_inferred(loaded)
    names = check_names(list(rows), loaded.classes, open_or_new(bank, loaded.as_base()), existing)
    examples = _examples.encode(source, {n: rows[n] for n in names}, loaded.tokenizer, variation)
    for name in names:
        if few := few_images(name, len(examples[name])):
            console.warn(few)
    added = adding.add_classes(
        loaded,
        bank,
        examples,
        options,
        fit_offset=offset,
        existing=existing,
        progress_of=_examples.progress,
        searching=_examples.searching,
        workers=work.workers,
        say=console.warn,
    )
    unreadable = _examples.unreadable_of(examples.values())
    _show(list(added), bank, unreadable)
    if unreadable:
        raise typer.Exit(EXIT_UNREADABLE)


def _show(outcomes: list[AddingResult], bank: Path, unreadable: list[tuple[str, str]]) -> None:
    from avarc_cli.incremental.fit import MIN_TO_VALIDATE

    columns = ["class", "images", "started from", "steps", "bits/token", "offset (nats)", "old right", "new right"]
    rows, data = [], []
    for o in outcomes:
        c = o.calibration
        shown = ("", "") if c is None else tuple(f"{a:.1%} to {b:.1%}" for a, b in (c.old, c.new))
        bits = f"{o.fitted.bits_before:.3f} to {o.fitted.bits_after:.3f}"
        rows.append([o.name, o.images, o.started_from, o.fitted.steps, bits, f"{o.offset:+.2f}", *shown])
        data.append(
            {
                "class": o.name,
                "images": o.images,
                "started_from": o.started_from,
                "steps": o.fitted.steps,
                "bits_per_token": [o.fitted.bits_before, o.fitted.bits_after],
                "offset": o.offset,
                "old_right": c and list(c.old),
                "new_right": c and list(c.new),
            }
        )
    legend = (
        "Bits per token: of held-out images, under the class it started from, then under the new one. Right: without "
        "and with the offset, of images drawn of old classes and of held-out images of the new one."
    )
    if any(o.images < MIN_TO_VALIDATE for o in outcomes):
        legend += f" With fewer than {MIN_TO_VALIDATE} images none is held out: these are then those of the training."
    result = {"bank": bank, "added": data, "unreadable": dict(unreadable)}
    human = console.stack(console.table(f"{counted(len(rows), 'class')} added to {bank}", columns, rows), legend)
    console.result(result, human, brief=[(o.name,) for o in outcomes])
