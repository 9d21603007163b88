"""avarc bench: how fast this machine scores, and against what."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _completion as complete
from avarc_cli.commands import _options as opt
from avarc_cli.commands import _roofline, _weights
from avarc_cli.commands._groups import with_option_groups
from avarc_cli.settings import FLASH, check_device, check_kernels, check_kernels_compute, check_precision, flash_refuses
from avarc_cli.words import counted
from avarc_cli.zoo.cards import check_weights

if TYPE_CHECKING:
    import torch

    from avarc_cli.bench.graphs import GraphResult
    from avarc_cli.bench.measure import BenchReport, BenchResult
    from avarc_cli.family import BenchWorkload

SPEED = ("", "speed", "pairs/s", "images/s", "tokens/s")
GRAPHS = ("", "pairs", "segments", "launched", "replayed", "speed")
COST = ("", "FLOP/s", "of peak", "memory", "mean error", "largest")


@dataclass(frozen=True, kw_only=True)
class _NetworkOptions:
    """The network that is timed."""

    shape: Annotated[
        str,
        typer.Option(
            "--shape",
            help="d16 to d30, or depth:width:heads (VAR); llamagen-b, -l, -xl, -xxl or -3b; rar-b, -l, -xl or -xxl; "
            "randar-b, -l or -xl. "
            "The weights are random.",
        ),
    ] = "d16"
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="A model's shape and weights, in place of --shape.",
            autocompletion=complete.models,
        ),
    ] = None
    tokenizer: opt.TokenizerOpt = None
    weight_set: opt.WeightSetOpt = None
    tokenizer_weight_set: opt.TokenizerWeightSetOpt = None
    scales: Annotated[str | None, typer.Option("--scales", help="Sides of the scales, comma-separated.")] = None


@dataclass(frozen=True, kw_only=True)
class _TimingOptions:
    """What is measured: the fields of `BenchOptions`."""

    classes: Annotated[int, typer.Option("--classes", min=1, help="Candidates an image, for images/s.")] = 100
    plan: Annotated[
        str | None,
        typer.Option(
            "--plan",
            callback=opt.read_plan,
            help="Plan whose tokens are counted. Default: paper where it fits, else exhaustive.",
            autocompletion=complete.plans,
        ),
    ] = None
    pairs: Annotated[int, typer.Option("--pairs", min=1, help="Pairs of image and class that are timed.")] = 4
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds; the fastest counts.")] = 2
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            help="Only these precisions, comma-separated. Default: all that are present.",
            autocompletion=complete.comma_list(complete.precisions),
        ),
    ] = None
    kernels: Annotated[
        str | None,
        typer.Option(
            "--kernels",
            help="auto, torch, triton or flash, comma-separated. Default: torch and triton.",
            autocompletion=complete.comma_list(complete.one_of("auto", "torch", "triton", "flash")),
        ),
    ] = None
    graphs: Annotated[
        bool, typer.Option("--graphs", help="Also time 1 to 4 pairs as CUDA graphs, which launch nothing.")
    ] = False


@with_option_groups
def bench(
    context: typer.Context,
    *,
    network: _NetworkOptions,
    timing: _TimingOptions,
    device: opt.DeviceOpt = "auto",
    yes: opt.YesOpt = False,
    quick: Annotated[bool, typer.Option("--quick", help="A tiny shape: whether it works, not how fast it is.")] = False,
    roofline: Annotated[
        bool,
        typer.Option(
            "--roofline",
            help="In place of comparing: each part's share of the machine's peak, for small jobs and --pairs.",
        ),
    ] = False,
    picture: Annotated[Path | None, typer.Option("--picture", help="Write a bar chart to this PNG file.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a picture that exists.")] = False,
    as_json: opt.JsonOpt = False,
) -> None:
    """Time scoring in every precision and backend, against plain PyTorch in the same run.

    Example: avarc bench --shape d16 --precision int8 --picture bench.png
    """
    from avarc_cli import families, outputs

    _check_together(context, network.model is not None, quick, roofline)
    if roofline and not opt.is_given(context, "pairs"):
        timing = replace(timing, pairs=_roofline.PAIRS)
    if quick:
        network = replace(network, shape="2:64:2")
        timing = replace(timing, pairs=min(timing.pairs, 2), plan="exhaustive")
    sides = opt.parse_numbers("1,2,3,4" if quick and network.scales is None else network.scales, "--scales")
    if network.model is None:
        families.check_shape(network.shape, sides)
    _check_values(network, timing)
    check_device(device)
    with outputs.reserved(picture, outputs.PNG, overwrite=overwrite):
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else torch's profiler announces itself on stderr
        from avarc_cli.bench.measure import BenchOptions, measure  # imports torch: only now, as in every command
        from avarc_cli.bench.picture import bars
        from avarc_cli.devices import pick_device

        place = pick_device(device)
        workload, name = _workload(network, sides, place, device, yes=yes), network.model or network.shape
        options = BenchOptions(**vars(timing))
        timed = f"{counted(timing.pairs, 'pair')} on {place}, {counted(timing.rounds, 'round')}"
        console.note(f"{timed} and one to warm up")
        if roofline:
            from avarc_cli.bench.roofline import measure_roofline

            _roofline.show(measure_roofline(workload, name, options, place))
            return
        report = measure(workload, name, options, place)
        if picture:
            bars(report, picture)
    _show(report, picture)


def _workload(
    network: _NetworkOptions, sides: tuple[int, ...] | None, place: torch.device, device: str, *, yes: bool
) -> BenchWorkload:
    """What is timed: a model with its weights, or a shape with random ones.

    Args:
        sides: of the scales. place: that of `device`. yes: download missing weights without asking.
    """
    from avarc_cli.bench.workload import model_workload, random_workload
    from avarc_cli.loading import ModelSpec, load_model
    from avarc_cli.zoo.cards import caption_card

    model, tokenizer = network.model, network.tokenizer
    if not model:
        return random_workload(network.shape, sides, place)
    sets = network.weight_set, network.tokenizer_weight_set
    reads_captions = caption_card(model) is not None  # of which it needs none: it makes up its own
    _weights.ensure(model, tokenizer, *sets, yes=yes, captions=reads_captions)
    spec = ModelSpec(model, tokenizer, weight_set=sets[0], tokenizer_weight_set=sets[1], device=device)
    return model_workload(load_model(spec, unbound=True), place)


def _check_together(context: typer.Context, model: bool, quick: bool, roofline: bool) -> None:
    if model:
        opt.check_not_given(context, {"shape", "scales"}, "with --model", "the model has its own shape")
    else:
        of_files = {"tokenizer", "weight_set", "tokenizer_weight_set"}
        opt.check_not_given(context, of_files, "without --model", "only a model's file needs one")
    if quick:
        opt.check_not_given(context, {"shape", "plan"}, "with --quick", "it times a tiny shape, scored exhaustively")
    if roofline:
        of_comparison = {"classes", "plan", "picture", "overwrite", "graphs"}
        opt.check_not_given(context, of_comparison, "with --roofline", "it compares nothing, and counts no plan")


def _check_values(network: _NetworkOptions, timing: _TimingOptions) -> None:
    """Raises: UsageError for values that are wrong whatever is timed; before torch is imported."""
    from avarc_cli.scoring.plan import check_plan

    for name in filter(None, (network.model, network.tokenizer)):
        check_weights(name)
    if timing.plan is not None:
        check_plan(timing.plan, candidates=timing.classes)
    precision, kernels = timing.precision, timing.kernels
    for name in precision.split(",") if precision is not None else ():
        check_precision(name.strip())
    for name in kernels.split(",") if kernels is not None else ():
        check_kernels(name.strip())
    if kernels is not None and precision is not None:
        _check_some_way(kernels.split(","), precision.split(","))


def _check_some_way(kernels: list[str], precision: list[str]) -> None:
    """Raises: UsageError where flash-attn alone is asked for, and no precision that it computes."""
    if all(name.strip() == FLASH for name in kernels) and all(flash_refuses(name.strip()) for name in precision):
        check_kernels_compute(FLASH, precision[0].strip())


def _show(report: BenchReport, picture: Path | None) -> None:
    ops = [[_way(r), ", ".join(f"{n} {s:.0%}" for n, s in r.ops[:5])] for r in report.results]
    reuse, pruning = report.tokens_again / report.tokens_plan, report.tokens_exhaustive / report.tokens_again
    peak = f"matrix products {report.peak_flops / 1e9:,.0f} GFLOP/s"
    title = f"{report.shape} on {report.device}, {counted(report.threads, 'thread')}; {peak}"
    factors = (
        f"plan {report.plan} on {counted(report.classes, 'class')}: {pruning:.2f}x fewer tokens than exhaustive, "
        f"and reused prefixes {reuse:.2f}x fewer again ({report.tokens_plan:,} of {report.tokens_exhaustive:,})"
    )
    fastest = max(report.results, key=lambda r: r.speedup)
    console.result(
        {"report": report, "reuse_factor": reuse, "plan_factor": pruning, "picture": picture},
        console.stack(
            console.table(title, SPEED, [_speed(r) for r in report.results]),
            console.table("At what cost; errors in nats", COST, [_cost(r) for r in report.results]),
            console.table("Where the time goes", ("", "operations"), ops),
            *([console.table("As CUDA graphs", GRAPHS, [_graph(g) for g in report.graphs])] if report.graphs else []),
            *([f"no graphs: {report.graphs_skipped}"] if report.graphs_skipped else []),
            factors,
            *([console.path_and(picture, "pairs per second")] if picture else []),
        ),
        brief=f"{fastest.speedup:.2f}",
    )


def _way(r: BenchResult) -> str:
    """The way to score, the name of its row."""
    return f"{r.name}, {r.precision}, {r.kernels}"


def _graph(g: GraphResult) -> list[str]:
    what = [f"{g.precision}, {g.kernels}", f"{g.pairs}", f"{g.segments}"]
    if g.eager_seconds is None or g.replay_seconds is None:
        return [*what, g.failed, "", ""]
    return [*what, f"{1e3 * g.eager_seconds:.2f} ms", f"{1e3 * g.replay_seconds:.2f} ms", f"{g.speedup:.2f}x"]


def _speed(r: BenchResult) -> list[str]:
    return [
        _way(r),
        f"{r.speedup:.2f}x",
        f"{r.pairs_per_second:.3g}",
        f"{r.images_per_second:.3g}",
        f"{r.tokens_per_second:,.0f}",
    ]


def _cost(r: BenchResult) -> list[str]:
    return [
        _way(r),
        f"{r.flops / 1e9:,.0f} G",
        f"{r.share_of_peak:.0%}",
        "unknown" if r.memory is None else f"{r.memory >> 20:,} MiB",
        f"{r.error_mean:.1e}",
        f"{r.error_max:.1e}",
    ]
