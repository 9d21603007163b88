"""Verdicts to explanations: score the few classes at hand token by token, and find the pictures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from avarc_cli.data.datasets import ImageSet, load_pixels
from avarc_cli.data.image_source import open_regular
from avarc_cli.data.labels import LabelSpace
from avarc_cli.data.preprocess import MODES, Preprocess
from avarc_cli.errors import UnreadableImage
from avarc_cli.explain.choose import Comparison, Verdict
from avarc_cli.explain.explanation import SHOWN_LEADS, Explanation
from avarc_cli.likelihood import LikelihoodModel, Tokenizer
from avarc_cli.results.records import UNKNOWN
from avarc_cli.scoring.exhaustive import token_log_probs
from avarc_cli.tokens.cache import TokenCache
from avarc_cli.tokens.reconstruct import reconstruct

Pixels = Callable[[int], tuple[np.ndarray, bool]]  # row -> (H, H, 3) uint8, and whether it was decoded from tokens


def explain(
    model: LikelihoodModel,
    classes: LabelSpace,
    cache: TokenCache,
    verdicts: Sequence[Verdict],
    comparison: Comparison,
    *,
    pixels: Pixels,
    tokens_per_batch: int,
) -> Iterator[Explanation]:
    """One explanation a verdict, in order, as they are made.

    Args:
        cache: where the verdicts' rows are. pixels: what to show as the input.
        tokens_per_batch: tokens of all pairs of one forward pass.
    Raises: UsageError when the comparison cannot be made for an image.
    """
    p_x = [] if model.unconditional is None else [model.unconditional]
    for verdict in verdicts:
        subject, rival = comparison.of(verdict)
        ids = classes_at_hand(verdict, subject, rival)
        tokens_1L = torch.from_numpy(cache.tokens([verdict.row])[:, 0])
        log_prob = token_log_probs(model, tokens_1L, [*ids, *p_x], tokens_per_batch)[0]
        picture, decoded = pixels(verdict.row)
        yield describe(
            verdict,
            classes,
            ids,
            log_prob[: len(ids)],
            log_prob[-1] if p_x else None,
            subject=subject,
            rival=rival,
            patch_nums=cache.header.patch_nums,
            pixels=picture,
            decoded=decoded,
        )


def classes_at_hand(verdict: Verdict, subject: int, rival: int | None) -> list[int]:
    """The ids that an explanation needs: the best classes, and whoever is compared; in the order of the verdict."""
    wanted = {*verdict.order[:SHOWN_LEADS], subject, rival, verdict.label} - {None, UNKNOWN}
    ranked = [c for c in verdict.order if c in wanted]
    return ranked + sorted(c for c in wanted if c not in ranked and c is not None)


def describe(
    verdict: Verdict,
    classes: LabelSpace,
    ids: Sequence[int],
    log_prob: np.ndarray,
    unconditional: np.ndarray | None,
    *,
    subject: int,
    rival: int | None,
    patch_nums: tuple[int, ...],
    pixels: np.ndarray | None,
    decoded: bool = False,
) -> Explanation:
    """Put an explanation together from the log-probabilities (N, L) of the classes at hand, in their order."""
    share = dict(zip(verdict.order, verdict.posterior, strict=True))
    return Explanation(
        index=verdict.row,
        path=verdict.path,
        patch_nums=patch_nums,
        class_ids=tuple(ids),
        names=tuple(display_name(classes, c) for c in ids),
        posterior=tuple(share.get(c) for c in ids),
        log_prob=log_prob,
        unconditional=unconditional,
        subject=ids.index(subject),
        rival=None if rival is None else ids.index(rival),
        label=ids.index(verdict.label) if verdict.label in ids else None,
        label_name=verdict.label_name,
        pixels=pixels,
        decoded=decoded,
        surprise=verdict.surprise,
    )


def display_name(classes: LabelSpace, class_id: int) -> str:
    """A class's human name; with its id where two classes share the name (ImageNet has two cranes)."""
    name = classes.names[class_id]
    return name if classes.names.count(name) == 1 else f"{name} ({classes.ids[class_id]})"


def pixels_of_images(images: ImageSet, cache: TokenCache, preprocess: Preprocess) -> Pixels:
    """The input as the tokenizer saw it, for a cache that was just made from these images."""
    row_of = {name: row for row, name in enumerate(images.names)}
    return lambda row: (images.load(row_of[cache.paths[row]], preprocess), False)


def pixels_of_cache(cache: TokenCache, tokenizer: Tokenizer) -> Pixels:
    """The image file that a row came from, if it is still there; else what its tokens decode to."""

    def load(row: int) -> tuple[np.ndarray, bool]:
        header = cache.header
        found = source_pixels(header.source, cache.paths[row], header.preprocess, header.dataset)
        if found is None:
            return reconstruct(tokenizer, cache.tokens([row])[:, :1])[0, 0], True
        return found, False

    return load


def source_pixels(source: str, name: str, preprocess: str, dataset: str) -> np.ndarray | None:
    """The image `name` below a cache's or run's source, made ready as its protocol says; None when it is not there.

    dataset: the known one that it is of, else "".
    """
    mode, size = preprocess.partition(" ")[0], re.search(r"(\d+)(?: lanczos)?$", preprocess)
    path = Path(source) if Path(source).is_file() and Path(source).name == name else Path(source) / name
    if not path.is_file() and ", " in source:  # of several inputs, a name begins with its input
        path = Path(name)
    if mode not in MODES or size is None or not path.is_file():
        return None
    try:
        return load_pixels(lambda: open_regular(path), str(path), dataset, Preprocess(mode, int(size[1])))
    except UnreadableImage:
        return None
