"""avarc app: a page in the browser that classifies, explains, draws and learns classes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _completion as complete
from avarc_cli.commands import _option_groups as groups
from avarc_cli.commands import _options as opt
from avarc_cli.commands._groups import with_option_groups
from avarc_cli.errors import UsageError


@with_option_groups
def app(
    context: typer.Context,
    *,
    bank: Annotated[
        Path | None,
        typer.Option(
            "--bank",
            help="Folder of the classes that users add, which all of them share; created if it does not exist. Without "
            "it, each user has classes of their own until they leave.",
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare", help="Another model, whose predictions are shown beside.", autocompletion=complete.models
        ),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 for a free one.")] = 7860,
    as_json: opt.JsonOpt = False,
    model: groups.NamedModelOptions,
) -> None:
    """Serve a page on this machine: upload an image, and see which classes drop out, and why.

    It also draws pictures of classes, and learns a class from a few images. Ctrl-C ends it.

    Example: avarc app --compare digits-llamagen
    """
    _check_installed()
    from avarc_cli.incremental.editing import read_if_any

    there = None if bank is None else read_if_any(bank)
    specs = [model.fetch()]
    if compare is not None:
        specs.append(groups.NamedModelOptions(model=compare, device=model.device, yes=model.yes).fetch())
    from avarc_cli.app import guard, server  # imports torch: only now, after all that may be wrong
    from avarc_cli.classifier import Classifier, load_classifier
    from avarc_cli.loading import with_bank

    listening = server.listen(host, port)
    main, *others = [load_classifier(spec) for spec in specs]
    if there is not None:
        main = Classifier(with_bank(main.model, there), main.options)
    if host not in guard.LOCAL:
        console.warn(f"everyone who reaches {host} can use this app, and add classes")
    url = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    shown = f"{url}\nCtrl-C ends the app."
    console.result({"url": url, "model": main.model.name}, shown, brief=url)
    server.serve(main, others[0] if others else None, bank, listening, host)


def _check_installed() -> None:
    """Raises: UsageError without the packages of the extra."""
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        what, why = "the app needs more packages", f"{' and '.join(missing)} cannot be found"
        raise UsageError(what, why, "pip install 'avarc[app]'")
