"""What is known about one image: its token log-probabilities under a few classes, and what can be read off them.

Shapes: N classes at hand, L tokens, K scales, P the finest scale's side, H pixels a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from avarc_cli.errors import UsageError
from avarc_cli.explain.maps import Float, Weighting, combine, scale_sums, split_scales
from avarc_cli.explain.palette import LINES

SHOWN_LEADS = 5  # lines in the chart of leads


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """One image under N classes, best first. All log-probabilities in nats.

    class_ids, names, posterior: of the classes; posterior is None for one that was no candidate.
    log_prob: (N, L) float32; unconditional: (L,) float32 of log p(x_t | before), None where the model gives none.
    subject, rival: positions of the class that is explained and of the one it is compared with (None: no other).
    label: position of the true class, None where unknown or not at hand; label_name: what it is called, or "".
    pixels: (H, H, 3) uint8, None where neither image nor tokens can be shown; decoded: whether they came from tokens.
    surprise: -log p(label | x), without a label -log p(prediction | x).
    """

    index: int
    path: str
    patch_nums: tuple[int, ...]
    class_ids: tuple[int, ...]
    names: tuple[str, ...]
    posterior: tuple[float | None, ...]
    log_prob: np.ndarray
    unconditional: np.ndarray | None
    subject: int
    rival: int | None
    label: int | None
    label_name: str
    pixels: np.ndarray | None = None
    decoded: bool = False
    surprise: float = 0.0

    def __post_init__(self) -> None:
        if self.unconditional is None and self.rival is None:
            raise UsageError(
                f"there is nothing to compare '{self.names[self.subject]}' with",
                "the model gives no p(x), and there is no other candidate",
                "name more --classes",
            )

    @property
    def correct(self) -> bool | None:
        """Whether the prediction is the label; None where that is unknown."""
        return None if not self.label_name else self.label == 0

    def contrast(self, a: int, b: int | None) -> Float:
        """log p(x_t | a) - log p(x_t | b) of every token (L,); b None stands for the unconditional p(x)."""
        baseline = self.unconditional if b is None else self.log_prob[b]
        assert baseline is not None, "the model gives no p(x)"
        values: Float = self.log_prob[a].astype(np.float64) - baseline
        return values

    def comparisons(self) -> list[tuple[int, int | None]]:
        """Which pairs the panels show: subject and rival against p(x), and subject against rival."""
        both = [self.subject] + ([] if self.rival is None else [self.rival])
        pairs: list[tuple[int, int | None]] = [] if self.unconditional is None else [(p, None) for p in both]
        return pairs if self.rival is None else [*pairs, (self.subject, self.rival)]

    def panels(self, weighting: Weighting) -> list[Panel]:
        """The maps to show, the most telling one last."""
        made = []
        for a, b in self.comparisons():
            values = self.contrast(a, b)
            given = "" if b is None else f"|{_short(self.names[b])}"
            made.append(
                Panel(
                    title=f"{self.names[a]} vs {'unconditional' if b is None else self.names[b]}",
                    formula=f"log p(x|{_short(self.names[a])}) − log p(x{given})",
                    cells=combine(values, self.patch_nums, weighting),
                    scales=tuple(split_scales(values, self.patch_nums)),
                    difference=float(values.sum()),
                )
            )
        return made

    def leads(self) -> list[tuple[str, Float]]:
        """How far each class is ahead of the rival after every scale: (name, nats (K,)), best last scale first.

        Without a rival: ahead of the unconditional p(x). The subject, the label and the rival are always among them.
        """
        wanted = {self.subject, *(p for p in (self.rival, self.label) if p is not None)}
        for position in range(len(self.names)):
            if len(wanted) < SHOWN_LEADS:
                wanted.add(position)
        lines = [(self.names[p], self._lead(p)) for p in wanted]
        return sorted(lines, key=lambda line: -line[1][-1])

    def line_colours(self, leads: Sequence[tuple[str, Float]]) -> list[str]:
        """Of these lines: the subject's and the rival's are the same in every picture, the others take what is left."""
        fixed = {self.names[self.subject]: LINES[0]}
        if self.rival is not None:
            fixed[self.names[self.rival]] = LINES[1]
        rest = iter(LINES[2:])
        return [fixed.get(name) or next(rest) for name, _ in leads]

    def _lead(self, position: int) -> Float:
        lead: Float = np.cumsum(scale_sums(self.contrast(position, self.rival), self.patch_nums))
        return lead


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One comparison, ready to be drawn.

    cells: (P, P) combined map in nats; scales: each scale's own map, in nats a token; difference: of the two
    log-likelihoods, over all tokens.
    """

    title: str
    formula: str
    cells: Float
    scales: tuple[Float, ...]
    difference: float

    @property
    def total(self) -> float:
        """The sum of the combined map."""
        return float(self.cells.sum())


def limit_of(maps: Sequence[Float]) -> float:
    """Where the colours of these maps end: the largest value, of either sign; never 0."""
    return max((float(np.abs(cells).max()) for cells in maps), default=0.0) or 1e-9


def headline(e: Explanation) -> str:
    """One line on what the model said and whether it was right."""
    sure = e.posterior[0]
    said = f"predicted {e.names[0]}" + (f" ({percent(sure)})" if sure is not None else "")
    if not e.label_name:
        return said
    return f"{said}, rightly" if e.correct else f"{said}; the label is {e.label_name}"


def percent(share: float) -> str:
    """A probability for people; what is nearly certain or nearly impossible does not read 100 % or 0 %."""
    if 0 < share < 0.0005:
        return "< 0.1%"
    return f"{share:.1%}" if share < 0.9995 else "> 99.9%"


def signed(nats: float, digits: int = 1) -> str:
    """A number with its sign, and a real minus; what rounds to 0 has none."""
    shown = f"{nats:+.{digits}f}".replace("-", "−")
    return shown[1:] if float(f"{nats:.{digits}f}") == 0 else shown


def _short(name: str, width: int = 16) -> str:
    return name if len(name) <= width else f"{name[: width - 1]}…"
