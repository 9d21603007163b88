"""Numbers of comparisons and tables as text; "" for what is not known."""

from __future__ import annotations


def share(value: float | None) -> str:
    """A fraction as a percentage; "" for None."""
    return "" if value is None else f"{value:.2%}"


def interval(value: tuple[float, float] | None) -> str:
    """An interval of fractions."""
    return "" if value is None else f"{value[0]:.1%} to {value[1]:.1%}"


def points(value: float | None) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return "" if value is None else f"{100 * value:+.2f}"


def points_interval(value: tuple[float, float] | None) -> str:
    """An interval of differences."""
    return "" if value is None else f"{points(value[0])} to {points(value[1])}"


def probability(p: float) -> str:
    """A p value."""
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1e}"


def seconds(value: float | None) -> str:
    """Seconds per image."""
    return "" if value is None else f"{value:.3g} s"
