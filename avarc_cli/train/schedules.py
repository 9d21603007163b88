"""Numbers that change in the course of a training, as functions of the step, which counts optimizer steps from 0.

Sources: the training code of VAR (arXiv:2404.02905), 1d-tokenizer (arXiv:2406.07550, arXiv:2411.00776) and RandAR
(arXiv:2412.01827).
"""

from __future__ import annotations

import math

from avarc_cli.errors import UsageError

PLATEAU, COSINE, CONSTANT = "plateau", "cosine", "constant"
OF_VAR = ("cos", "lin", "lin0", "lin00", "exp")
FLAT = {"lin": 0.15, "lin0": 0.05, "exp": 0.15}  # fraction of the steps after the warm-up that the peak is held

EMA_STARTS = ("tensorflow", "copy", "half", "none")


def check_schedule(name: str) -> None:
    """Raises: UsageError unless there is such a schedule."""
    if name in (PLATEAU, COSINE, CONSTANT, *OF_VAR):
        return
    turn = _turn(name)
    if turn is None or not 0 < turn <= 1:
        known = ", ".join((PLATEAU, COSINE, CONSTANT, *OF_VAR))
        raise UsageError(f"no learning-rate schedule '{name}'", f"there are {known}, and lin0.3 for any fraction")


def relative_rate(
    name: str, step: int, steps: int, *, warmup: float, level: float = 0.0, first: float = 0.0, final: float = 0.0
) -> float:
    """The learning rate of a step, over the peak.

    The rate rises linearly from `first` during the warm-up. Afterwards, with p the fraction done of what follows:

    - "plateau": constant up to step `level`, then linear to `final`.
    - "cosine": final + (1 - final) (1 + cos pi p) / 2 (1d-tokenizer, RandAR). "constant": 1 (1d-tokenizer, LlamaGen).
    - VAR's, whose p is 1 at the last step, and whose warm-up is a whole number of steps. "cos": the same cosine.
      "lin00": linear to `final`; "lin0", "lin": the same after 5 and 15 % at the peak; "exp": exponential after 15 %.
      "lin<T>", such as "lin0.3": two slopes that meet at p = T, half-way between the peak and the rate that one slope
      would have there.

    Args:
        name: that `check_schedule` has accepted.
        warmup, level: in steps, not necessarily whole. first, final: over the peak.
    """
    of_var = name not in (PLATEAU, COSINE, CONSTANT)
    warm = float(round(warmup)) if of_var else warmup
    if step < warm:
        return first + (1 - first) * step / warm
    if name == CONSTANT:
        return 1.0
    if name == PLATEAU:
        return 1.0 if step < level else 1 - (1 - final) * ((step - level) / max(1.0, steps - level))
    last = steps - 1 if of_var else steps
    return _falling(name, (step - warm) / max(1.0, last - warm), final)


def _falling(name: str, p: float, final: float) -> float:
    """The rate over the peak after the warm-up, when a fraction p in [0, 1] of what follows is done."""
    if name in (COSINE, "cos"):
        return final + (1 - final) * (0.5 + 0.5 * math.cos(math.pi * p))
    if name == "lin00":
        return final + (1 - final) * (1 - p)
    if name in FLAT:
        flat = FLAT[name]
        if p < flat:
            return 1.0
        if name == "exp":
            return float(final ** ((p - flat) / (1 - flat)))
        return final + (1 - final) * (1 - p) / (1 - flat)
    turn = _turn(name)
    assert turn is not None, "checked before"
    middle = (1 + final + (1 - final) * (1 - turn)) / 2
    if p < turn or turn == 1:  # VAR's code divides by zero at the last step of "lin1"
        return 1 + (middle - 1) * p / turn
    return final + (middle - final) * (1 - p) / (1 - turn)


def _turn(name: str) -> float | None:
    """T of "lin<T>"; None for another name."""
    try:
        return float(name.removeprefix("lin")) if name.startswith("lin") else None
    except ValueError:
        return None


def weight_decay(step: int, steps: int, start: float, end: float) -> float:
    """Weight decay of a step: a cosine from `start` to `end` (VAR)."""
    if start == end:
        return start
    return end + (start - end) * (0.5 + 0.5 * math.cos(math.pi * step / max(1, steps - 1)))


def random_order_share(done: float, start: float, end: float) -> float:
    """Probability that a sequence is trained in a random order, which falls from 1 at `start` to 0 at `end`.

    Source: RAR's annealing (arXiv:2411.00776).

    Args:
        done: fraction of the steps before this one. start, end: such fractions.
    """
    if done >= end:
        return 0.0
    return min((end - done) / (end - start), 1.0) if end > start else 1.0


def ema_decay(step: int, decay: float, start: str) -> float:
    """How much of the average of the weights is kept at the update after `step`.

    At first the memory is short, since weights change fast: "tensorflow" takes min(decay, (1 + g) / (10 + g)) at step
    g; "copy" the same, but the weights themselves at step 0 (1d-tokenizer); "half" with g / 2 for g (vaex); "none"
    always `decay` (LlamaGen).
    """
    if start == "none":
        return decay
    if start == "copy" and step == 0:
        return 0.0
    count = step / 2 if start == "half" else step
    return min(decay, (1 + count) / (10 + count))


def last_segment(step: int, steps: int, segments: int, *, until: float, first: int, warmup: float) -> int:
    """The last segment, from 0, that a step of VAR's progressive training trains.

    Args:
        until: fraction of the steps when all are trained. first: the last one trained at first. warmup: in steps.
    """
    last, full = segments - 1, until * steps
    if step <= warmup and first < last:
        return first
    if step >= full:
        return last
    return first + round((last - first) * (step - warmup) / (full - warmup))
