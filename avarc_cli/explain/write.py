"""Explanations to files: a picture or a page by suffix, and the raw arrays."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from avarc_cli.data.labels import UNKNOWN
from avarc_cli.explain.explanation import Explanation
from avarc_cli.explain.figure import draw
from avarc_cli.explain.gallery import gallery
from avarc_cli.explain.maps import Weighting, combine
from avarc_cli.names import to_text
from avarc_cli.outputs import HTML, PNG, SVG, Kind
from avarc_cli.storage import replacing

KINDS = (HTML, PNG, SVG)
DEFAULT_IMAGES = {HTML: 24, PNG: 6, SVG: 6}  # shown unless the user wants more
MAX_IMAGES = {HTML: 500, PNG: 40, SVG: 40}  # beyond, browsers and image viewers struggle


def default_images(out: Path) -> int:
    """How many images a file of this kind shows unless the user wants more."""
    return DEFAULT_IMAGES[_kind(out)]


def max_images(out: Path) -> int:
    """How many images a file of this kind can show."""
    return MAX_IMAGES[_kind(out)]


def write_explanations(
    explanations: Sequence[Explanation],
    weighting: Weighting,
    out: Path,
    *,
    title: str,
    about: str,
    npz: Path | None = None,
) -> None:
    """Write the picture or page that the suffix of `out` asks for, replacing it.

    Args:
        title, about: heading and first sentence of a page.
        npz: also write the raw arrays to this file (docs/explain.md lists them); plain numpy reads them.
    Raises: UsageError as `Weighting.of_grids`; OSError.
    """
    kind = _kind(out)
    if kind is HTML:
        files = {out: gallery(explanations, weighting, title, about).encode()}
    else:
        files = {out: draw(explanations, weighting, kind.suffixes[0][1:])}
    if npz:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **_arrays(explanations, weighting))
        files[npz] = buffer.getvalue()
    with ExitStack() as stack:  # all appear together, at its end
        for path, data in files.items():
            stack.enter_context(replacing(path)).write_bytes(data)


def _kind(out: Path) -> Kind:
    return next(kind for kind in KINDS if kind.takes(out))


def _arrays(explanations: Sequence[Explanation], weighting: Weighting) -> dict[str, np.ndarray]:
    layout = explanations[0].layout
    square = all(rows == columns for rows, columns in layout.grids)
    missing = np.full(layout.num_tokens, np.nan, np.float32)
    p_x = np.stack([missing if e.unconditional is None else e.unconditional for e in explanations])
    target = np.stack([e.log_prob[e.target] for e in explanations])
    contrast = np.stack([missing if e.contrast is None else e.log_prob[e.contrast] for e in explanations])

    def ids(positions: Sequence[int | None]) -> np.ndarray:
        pairs = zip(explanations, positions, strict=True)
        return np.array([UNKNOWN if p is None else e.class_ids[p] for e, p in pairs], dtype=np.int64)

    def maps(a_nL: np.ndarray, b_nL: np.ndarray) -> np.ndarray:
        each = zip(a_nL.astype(np.float64), b_nL, explanations, strict=True)
        return np.stack([combine(a_L - b_L, layout, weighting, e.footprints) for a_L, b_L, e in each])

    return (
        {
            "row": np.array([e.row for e in explanations], dtype=np.int64),
            "path": np.array([to_text(e.path) for e in explanations]),
            "patch_nums": np.array(layout.sides if square else layout.grids, dtype=np.int64),
            "scale_weight": weighting.of_grids(layout),
            "subject": ids([e.target for e in explanations]),
            "subject_name": np.array([to_text(e.names[e.target]) for e in explanations]),
            "rival": ids([e.contrast for e in explanations]),
            "rival_name": np.array(["" if e.contrast is None else to_text(e.names[e.contrast]) for e in explanations]),
            "label": ids([e.label for e in explanations]),
            "log_prob_subject": target,
            "log_prob_rival": contrast,
            "log_prob_unconditional": p_x,
            "map_subject": maps(target, p_x),
            "map_rival": maps(contrast, p_x),
            "map_contrast": maps(target, contrast),
        }
        | _standard_errors(explanations)
        | _footprints(explanations)
    )


def _footprints(explanations: Sequence[Explanation]) -> dict[str, np.ndarray]:
    """Of every token, (n, L, R, C), where tokens have no position."""
    found = [e.footprints for e in explanations if e.footprints is not None]
    return {"footprint": np.stack(found)} if found else {}


def _standard_errors(explanations: Sequence[Explanation]) -> dict[str, np.ndarray]:
    """Of the target's log-ratio to the contrast class, token by token, where it is a mean over several orders."""
    if any(e.log_prob_orders is None for e in explanations):
        return {}
    missing = np.full(explanations[0].log_prob.shape[1], np.nan)
    errors = [missing if e.contrast is None else e.standard_error(e.target, e.contrast) for e in explanations]
    return {"standard_error_contrast": np.stack(errors)}
