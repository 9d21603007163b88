"""run.json: everything that the numbers of a run depend on."""

from __future__ import annotations

from typing import Any

import torch

from avarc_cli import environment
from avarc_cli.devices import pick_kernels
from avarc_cli.loaded import LoadedModel
from avarc_cli.results.tuned import TunedPlan
from avarc_cli.scoring.orders import Orders
from avarc_cli.scoring.plan import Plan
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.tokens.cache import TokenCache
from avarc_cli.tokens.header import SMOOTHING

OF_CACHE = ("source", "dataset", "images_sha256", "preprocess", "precision", "samples", "sigma", "seed")
"""Fields of a cache's header that are recorded."""


def run_protocol(
    model: LoadedModel,
    cache: TokenCache,
    request: ScoringRequest,
    *,
    orders: Orders,
    tuned: TunedPlan | None,
    priors: bool,
    offsets: bool,
    deterministic: bool,
) -> dict[str, Any]:
    """What run.json records of a run, as JSON types.

    Args:
        orders: that tokens are scored in. tuned: the plan, if it is a tuned one. priors: whether there are any.
        offsets, deterministic: as in `Options`.
    """
    header, likelihood, ids = cache.header, model.likelihood, request.candidates.tolist()
    tokens = {name: getattr(header, name) for name in OF_CACHE}
    tokens |= {} if header.views == SMOOTHING else {"views": header.views}  # earlier runs do not record it
    tokens |= {
        "layout": header.layout.to_dict(),
        "images": len(cache),
        "limit": None if cache.file_rows is None or cache.sampled else len(cache),
        "length": likelihood.segment_ends[-1],
    }
    if cache.sampled:
        tokens["sample"] = dict(zip(("images", "seed"), cache.sampled, strict=True))
    other_kernels = _kernels_of_other_precisions(model, request.plan)
    by_triton = any("triton" in kernels for kernels in (model.kernels, *other_kernels.values()))
    recorded = model.protocol() | {
        "tokens": tokens,
        "plan": str(request.plan),
        "tuned_plan": tuned.to_dict() if tuned else None,
        "score": request.score.name,
        "candidates": ids,
        "candidate_ids": [model.classes.ids[c] for c in ids],
        "candidate_names": [model.classes.names[c] for c in ids],
        "log_prior": request.log_prior.tolist() if priors else None,
        "tokens_per_batch": request.tokens_per_batch,
        "prefix_tokens": request.max_cached_tokens,
        "offsets": offsets if model.bank else None,
        "deterministic": deterministic,
        "attention": environment.attention(model.kernels),
        "threads": torch.get_num_threads(),
        "versions": environment.versions(*(["triton"] if by_triton else [])),
    }
    recorded |= {"other_kernels": other_kernels} if other_kernels else {}
    return recorded | (orders.protocol(request.combine) if likelihood.any_order else {})


def _kernels_of_other_precisions(model: LoadedModel, plan: Plan) -> dict[str, str]:
    """Of the second precision of a cascade, and of those that a plan names: "auto" chooses for each."""
    names = {model.precision.partition("+")[2], *plan.precisions} - {""}
    asked, device = model.given.get("kernels", "auto"), torch.device(model.device)
    return {name: pick_kernels(asked, device, name) for name in sorted(names)}
