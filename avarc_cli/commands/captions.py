"""avarc captions: the features of captions, made by a text encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _completion as complete
from avarc_cli.commands import _options as opt
from avarc_cli.commands import _weights
from avarc_cli.commands._groups import Command, Group
from avarc_cli.settings import check_device
from avarc_cli.words import counted

app = typer.Typer(
    cls=Group,
    help="Encode captions for models of captions.\n\nExample: avarc captions encode birds.txt --encoder flan-t5-xl "
    "--out birds.safetensors",
    no_args_is_help=True,
)


@app.command(cls=Command)
def encode(
    file: Annotated[
        Path, typer.Argument(help="Captions: .txt with one a line, or .json, .csv with names. With --template: names.")
    ],
    encoder: Annotated[
        str,
        typer.Option(
            "--encoder",
            help="A text encoder (avarc models), or a folder with one.",
            autocompletion=complete.text_encoders,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The features to write, .safetensors.")],
    templates: Annotated[
        list[str] | None,
        typer.Option("--template", help='The lines of FILE are names for this text: "a photo of a {}". Repeatable.'),
    ] = None,
    overwrite: opt.OverwriteOpt = False,
    device: opt.DeviceOpt = "auto",
    yes: opt.YesOpt = False,
    as_json: opt.JsonOpt = False,
) -> None:
    """Encode captions once, for classify --captions on this machine or another, which then needs no text encoder.

    The features of the empty caption, for p(x), are written as well.

    Example: avarc captions encode birds.txt --encoder flan-t5-xl --out birds.safetensors
    """
    from avarc_cli import outputs
    from avarc_cli.text.captions import check_encoder, read_texts

    check_device(device)
    check_encoder(encoder)
    chosen = read_texts(file, templates or ())
    with outputs.reserved(out, outputs.FEATURES, overwrite=overwrite, inputs=[file]):
        _weights.ensure_encoder(encoder, yes=yes)
        from avarc_cli.devices import pick_device  # imports torch: only now, after all that may be wrong
        from avarc_cli.text import encoders, feature_file

        found = encoders.find(encoder)
        made = encoders.encode_once(found, chosen.texts, pick_device(device), opt.captions_bar)
        if note := made.note(found.positions):
            console.note(note)
        names = tuple(chosen.ids[owner] for owner in chosen.candidate)
        feature_file.write(out, made.features, names, encoders.metadata(found, made))
        sizes = " x ".join(map(str, made.features.sequence_RTD.shape))
        said = f"{counted(len(names), 'caption')} of {counted(len(chosen), 'candidate')}: sequence {sizes}"
        data = {"out": out, "captions": len(names), "candidates": len(chosen), "cut": list(made.cut)}
        console.result(data | {"encoder": found.protocol()}, console.path_and(out, said), brief=str(out))
