"""Explanations of a finished run's hardest images: from its saved likelihoods, or scored again from its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from avarc_cli.data.labels import LabelSpace
from avarc_cli.errors import UsageError, describe_differences
from avarc_cli.explain.choose import Comparison, Verdict, select
from avarc_cli.explain.explain import classes_at_hand, describe, explain, pixels_of_cache, source_pixels
from avarc_cli.explain.explanation import Explanation
from avarc_cli.loading import LoadedModel
from avarc_cli.results.read_run import SavedRun
from avarc_cli.results.records import UNKNOWN
from avarc_cli.tokens.cache import TokenCache


def hardest(run: SavedRun, limit: int) -> list[Verdict]:
    """The images of the run that were most surprising to the model, as the records tell."""
    candidates = set(run.candidates.tolist())
    verdicts = [_verdict(record, candidates) for record in run.records]
    return select(verdicts, None, limit, sort=True) if verdicts and limit else []


def from_likelihoods(run: SavedRun, verdicts: Sequence[Verdict]) -> Iterator[Explanation]:
    """Of a run with --save-likelihood: predictions against rivals. It saved no p(x), so there is no map against it.

    Raises: UsageError when the run saved none; AvarcError for a damaged file.
    """
    column = {class_id: i for i, class_id in enumerate(run.candidates.tolist())}
    classes = _classes(run)
    tokens = run.protocol["tokens"]
    if "patch_nums" not in tokens:
        raise UsageError(f"'{run.path}' does not tell the scales of its tokens", "it was made by an older avarc")
    for verdict in verdicts:
        subject, rival = Comparison().of(verdict)
        ids = classes_at_hand(verdict, subject, rival)
        yield describe(
            verdict,
            classes,
            ids,
            run.token_log_prob(verdict.row)[[column[c] for c in ids]],
            None,
            subject=subject,
            rival=rival,
            patch_nums=tuple(tokens["patch_nums"]),
            pixels=source_pixels(tokens["source"], verdict.path, tokens["preprocess"], tokens.get("dataset", "")),
        )


def from_tokens(
    run: SavedRun, verdicts: Sequence[Verdict], cache: TokenCache, model: LoadedModel, tokens_per_batch: int
) -> Iterator[Explanation]:
    """Scored again by the run's own model on the run's own tokens.

    Raises: UsageError when model or cache are not those of the run; CacheError for another tokenizer's tokens.
    """
    check_model(run, model)
    cache.check(model.tokenizer)
    there = {"images_sha256": run.protocol["tokens"].get("images_sha256")}
    here = {"images_sha256": cache.header.images_sha256}
    if differences := describe_differences(there, here, sides=("in the run", "in the cache")):
        raise UsageError(f"'{cache.path}' holds other images than the run", differences)
    pixels = pixels_of_cache(cache, model.tokenizer)
    yield from explain(
        model.likelihood,
        model.classes,
        cache,
        verdicts,
        Comparison(),
        pixels=pixels,
        tokens_per_batch=tokens_per_batch,
    )


def check_model(run: SavedRun, model: LoadedModel) -> None:
    """Raises UsageError when the weights, or the classes that a bank added to them, are not the run's."""
    there, here = {"sha256": run.protocol["model"].get("sha256")}, {"sha256": model.sha256}
    if differences := describe_differences(there, here, sides=("in the run", f"for {model.name}")):
        adapted = " with " in run.protocol["model"]["name"] and " with " not in model.name
        fix = "add the adapter of the run: --lora DIR" if adapted else "name the run's: --model FILE"
        raise UsageError(f"{model.name} is not the model of the run", differences, fix)
    made_with = run.protocol.get("bank") or {}  # an empty bank adds nothing
    given = (model.bank.protocol() if model.bank else None) or {}
    named = zip(run.candidates.tolist(), run.protocol["candidate_ids"], strict=True)
    first = len(model.classes) - len(given)  # of the added classes, whose order decides which has which id
    if made_with != given or any(model.classes.ids[c : c + 1] != (own,) for c, own in named if c >= first):
        what = f"the run was made {'with another' if made_with and given else 'with a' if made_with else 'without a'}"
        why = f"it added {', '.join(made_with) or 'no class'} to the model"
        raise UsageError(f"{what} class bank", why, "add --bank DIR" if made_with else "leave out --bank")


def has_likelihoods(run: SavedRun) -> bool:
    """Whether the run was made with --save-likelihood."""
    return bool(run.protocol.get("save_likelihood"))


def _verdict(record: dict[str, Any], candidates: set[int]) -> Verdict:
    order, rank = tuple(best["class"] for best in record["best"]), record["label_rank"]
    label = UNKNOWN
    if rank is not None:  # where several classes count as right, the best of them
        label = order[rank] if rank < len(order) else record["label"]
    return Verdict(
        row=record["index"],
        path=record["path"],
        order=order,
        posterior=tuple(best["posterior"] for best in record["best"]),
        label_name=str(record.get("label_name") or record["label_id"] or ""),
        label=label if label in candidates else UNKNOWN,
        label_rank=rank,
    )


def _classes(run: SavedRun) -> LabelSpace:
    """The run's candidates at the places of their class ids; other places bear their number."""
    ids, names = {}, {}
    for c, own, name in zip(
        run.candidates.tolist(), run.protocol["candidate_ids"], run.protocol["candidate_names"], strict=True
    ):
        ids[c], names[c] = own, name
    count = max(ids) + 1
    return LabelSpace(
        "the run's candidates",
        tuple(ids.get(i, f"class {i}") for i in range(count)),
        tuple(names.get(i, f"class {i}") for i in range(count)),
    )
