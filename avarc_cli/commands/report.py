"""avarc report: a finished run as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _options as opt
from avarc_cli.errors import AvarcError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from avarc_cli.explain.choose import Verdict
    from avarc_cli.explain.explanation import Explanation
    from avarc_cli.results.read_run import SavedRun
    from avarc_cli.results.report import Hardest

MOST_IMAGES = 200


def report(
    run: Annotated[Path, typer.Argument(help="A run folder, made by avarc classify --out.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page to write. Default: report.html in the run folder.")
    ] = None,
    hardest: Annotated[
        int, typer.Option("--hardest", help="How many of the hardest images to explain; 0 for none.")
    ] = 8,
    tokens: Annotated[
        Path | None, typer.Option("--tokens", help="The token cache that was classified, if no likelihoods were saved.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The run's model, where its name does not say where it lies.")
    ] = None,
    tokenizer: opt.TokenizerOpt = None,
    class_names: Annotated[
        str | None,
        typer.Option("--class-names", help="File that names the checkpoint's classes, one a line, in order."),
    ] = None,
    bank: opt.BankOpt = None,
    lora: opt.LoraOpt = None,
    device: opt.DeviceOpt = "auto",
    as_json: opt.JsonOpt = False,
) -> None:
    """Write a run's numbers, confusions, calibration and hardest images into one HTML page.

    The page needs nothing else: no network, no other file.

    Example: avarc report runs/val --out val.html
    """
    from avarc_cli.results.folder import RunFolder
    from avarc_cli.results.read_run import open_run
    from avarc_cli.results.report import check
    from avarc_cli.results.report import report as render
    from avarc_cli.storage import write_bytes

    page = out or run / "report.html"
    if page.suffix.lower() not in (".html", ".htm") or page.is_dir():
        raise UsageError(f"cannot write '{page}'", "a report is an HTML file", f"name {page.stem}.html")
    if not 0 <= hardest <= MOST_IMAGES:
        raise UsageError(f"cannot show {hardest} images", f"at most {MOST_IMAGES} fit into a page a browser likes")
    saved = open_run(run)
    metrics = RunFolder(run).read_metrics()
    check(saved, metrics)
    shown = _hardest(saved, hardest, tokens, model, tokenizer, class_names, bank, lora, device)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(page, render(saved, metrics, shown).encode())
    if shown.note:
        console.note(shown.note)
    data = {"page": page, "images": len(saved.records), "explained": shown.explained, "note": shown.note}
    console.result(data, f"{page}: {len(saved.records):,} images, {shown.explained} explained", brief=str(page))


def _hardest(
    saved: SavedRun,
    limit: int,
    tokens: Path | None,
    model: str | None,
    tokenizer: str | None,
    class_names: str | None,
    bank: Path | None,
    lora: Path | None,
    device: str,
) -> Hardest:
    """Cards of the hardest images; where they cannot be made, the page says why instead, unless the user insisted."""
    from avarc_cli.explain import from_run as of_run
    from avarc_cli.explain import gallery
    from avarc_cli.explain.maps import Weighting
    from avarc_cli.results.report import Hardest

    verdicts = of_run.hardest(saved, limit)
    if not verdicts:
        return Hardest(cards=[], note="")
    insisted = tokens is not None or model is not None
    note = "Orange speaks for the first class of a pair, purple for the second; point at a map for its values."
    cards: list[str] = []
    explained = True
    try:
        with console.progress("explaining", len(verdicts)) as bar:
            if of_run.has_likelihoods(saved) and not insisted:
                made = of_run.from_likelihoods(saved, verdicts)
            else:
                made = _score_again(saved, verdicts, tokens, model, tokenizer, class_names, bank, lora, device)
            for explanation in made:
                cards.append(gallery.card(explanation, Weighting()))
                bar.update(len(cards))
    except AvarcError as problem:
        if insisted:
            raise
        note = f"No maps of the hardest images: {problem.what}; {problem.why}."
        note += f" To have them: {problem.fix}." if problem.fix else ""
        cards, explained = [gallery.plain_card(verdict, saved.protocol) for verdict in verdicts], False
    shown = len(cards) if explained else 0
    return Hardest(cards=cards, note=note, style=gallery.STYLE, script=gallery.SCRIPT, explained=shown)


def _score_again(
    saved: SavedRun,
    verdicts: list[Verdict],
    tokens: Path | None,
    model: str | None,
    tokenizer: str | None,
    class_names: str | None,
    bank: Path | None,
    lora: Path | None,
    device: str,
) -> Iterator[Explanation]:
    """For a run without saved likelihoods: its tokens and its model, if both are to be had."""
    from avarc_cli.classifier import load_classifier
    from avarc_cli.explain import from_run as of_run
    from avarc_cli.tokens.cache import read

    path = tokens or saved.path / "tokens.h5"
    if not path.exists():
        raise UsageError(
            f"'{saved.path}' saved no likelihoods",
            "and the token cache that it was made from is not in the run folder",
            f"avarc report {saved.path} --tokens CACHE, or classify with --save-likelihood",
        )
    classifier = load_classifier(
        model or saved.protocol["model"]["name"].split(" with ")[0],  # an adapter's name comes after "with"
        tokenizer,
        class_names=class_names,
        precision=saved.protocol.get("precision", "fp32"),
        device=device,
        bank=bank,
        lora=lora,
    )
    cache = read(path)
    batch = classifier.request(cache.header.samples).tokens_per_batch
    return of_run.from_tokens(saved, verdicts, cache, classifier.model, batch)
