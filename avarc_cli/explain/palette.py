"""The diverging colors of every map: purple against, nearly white at zero, orange for.

ColorBrewer's PuOr (C. Brewer, Apache-2.0): its ends are distinct with any common color blindness.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# fmt: off
PUOR = ("2d004b", "542788", "8073ac", "b2abd2", "d8daeb", "f7f7f7", "fee0b6", "fdb863", "e08214", "b35806", "7f3b08")
# fmt: on
# Of lines and their labels: after Okabe and Ito, darker, because text has these colors too.
LINES = ("#0072b2", "#c24e00", "#00805e", "#a8478a", "#8c6a00", "#2a86b8", "#777777")


def color_table(steps: int = 255) -> npt.NDArray[np.uint8]:
    """The colors from most negative to most positive, (steps, 3) uint8; an odd number has a neutral middle."""
    anchors = np.array([[int(c[i : i + 2], 16) for i in (0, 2, 4)] for c in PUOR])
    at, anchors_at = np.linspace(0, 1, steps), np.linspace(0, 1, len(PUOR))
    return np.stack([np.interp(at, anchors_at, channel) for channel in anchors.T], axis=1).round().astype(np.uint8)


def paint(values: npt.NDArray[np.floating], limit: float) -> npt.NDArray[np.uint8]:
    """The colors of values between -limit and limit, (..., 3) uint8; values beyond get the color of the end."""
    colors = color_table()
    fraction = np.clip(np.asarray(values) / limit, -1, 1) * 0.5 + 0.5
    painted: npt.NDArray[np.uint8] = colors[np.rint(fraction * (len(colors) - 1)).astype(np.int64)]
    return painted
