"""What a finished run was made from: its images in a token cache, and whether a model is its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from avarc_cli.errors import UsageError, describe_differences
from avarc_cli.loaded import LoadedModel
from avarc_cli.results.read_run import SavedRun
from avarc_cli.tokens.cache import TokenCache

FIX = "name the run's token cache: --tokens FILE"


def own_images(run: SavedRun, cache: TokenCache, named: Iterable[tuple[int, str]]) -> TokenCache:
    """The run's images in its token cache.

    Args:
        cache: the whole cache. named: row and name of images of the run that must be there.
    Raises: UsageError when the cache holds other images.
    """
    there = {"images_sha256": run.protocol["tokens"].get("images_sha256")}
    here = {"images_sha256": cache.header.images_sha256}
    if differences := describe_differences(there, here, sides=("in the run", "in the cache")):
        raise UsageError(f"'{cache.path}' holds other images than the run", differences, FIX)
    images, sample = len(run.records), run.protocol["tokens"].get("sample")
    if sample:
        cache = cache.sample(sample["images"], sample["seed"])
    elif images < len(cache):
        cache = cache.first(images)
    what = f"'{cache.path}' is not the cache of the run"
    if len(cache) < images:
        raise UsageError(what, f"it has no row {len(cache)}", FIX)
    if others := [path for row, path in named if path != cache.paths[row]]:
        raise UsageError(what, f"its rows are not those of '{others[0]}'", FIX)
    return cache


def check_model(run: SavedRun, model: LoadedModel) -> None:
    """Raises UsageError when the weights, their configuration, or the classes that a bank added are not the run's."""
    there: dict[str, Any] = {"sha256": run.protocol["model"].get("sha256"), "stated": run.protocol.get("stated", {})}
    here: dict[str, Any] = {"sha256": model.sha256, "stated": dict(model.stated)}
    there["captions"] = run.protocol.get("captions")
    here["captions"] = model.captions.protocol() if model.captions else None
    if differences := describe_differences(there, here, sides=("in the run", f"for {model.name}")):
        adapted = " with " in run.protocol["model"]["name"] and " with " not in model.name
        fix = "add the adapter of the run: --lora DIR" if adapted else "name the run's: --model FILE"
        fix = "put back the run's captions" if there["captions"] != here["captions"] else fix
        raise UsageError(f"{model.name} is not the model of the run", differences, fix)
    made_with = run.protocol.get("bank") or {}  # an empty bank adds nothing
    given = (model.bank.protocol() if model.bank else None) or {}
    named = zip(run.candidates.tolist(), run.recorded("candidate_ids"), strict=True)
    first = len(model.classes) - len(given)  # of the added classes, whose order decides their ids
    if made_with != given or any(model.classes.ids[c : c + 1] != (own,) for c, own in named if c >= first):
        what = f"the run was made {'with another' if made_with and given else 'with a' if made_with else 'without a'}"
        why = f"it added {', '.join(made_with) or 'no class'} to the model"
        raise UsageError(f"{what} class bank", why, "add --bank DIR" if made_with else "leave out --bank")
