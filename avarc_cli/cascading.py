"""The precisions of a classifier: those that stages of its plan name, and a cascade of two.

The rounding noise of a cascade is measured for a model on a machine and kept in a small file (`NOISE`), until there is
more to measure it on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from avarc_cli.devices import device_name
from avarc_cli.errors import AvarcError, UsageError
from avarc_cli.layers import precision as precisions
from avarc_cli.loaded import LoadedModel
from avarc_cli.progress import Notify, no_message
from avarc_cli.results.validate import AGAIN
from avarc_cli.scoring.cascade import Cascade
from avarc_cli.scoring.combining import MEAN
from avarc_cli.scoring.orders import Orders
from avarc_cli.scoring.other_precisions import OtherPrecisions
from avarc_cli.scoring.plan import Plan
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.rounding_noise import PROBABILITY, RoundingNoise, freedom_of, images_needed, measure
from avarc_cli.settings import check_kernels_compute, is_cascade
from avarc_cli.tokens.cache import TokenCache
from avarc_cli.words import counted
from avarc_cli.zoo import paths
from avarc_cli.zoo.measured import Measured

NOISE = Measured(paths.noise_folder, "noise", "the rounding noise", RoundingNoise.from_dict, RoundingNoise.to_dict)
"""What was measured on this machine, by `noise_key`."""


def noise_key(model: LoadedModel, about: Mapping[str, Any]) -> dict[str, Any]:
    """What rounding noise depends on, as JSON types.

    Args:
        about: what decides about log-likelihoods beside the model: orders, and how hidden tokens are scored.
    """
    cheap, _, exact = model.precision.partition("+")
    return {
        **model.made_for(),
        **about,
        "precision": cheap,
        "exact": exact,
        "arithmetic": model.arithmetic,
        "kernels": model.kernels,
        "device": device_name(torch.device(model.device)),
        "instructions": torch.backends.cpu.get_cpu_capability() if model.device == "cpu" else "",
        "torch": torch.__version__,
    }


def measure_noise(
    model: LoadedModel,
    others: OtherPrecisions,
    cache: TokenCache,
    request: ScoringRequest,
    orders: Orders,
    about: Mapping[str, Any],
    say: Notify = no_message,
) -> RoundingNoise:
    """The noise of the first images of the cache, kept for later runs with this model on this machine.

    Args:
        about: as in `noise_key`. say: called with messages for the user.
    """
    if len(request.candidates) < 2 or not len(cache):
        missing = "there is one candidate" if len(cache) else f"'{cache.path}' holds no images"
        raise UsageError("the rounding of differences of classes cannot be measured", missing, "use --precision fp32")
    key = noise_key(model, about)
    rows = np.arange(images_needed(len(request.candidates), len(cache)))
    say(f"measuring the rounding of {key['precision']} on {counted(len(rows), 'image')}, once for this model here")
    tokens_GSL = cache.tokens(rows)
    order_GOL = orders.of(cache.in_file(rows), tokens_GSL.shape[2], 1)
    noise = measure(model.likelihood, others(key["exact"]), tokens_GSL, request, order_GOL)
    NOISE.store(key, noise, say)
    return noise


def recorded_noise(recorded: Any, model: LoadedModel, request: ScoringRequest) -> RoundingNoise | None:
    """The noise in run.json, which a run that is continued goes on with; None where it is another request's.

    Raises: AvarcError where it is corrupt.
    """
    try:
        noise = RoundingNoise.from_dict(recorded["noise"])
        return noise if covers(noise, model, request) else None
    except (AttributeError, KeyError, TypeError, ValueError) as problem:
        raise AvarcError("the run.json of this run is corrupt", f"cascade: {problem}", AGAIN) from None


def cascade_of(model: LoadedModel, request: ScoringRequest, noise: RoundingNoise) -> Cascade:
    """How the request is carried out in the two precisions of the model."""
    cheap, _, exact = model.precision.partition("+")
    slacks = noise.slacks(request.plan, len(request.candidates), model.likelihood.segment_ends)
    return Cascade(cheap, slacks, exact)


def protocol(cascade: Cascade, noise: RoundingNoise) -> dict[str, Any]:
    """What run.json records of a cascade."""
    return {"cascade": {"probability": PROBABILITY, "slack": list(cascade.slacks), "noise": noise.to_dict()}}


def in_precisions(plan: Plan, model: LoadedModel) -> Plan:
    """The plan whose stages name only precisions that differ from the model's own.

    Raises: UsageError for one that is not available, or that the model's kernels do not compute, and for any beside a
        cascade.
    """
    if plan.precisions and is_cascade(model.precision):
        raise UsageError(
            f"plan '{plan}' names precisions",
            f"with --precision {model.precision}, every stage is scored in two",
            "leave them out, or use --precision fp32",
        )
    for name in plan.precisions:
        precisions.find(name, torch.device(model.device))
        check_kernels_compute(model.kernels, name)
    own = [replace(s, precision=None) if s.precision == model.precision else s for s in plan.stages]
    return Plan(tuple(own))


def check_rule(request: ScoringRequest, orders: Orders) -> None:
    """Raises: UsageError for scores that are no mean of log-likelihoods, whose rounding a cascade cannot bound."""
    if orders.bound:
        raise UsageError(
            "a cascade of precisions does not go with --bound",
            "each draw scales its tokens, and their rounding, differently",
            "use --precision fp32",
        )
    if request.combine != MEAN and request.plan.orders > 1:
        raise UsageError(
            f"a cascade of precisions does not go with --combine {request.combine}",
            "the rounding of such a score has no bound from that of its orders",
            "use --precision fp32, or --combine mean",
        )


def covers(noise: RoundingNoise, model: LoadedModel, request: ScoringRequest) -> bool:
    """Whether the noise is of this model's segments, and of all estimates of the plan."""
    estimated = {stage.segments for stage in request.plan.stages if stage.estimated and stage.segments}
    return len(noise.segments) == len(model.likelihood.segment_ends) and estimated <= set(noise.estimates)


def serves(noise: RoundingNoise, model: LoadedModel, request: ScoringRequest, images: int) -> bool:
    """Whether an earlier measurement is as good as one on this many images would be."""
    return covers(noise, model, request) and noise.freedom >= freedom_of(len(request.candidates), images)
