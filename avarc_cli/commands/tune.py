"""avarc tune: a plan that drops classes early, with a guarantee."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avarc_cli import console
from avarc_cli.commands import _dry_run, _images, _summary
from avarc_cli.commands import _option_groups as groups
from avarc_cli.commands import _options as opt
from avarc_cli.commands._groups import with_option_groups

if TYPE_CHECKING:
    from avarc_cli.results.tuned import TunedPlan


@with_option_groups
def tune(
    context: typer.Context,
    tokens: Annotated[Path, typer.Argument(help="Token cache of images like those to be classified.")],
    *,
    agreement: Annotated[
        float,
        typer.Option("--agreement", help="Guaranteed fraction of images with exhaustive scoring's prediction."),
    ] = 0.995,
    out: Annotated[Path, typer.Option("--out", "-o", help="The plan to write, for classify --plan.")] = Path(
        "plan.json"
    ),
    samples: Annotated[
        int, typer.Option("--samples", min=1, help="Samples, or views, of each image to average (see encode).")
    ] = 1,
    hold_out: Annotated[
        int, typer.Option("--hold-out", min=0, help="Images to leave out, chosen at random, and to measure on.")
    ] = 0,
    evaluate: Annotated[
        Path | None, typer.Option("--evaluate", help="Token cache of other images to measure on.")
    ] = None,
    limit: opt.LimitOpt = None,
    sample: opt.SampleOpt = None,
    seed: opt.SeedOpt = 0,
    overwrite: opt.OverwriteOpt = False,
    dry_run: _dry_run.DryRunOpt = False,
    work: groups.WorkersOptions,
    as_json: opt.JsonOpt = False,
    model: groups.ModelOptions,
    scoring: groups.ScoringOptions,
) -> None:
    """Tune a plan that drops classes early, with a guarantee.

    Scores the images exhaustively once, and finds how far behind the leader a class may be dropped. The guarantee
    holds for new images of the same distribution that the model was not trained on. If the images are labelled, the
    temperature of the posterior is fitted as well.

    Example: avarc tune calibration.h5 --model var-d16 --classes imagenet100 --agreement 0.995 --out plan.json
    """
    from avarc_cli import outputs, tuning
    from avarc_cli.tokens.cache import read

    workers, unfinished = work.workers, tuning.is_unfinished(out)
    part = _images.Part(limit, sample, seed)
    part.check()
    outputs.check_output(out, outputs.JSON, overwrite=overwrite or unfinished)
    with nullcontext() if dry_run else outputs.reserved(out, outputs.JSON, overwrite=overwrite or unfinished):
        cache = part.of(read(tokens))
        tuning.check_request(len(cache), agreement=agreement, hold_out=hold_out, evaluate=evaluate is not None)
        if limit is not None and len(cache) == limit:
            console.warn(
                "--limit takes the first images; the guarantee holds for images like these, not for the others"
            )
        others = None if evaluate is None else read(evaluate)
        model = model.naming(cache.header.class_names, scoring.classes, model.class_names)
        scoring.check(model.known_classes(), cache.header.dataset)
        spec = work.place(context, model).fetch()
        from avarc_cli.classifier import load_classifier  # imports torch: only now, after all that may be wrong

        classifier = load_classifier(spec, scoring.options(cache.header.dataset), progress=opt.captions_bar)
        opt.note_inferred(classifier.model)
        if dry_run:
            from avarc_cli.forecast import forecast_tuning

            images = len(cache) + (0 if others is None else len(others))
            forecast = forecast_tuning(classifier, cache.header, images, samples=samples)
            _dry_run.show({out: None}, scoring=forecast, classifier=classifier)
            return
        with console.progress("scoring", len(cache)) as bar:
            plan = tuning.tune(
                classifier,
                cache,
                agreement=agreement,
                samples=samples,
                hold_out=hold_out,
                evaluate=others,
                seed=seed,
                out=out,
                workers=workers,
                on_start=lambda run: _summary.announce(classifier, run),
                progress=bar.update,
                say=console.warn,
            )
        _show(plan, out)


def _show(plan: TunedPlan, out: Path) -> None:
    names = ["segments", "samples", "margin (nats)", "surviving classes, on average"]
    rows = [
        [stage.segments or "first cut", stage.samples, f"{stage.margin:.3f}", f"{stage.expected or 0:.2f}"]
        for stage in plan.plan.stages[:-1]
    ]
    if plan.plan.orders > 1:
        names.insert(2, "orders")
        for row, stage in zip(rows, plan.plan.stages, strict=False):
            row.insert(2, stage.orders)
    table = console.table("", names, rows)
    parts: list[Any] = [
        table,
        plan.guarantee["statement"],
        console.fields("on the calibration images", _fields(plan.calibration)),
    ]
    if plan.held_out:
        parts.append(console.fields("on the held-out images", _fields(plan.held_out)))
    parts.append(console.path_and(out, "for avarc classify --plan"))
    said = {name: value for name, value in plan.to_dict().items() if name != "first_cut"}  # arrays
    console.result(said | {"out": out}, console.stack(*parts), brief=str(plan.plan))


def _fields(measured: Mapping[str, Any]) -> dict[str, str]:
    low, high = measured["agreement_95"]
    shown = {
        "images": f"{measured['images']:,}",
        "agreement": f"{measured['agreement']:.2%} (95 % interval {low:.1%} to {high:.1%})",
        "tokens scored": f"{measured['tokens_per_image']:,.0f} an image, "
        f"{measured['share_of_exhaustive']:.1%} of exhaustive",
    }
    if "after" in measured:
        before, after = measured["before"], measured["after"]
        shown["accuracy"] = f"{measured['accuracy']:.2%} (exhaustive {measured['accuracy_exhaustive']:.2%})"
        shown["temperature"] = f"{after['temperature']:.3f}"
        shown["calibration error"] = (
            f"{before['expected_calibration_error']:.4f} before, {after['expected_calibration_error']:.4f} after"
        )
        shown["-log p(label)"] = (
            f"{before['negative_log_likelihood']:.4f} before, {after['negative_log_likelihood']:.4f} after, nats"
        )
    return shown
