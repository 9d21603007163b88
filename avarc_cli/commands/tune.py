"""avarc tune: a plan that drops classes early, with a promise."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avarc_cli import console
from avarc_cli.commands import _options as opt
from avarc_cli.commands import _weights
from avarc_cli.errors import UsageError

if TYPE_CHECKING:
    from avarc_cli.classifier import Classifier
    from avarc_cli.results.run import Run
    from avarc_cli.results.tuned import TunedPlan
    from avarc_cli.scoring.conformal import ScoreTable


def tune(
    tokens: Annotated[Path, typer.Argument(help="Token cache of images like those to be classified.")],
    agreement: Annotated[
        float, typer.Option("--agreement", help="Promised share of images that get exhaustive scoring's prediction.")
    ] = 0.995,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the plan goes, for classify --plan.")] = Path(
        "plan.json"
    ),
    samples: Annotated[
        int, typer.Option("--samples", min=1, help="Average so many samples of each image (see encode --samples).")
    ] = 1,
    hold_out: Annotated[
        int, typer.Option("--hold-out", min=0, help="Leave so many images out, drawn by chance, and measure on them.")
    ] = 0,
    evaluate: Annotated[
        Path | None, typer.Option("--evaluate", help="Token cache of other images to measure on.")
    ] = None,
    model: opt.ModelOpt = "digits",
    tokenizer: opt.TokenizerOpt = None,
    classes: Annotated[
        str | None, typer.Option("--classes", help="Candidates: a file, a known subset, or a list like 0,5,7.")
    ] = None,
    class_names: opt.ClassNamesOpt = None,
    priors: Annotated[
        str | None, typer.Option("--priors", help="File of class<TAB>weight lines; default: all classes equal.")
    ] = None,
    bank: opt.BankOpt = None,
    lora: opt.LoraOpt = None,
    offset: opt.OffsetsOpt = True,
    precision: opt.PrecisionOpt = "fp32",
    device: opt.DeviceOpt = "auto",
    batch_size: opt.BatchSizeOpt = "auto",
    seed: opt.SeedOpt = 0,
    limit: opt.LimitOpt = None,
    yes: _weights.YesOpt = False,
    as_json: opt.JsonOpt = False,
) -> None:
    """Find the margins behind the leader at which classes may be dropped without changing predictions.

    Scores the images exhaustively once. The promise holds for new images of the same distribution that the model was
    not trained on. The posterior's temperature is fitted too, if the images are labelled.

    Example: avarc tune calibration.h5 --model var-d16 --classes imagenet100 --agreement 0.995 --out plan.json
    """
    from fractions import Fraction

    import numpy as np

    from avarc_cli.classifier import load_classifier
    from avarc_cli.results import tuning
    from avarc_cli.results.tuned import TunedPlan
    from avarc_cli.scoring import conformal
    from avarc_cli.tokens.cache import read

    opt.check_file(out, ".json")
    if hold_out and evaluate:
        raise UsageError("--hold-out and --evaluate exclude each other", "both say what to measure on")
    if not 0 < agreement < 1:
        raise UsageError(f"cannot promise an agreement of {agreement}", "it is a share between 0 and 1")
    cache, promised = read(tokens).first(limit), Fraction(str(agreement))
    if limit is not None and len(cache) == limit:
        console.warn("--limit takes the first images; the promise holds for images like these, not for the others")
    conformal.rank_of_level(promised, len(cache) - hold_out)  # too few are told before anything is scored
    _weights.ensure(model, tokenizer, yes=yes)
    classifier = load_classifier(
        model,
        tokenizer,
        class_names=class_names,
        precision=precision,
        device=device,
        plan=f"exhaustive:{samples}",
        classes=classes,
        dataset=cache.header.dataset,
        priors=priors,
        batch_size=batch_size,
        bank=bank,
        lora=lora,
        offsets=offset,
    )
    run, table = _scores(classifier, cache, out, "calibrating")
    order, labels = np.random.default_rng(seed).permutation(len(table)), tuning.right_candidates(run)
    kept, left_out = np.sort(order[hold_out:]), np.sort(order[:hold_out])
    calibration = table.rows(kept)
    tuned = conformal.tune(calibration, promised, precision, seed=seed)
    degrees = tuning.temperature(tuned.plan, calibration, labels[kept])
    held_out: dict[str, Any] | None = None
    if hold_out:
        held_out = tuning.measure(tuned.plan, table.rows(left_out), labels[left_out], degrees)
    elif evaluate:
        other, others = _scores(classifier, read(evaluate), out, "evaluating")
        held_out = tuning.measure(tuned.plan, others, tuning.right_candidates(other), degrees)
    header = cache.header
    about = {"source": header.source, "images_sha256": header.images_sha256, "seed": seed, "rows": kept.tolist()}
    plan = TunedPlan(
        plan=tuned.plan,
        temperature=degrees,
        made_for=classifier.made_for() | classifier.tokens_made_for(cache, samples),
        guarantee=tuning.guarantee(tuned),
        calibration=about | tuning.measure(tuned.plan, calibration, labels[kept], degrees),
        held_out=held_out,
    )
    plan.write(out)
    for purpose in ("calibrating", "evaluating"):
        shutil.rmtree(_run_folder(out, purpose), ignore_errors=True)
    _show(plan, out)


def _run_folder(out: Path, purpose: str) -> Path:
    return out.with_name(f"{out.name}.{purpose}")


def _scores(classifier: Classifier, cache: Any, out: Path, purpose: str) -> tuple[Run, ScoreTable]:
    """Exhaustive scores of a cache; kept beside the plan until it is done, so that a second try goes on."""
    from avarc_cli.commands import _summary
    from avarc_cli.results.folder import RunFolder
    from avarc_cli.results.tuning import exhaustive_scores

    folder = RunFolder(_run_folder(out, purpose))
    request = classifier.request(
        cache.header.samples, keep_segments=True, tokens_per_batch=folder.recorded("tokens_per_batch")
    )
    run = classifier.run(cache, request)
    _summary.announce(classifier, run)
    with console.progress(purpose, len(cache)) as bar:
        return run, exhaustive_scores(run, folder, progress=lambda done, _: bar.update(done))


def _show(plan: TunedPlan, out: Path) -> None:
    rows = [
        [stage.segments, stage.samples, f"{stage.margin:.3f}", f"{stage.expected or 0:.2f}"]
        for stage in plan.plan.stages[:-1]
    ]
    table = console.table("", ["segments", "samples", "margin (nats)", "classes that go on, on average"], rows)
    parts = [table, plan.guarantee["statement"], console.fields("on the calibration images", _fields(plan.calibration))]
    if plan.held_out:
        parts.append(console.fields("on the held-out images", _fields(plan.held_out)))
    parts.append(f"{out}: use it with avarc classify --plan {out}")
    console.result(plan.to_dict() | {"out": out}, console.stack(*parts), brief=str(plan.plan))


def _fields(measured: dict[str, Any] | Any) -> dict[str, str]:
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
