"""avarc train: tokenizers and generators of your own, from images."""

from __future__ import annotations

from typing import Any, ClassVar

import typer

from avarc_cli import console, processes
from avarc_cli.commands._groups import Command, Group
from avarc_cli.commands.train_captions import llamagen_t2i, text_encoder
from avarc_cli.commands.train_cca import cca
from avarc_cli.commands.train_classifier import classifier
from avarc_cli.commands.train_generators import llamagen, maskgit, randar, rar, var
from avarc_cli.commands.train_maskgen import maskgen
from avarc_cli.commands.train_recipes import recipes
from avarc_cli.commands.train_tatitok import tatitok
from avarc_cli.commands.train_titok import titok
from avarc_cli.commands.train_tokenizers import maskgit_vq, tokenizer, vq
from avarc_cli.errors import UsageError

RECIPE = "--recipe"


class _Train(Group):
    """Takes the command from the recipe in `avarc train --recipe NAME ...`."""

    sections: ClassVar = {
        "All in one": "classifier",
        "Tokenizers": "tokenizer vq maskgit-vq titok tatitok",
        "Generators": "var llamagen randar rar maskgit",
        "Of captions": "text-encoder llamagen-t2i maskgen",
        "Fine-tuning": "cca",
        "Published trainings": "recipes",
    }

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # a Click Context
        return super().parse_args(ctx, [*self._command_of_recipe(args, ctx.resilient_parsing), *args])

    def _command_of_recipe(self, args: list[str], is_completing: bool) -> list[str]:
        """Raises: UsageError for a recipe that is unknown, or for a command that this version has not."""
        named = [word for word in args if word.partition("=")[0] == RECIPE]
        if not named or args[0] in self.commands:
            return []
        from avarc_cli.recipes import find, included

        _, has_name, name = named[0].partition("=")
        name = name if has_name else " ".join(args[args.index(RECIPE) + 1 :][:1])
        if is_completing and name not in included():
            return ["var"]  # any command that has the option completes its value
        recipe = find(name)
        if recipe.command not in self.commands:
            raise UsageError(
                f"the recipe '{recipe.name}' is for avarc train {recipe.command}",
                f"the commands are {', '.join(sorted(self.commands))}",
                "use a version that has it",
            )
        return [recipe.command]


app = typer.Typer(
    cls=_Train,
    help="Train a tokenizer or a generator on an image folder.\n\n"
    "With --recipe NAME in place of a command, train as a published model was (avarc train recipes lists them).\n\n"
    "Example: avarc train tokenizer photos/ --out tokenizer.safetensors",
    no_args_is_help=True,
)


@app.callback()
def _processes() -> None:
    processes.quiet_torch()
    console.configure(silent=not processes.is_first())  # torchrun starts several, of which one speaks


_COMMANDS: dict[str, Any] = {
    "tokenizer": tokenizer,
    "vq": vq,
    "maskgit-vq": maskgit_vq,
    "classifier": classifier,
    "titok": titok,
    "tatitok": tatitok,
    "text-encoder": text_encoder,
    "llamagen-t2i": llamagen_t2i,
    "var": var,
    "llamagen": llamagen,
    "randar": randar,
    "rar": rar,
    "maskgit": maskgit,
    "maskgen": maskgen,
    "cca": cca,
    "recipes": recipes,
}
for _name, _command in _COMMANDS.items():
    app.command(name=_name, cls=Command)(_command)
