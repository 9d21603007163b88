"""What is known about one image: its token log-probabilities under a few classes, and what can be read off them.

Shapes: N classes at hand, L tokens, K grids, R x C the finest grid, H pixels a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from avarc_cli.errors import UsageError
from avarc_cli.explain.maps import Float, Steps, Weighting, combine, split_grids, step_sums
from avarc_cli.explain.palette import LINES
from avarc_cli.layout import TokenLayout
from avarc_cli.names import to_line
from avarc_cli.words import percent

MAX_LINES = 5  # in the chart of cumulative log-odds


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """One image under N classes. All log-probabilities in nats.

    Raises: UsageError when there is neither a contrast class nor p(x) to compare the target class with.
    """

    row: int
    """Of the image in its token cache."""

    path: str
    """Name of the image below its source."""

    layout: TokenLayout
    """Where its tokens lie."""

    class_ids: tuple[int, ...]
    """(N,), best first."""

    names: tuple[str, ...]
    """(N,) display names."""

    posterior: tuple[float | None, ...]
    """(N,) p(class | x); None for a class that was not a candidate."""

    log_prob: np.ndarray
    """(N, L) float32: log p(x_t | before, class), the mean over orders where there are several."""

    unconditional: np.ndarray | None
    """(L,) float32: log p(x_t | before); None when the model does not give it."""

    target: int
    """Position of the class that is explained."""

    contrast: int | None
    """Position of the class it is compared with; None when there is no other."""

    label: int | None
    """Position of the true class; None when unknown or not at hand."""

    label_name: str
    """Name of the true class, "" when unknown."""

    log_prob_orders: np.ndarray | None = None
    """(N, O, L) float32: the same in each order; None where there is one."""

    footprints: np.ndarray | None = None
    """(L, R, C) float32: where each token shows in the decoded image; None where tokens lie on grids."""

    pixels: np.ndarray | None = None
    """(H, H, 3) uint8 to show as the input; None when neither the file nor the tokens can be shown."""

    decoded: bool = False
    """Whether the pixels were decoded from tokens."""

    negative_log_likelihood: float = 0.0
    """-log p(label | x); without a label, -log p(prediction | x)."""

    def __post_init__(self) -> None:
        if self.unconditional is None and self.contrast is None:
            raise UsageError(
                f"there is nothing to compare '{self.names[self.target]}' with",
                "the model gives no p(x), and there is no other candidate",
                "name more --classes",
            )

    @property
    def correct(self) -> bool | None:
        """Whether the prediction is the label; None when the label is unknown."""
        return None if not self.label_name else self.label == 0

    @property
    def baseline_name(self) -> str:
        """What classes are compared with in the chart: the contrast class, or "unconditional" without one."""
        return "unconditional" if self.contrast is None else self.names[self.contrast]

    def log_ratio(self, a: int, b: int | None) -> Float:
        """log p(x_t | a) - log p(x_t | b) of every token, (L,) float64; b None stands for the unconditional p(x)."""
        baseline = self.unconditional if b is None else self.log_prob[b]
        assert baseline is not None, "the model gives no p(x)"
        values: Float = self.log_prob[a].astype(np.float64) - baseline
        return values

    def standard_error(self, a: int, b: int) -> Float:
        """Of `log_ratio(a, b)` as a mean over random orders, (L,) float64; nan with a single order."""
        if self.log_prob_orders is None:
            return np.full(self.log_prob.shape[1], np.nan)
        ratio_OL = self.log_prob_orders[a].astype(np.float64) - self.log_prob_orders[b]
        error: Float = ratio_OL.std(0, ddof=1) / np.sqrt(len(ratio_OL))
        return error

    def comparisons(self) -> list[tuple[int, int | None]]:
        """The pairs that the panels show: target and contrast against p(x), and target against contrast."""
        both = [self.target] + ([] if self.contrast is None else [self.contrast])
        pairs: list[tuple[int, int | None]] = [] if self.unconditional is None else [(p, None) for p in both]
        return pairs if self.contrast is None else [*pairs, (self.target, self.contrast)]

    def panels(self, weighting: Weighting) -> list[Panel]:
        """The maps to show, the most informative one last. Raises: UsageError as `Weighting.of_grids`."""
        return [self._panel(a, b, weighting) for a, b in self.comparisons()]

    def _panel(self, a: int, b: int | None, weighting: Weighting) -> Panel:
        values = self.log_ratio(a, b)
        given = "" if b is None else f"|{cut(self.names[b], 16)}"
        return Panel(
            title=f"{self.names[a]} vs {'unconditional' if b is None else self.names[b]}",
            formula=f"log p(x|{cut(self.names[a], 16)}) − log p(x{given})",
            cells=combine(values, self.layout, weighting, self.footprints),
            grids=tuple(split_grids(values, self.layout)),
            log_likelihood_ratio=float(values.sum()),
            by_footprint=self.footprints is not None,
        )

    def cumulative_log_odds(self) -> list[Line]:
        """How far each class is ahead of the contrast class after every step, best last value first.

        Without a contrast class: ahead of the unconditional p(x). Target, label and contrast are always among them.
        """
        wanted = {self.target, *(p for p in (self.contrast, self.label) if p is not None)}
        for position in range(len(self.names)):
            if len(wanted) < MAX_LINES:
                wanted.add(position)
        sums = [(position, np.cumsum(self._steps(position).sums)) for position in wanted]
        ranked = sorted(sums, key=lambda line: -line[1][-1])
        # Target and contrast have the same colors in every picture.
        fixed = {self.names[self.target]: LINES[0]}
        if self.contrast is not None:
            fixed[self.names[self.contrast]] = LINES[1]
        rest = iter(LINES[2:])
        return [
            Line(name=self.names[p], values=values, color=fixed.get(self.names[p]) or next(rest))
            for p, values in ranked
        ]

    def steps(self) -> Steps:
        """The steps of `cumulative_log_odds`."""
        return self._steps(self.target)

    def _steps(self, position: int) -> Steps:
        return step_sums(self.log_ratio(position, self.contrast), self.layout)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One class in the chart of cumulative log-odds."""

    name: str
    """Of the class."""

    values: Float
    """Nats ahead after each step."""

    color: str
    """As #rrggbb."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One comparison, ready to be drawn."""

    title: str
    """"A vs B"."""

    formula: str
    """The log-ratio, written out."""

    cells: Float
    """(R, C) combined map in nats per cell."""

    grids: tuple[Float, ...]
    """Each grid's own map, in nats per token; one row (1, L) for tokens without a position."""

    by_footprint: bool = False
    """Whether the combined map is an attribution through the decoder (`TokenizerNetwork.footprints`)."""

    log_likelihood_ratio: float
    """Difference of the two log-likelihoods, over all tokens."""

    @property
    def map_sum(self) -> float:
        """The sum of the combined map."""
        return float(self.cells.sum())


def limit_of(maps: Sequence[Float]) -> float:
    """Where the colors of these maps end: the largest absolute value; never 0."""
    return max((float(np.abs(cells).max()) for cells in maps), default=0.0) or 1e-9


def headline(e: Explanation) -> str:
    """One line on the prediction and whether it is right."""
    sure = e.posterior[0]
    said = f"predicted {e.names[0]}" + (f" ({percent(sure)})" if sure is not None else "")
    if not e.label_name:
        return said
    return f"{said}, correctly" if e.correct else f"{said}; the label is {e.label_name}"


def signed(nats: float, digits: int = 1) -> str:
    """A number with its sign, and a real minus; a number that rounds to 0 has none."""
    shown = f"{nats:+.{digits}f}".replace("-", "−")
    return shown[1:] if float(f"{nats:.{digits}f}") == 0 else shown


def shorten(text: str, width: int) -> str:
    """The text in one line of at most `width` characters."""
    return cut(to_line(text), width)


def cut(text: str, width: int) -> str:
    """The beginning of the text, at most `width` characters."""
    return text if len(text) <= width else f"{text[: width - 1]}…"
