"""Explanations to files: a picture or a page by suffix, and the raw arrays."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from avarc_cli.errors import UsageError
from avarc_cli.explain.explanation import Explanation
from avarc_cli.explain.figure import draw
from avarc_cli.explain.gallery import gallery
from avarc_cli.explain.maps import Weighting, combine
from avarc_cli.results.records import UNKNOWN
from avarc_cli.storage import write_bytes

SUFFIXES = (".png", ".svg", ".html")
LIMITS = {".html": 24, ".png": 6, ".svg": 6}  # images that are shown unless the user wants more
MOST = {".html": 500, ".png": 40, ".svg": 40}  # beyond, a browser or an image viewer has a hard time


def check_out(out: Path, npz: Path | None) -> None:
    """Make the folders of what will be written.

    Raises: UsageError for a suffix that is no kind of picture or page, or a folder in the place of a file; OSError when
        a folder cannot be made.
    """
    kind = out.suffix.lower()
    if kind not in SUFFIXES:
        raise UsageError(
            f"cannot write '{out}'",
            f"its suffix '{out.suffix}' is none of {' '.join(SUFFIXES)}",
            f"name {out.stem}.html",
        )
    if npz is not None and npz.suffix.lower() != ".npz":
        raise UsageError(f"cannot write '{npz}'", "raw arrays are written as npz", f"name {npz.stem}.npz")
    for path in (out, npz):
        if path is not None and path.is_dir():
            raise UsageError(f"cannot write '{path}'", "it is a folder", f"name a file: {path}/explanation{kind}")
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)


def how_many(out: Path, limit: int | None, listed: int | None) -> int:
    """How many images to show: what the user wants, all that he listed one by one, or a good number of a whole set.

    Raises: UsageError for a limit below 1, or more images than the kind of file is good for.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"{limit} images were asked for, must be at least 1")
    kind = out.suffix.lower()
    wanted = limit if limit is not None else listed if listed is not None else LIMITS[kind]
    if wanted > MOST[kind]:
        fix = "use --out page.html" if wanted <= MOST[".html"] else "take --rows a part at a time"
        raise UsageError(f"{wanted} images do not fit into one {kind[1:]} file", f"at most {MOST[kind]} do", fix)
    return wanted


def write(explanations: Sequence[Explanation], weighting: Weighting, out: Path, *, title: str, about: str) -> None:
    """Write the picture or page that the suffix of `out` asks for. title, about: of a page. Raises: OSError."""
    kind = out.suffix.lower()
    if kind == ".html":
        data = gallery(explanations, weighting, title, about).encode()
    else:
        data = draw(explanations, weighting, kind[1:])
    write_bytes(out, data)


def write_arrays(explanations: Sequence[Explanation], weighting: Weighting, path: Path) -> None:
    """Write the raw arrays (docs/explain.md lists them); plain numpy reads them. Raises: OSError."""
    first = explanations[0]
    length = first.log_prob.shape[1]

    def ids(positions: Sequence[int | None]) -> np.ndarray:
        pairs = zip(explanations, positions, strict=True)
        return np.array([UNKNOWN if p is None else e.class_ids[p] for e, p in pairs], dtype=np.int64)

    def log_prob(e: Explanation, position: int | None) -> np.ndarray:
        return np.full(length, np.nan, np.float32) if position is None else e.log_prob[position]

    missing = np.full(length, np.nan, np.float32)
    p_x = np.stack([missing if e.unconditional is None else e.unconditional for e in explanations])
    subject = np.stack([log_prob(e, e.subject) for e in explanations])
    rival = np.stack([log_prob(e, e.rival) for e in explanations])

    def maps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        pairs = zip(a.astype(np.float64), b, strict=True)
        return np.stack([combine(x - y, first.patch_nums, weighting) for x, y in pairs])

    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        row=np.array([e.index for e in explanations], dtype=np.int64),
        path=np.array([e.path.encode("utf-8", "backslashreplace").decode() for e in explanations]),
        patch_nums=np.array(first.patch_nums, dtype=np.int64),
        scale_weight=weighting.of_scales(first.patch_nums),
        subject=ids([e.subject for e in explanations]),
        subject_name=np.array([e.names[e.subject] for e in explanations]),
        rival=ids([e.rival for e in explanations]),
        rival_name=np.array(["" if e.rival is None else e.names[e.rival] for e in explanations]),
        label=ids([e.label for e in explanations]),
        log_prob_subject=subject,
        log_prob_rival=rival,
        log_prob_unconditional=p_x,
        map_subject=maps(subject, p_x),
        map_rival=maps(rival, p_x),
        map_contrast=maps(subject, rival),
    )
    write_bytes(path, buffer.getvalue())
