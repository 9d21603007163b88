"""Which tokens of an image are kept while a part of it is painted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from avarc_cli.data.painting import Painting
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.errors import UsageError
from avarc_cli.layout import TokenLayout
from avarc_cli.likelihood import Known
from avarc_cli.loaded import LoadedModel
from avarc_cli.tokens.reconstruct import from_pixels


def known_tokens(model: LoadedModel, painting: Painting, preprocess: str | None = None) -> Known:
    """The tokens of an image, of which those outside of the mask are kept (`kept_cells`).

    Args:
        preprocess: how the image, and the mask with it, becomes square; None for the tokenizer's own way.
    Raises: UsageError for a model that cannot keep tokens, and where the mask covers no token, or all; UnreadableImage.
    """
    tokenizer = model.tokenizer
    check_keeps_tokens(model)
    pixels, painted = painting.prepared(Preprocess.choose(preprocess, tokenizer.preprocess, tokenizer.image_size))
    kept_L = kept_cells(tokenizer.layout, painted)
    if kept_L.all() or not kept_L.any():
        rows, columns = tokenizer.layout.grids[-1]
        cells = f"{tokenizer.image_size / columns:g} x {tokenizer.image_size / rows:g} pixels"
        what = "no cell" if kept_L.all() else "every cell"
        why = f"a token stands for a cell of {cells}, which is painted if the mask covers half of it"
        raise UsageError(f"the mask covers {what} of the image", why, "name a mask of another size")
    with torch.inference_mode():
        tokens_L = tokenizer.quantize(tokenizer.encode(from_pixels(pixels[None])))[0]
    return Known(tokens_L.cpu().numpy(), kept_L)


def check_keeps_tokens(model: LoadedModel) -> None:
    """Raises: UsageError for a model that cannot draw some tokens given any others."""
    what = f"{model.name} cannot paint a part of an image"
    if not model.tokenizer.layout.grids:
        why = "a mask is a place, and its tokens have none: each describes the whole image"
        raise UsageError(what, why, "name a VAR, or a MaskGIT of tokens on a grid")
    if not model.likelihood.keeps_tokens:
        why = "it draws tokens in its own order, each given those before it only"
        raise UsageError(what, why, "name a VAR, or a MaskGIT of tokens on a grid")


def kept_cells(layout: TokenLayout, painted_HW: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which tokens are kept, (L,).

    A cell of the finest grid is painted if the mask covers at least half of it. On coarser grids that is interpolated,
    and the coarsest ones, of up to three tokens, are kept: the rule of VAR's zero-shot editing
    (https://github.com/FoundationVision/VAR, demo_zero_shot_edit.ipynb).
    """
    painted = torch.from_numpy(painted_HW)[None, None].double()
    finest = (F.interpolate(painted, size=layout.grids[-1], mode="area") < 0.5).double()
    kept = [F.interpolate(finest, size=grid, mode="bilinear").gt(0.5) for grid in layout.grids]
    for k, (rows, columns) in enumerate(layout.grids[:-1]):
        if rows * columns <= 3:
            kept[k].fill_(True)
    cells: npt.NDArray[np.bool_] = torch.cat([each.flatten() for each in kept]).numpy()
    return cells
