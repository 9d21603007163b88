"""What a score of a model of hidden tokens is: the likelihood of a number of passes, a mean over orders, or a bound.

Source: arXiv:2110.02037 (order-agnostic models), arXiv:2202.04200 (MaskGIT).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from avarc_cli.errors import UsageError
from avarc_cli.scoring.combining import LOG_MEAN_EXP, MEAN
from avarc_cli.scoring.orders import MAX_ORDERS, Orders

if TYPE_CHECKING:
    from avarc_cli.likelihood import LikelihoodModel
    from avarc_cli.loaded import LoadModel


@dataclass(frozen=True)
class Estimator:
    """How a model of hidden tokens is scored. Raises: UsageError for values out of range."""

    steps: int | None = None
    """Passes that an order is cut into; None for the model's default."""
    bound: int | None = None
    """Draws of the order-agnostic bound, which replace orders; None for likelihoods."""
    unsmooth: float = 0.0
    """Label smoothing of the training that is undone."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"--steps {self.steps}", "an order is cut into one or more passes")
        if self.bound is not None and not 1 <= self.bound <= MAX_ORDERS:
            raise UsageError(f"--bound {self.bound}", f"it is a number of draws from 1 to {MAX_ORDERS}")
        if self.bound is not None and self.steps is not None:
            raise UsageError("--bound and --steps exclude each other", "each draw of a bound is one pass")
        if not 0 <= self.unsmooth < 1:
            raise UsageError(f"--unsmooth {self.unsmooth:g}", "label smoothing is from 0 up to, not including, 1")

    @property
    def asked(self) -> bool:
        """Whether anything but the model's default is asked for."""
        return self != Estimator()

    def applied(self, model: LikelihoodModel, name: str) -> LikelihoodModel:
        """The model, scored this way. Raises: UsageError for a model without hidden tokens, or too few tokens."""
        if not self.asked:
            return model
        if model.steps is None:
            option = "--bound" if self.bound else "--steps" if self.steps else "--unsmooth"
            why = "it gives log p(token | before), which is exact"
            raise UsageError(f"{option} is for models of hidden tokens, and {name} is none", why, f"leave out {option}")
        return model.with_steps(1 if self.bound else self.steps or model.steps, unsmooth=self.unsmooth)

    def load(self, load: LoadModel, device: str, precision: str | None = None) -> LikelihoodModel:
        """The model that `load` loads on a device, as `applied`."""
        model = load(device, precision)
        return self.applied(model.likelihood, model.name)

    def made_for(self, model: LikelihoodModel) -> dict[str, Any]:
        """What the guarantee of a tuned plan depends on; empty for a model without hidden tokens."""
        return {} if model.steps is None else {"steps": model.steps, "unsmooth": self.unsmooth}

    def protocol(self, model: LikelihoodModel, orders: Orders, count: int, rule: str) -> dict[str, Any]:
        """For run.json, of a model of hidden tokens; count: orders that are used. Empty for any other."""
        if model.steps is None:
            return {}
        return {
            "steps": None if orders.bound else model.steps,
            "unsmooth": self.unsmooth,
            "likelihood": describe(model, orders, count, rule),
        }


def describe(model: LikelihoodModel, orders: Orders, count: int, rule: str) -> str:
    """What scores of a model of hidden tokens are, in words, for the first `count` orders combined by this rule.

    Where even a token's log-probability is an estimate of a lower bound (`is_bound`), so is every score.
    """
    if orders.bound:
        bound = f"estimate of the order-agnostic lower bound from {count} stratified draws, 1 pass each"
        return f"{bound}; of each token a lower bound too" if model.is_bound else bound
    one = "1 pass" if model.steps == 1 else f"{model.steps} passes"
    exact = f"estimate of a lower bound of the model of {one}" if model.is_bound else f"exact for the model of {one}"
    if count == 1:
        return exact
    mixture = f"the mixture of {count} orders of {one}"
    if rule == LOG_MEAN_EXP:
        return f"estimate of a lower bound of {mixture}" if model.is_bound else f"exact for {mixture}"
    if rule == MEAN:
        return f"{'estimate of a ' if model.is_bound else ''}lower bound of {mixture}: their mean"
    return f"{exact}; posteriors of {count} orders are averaged"


def recorded_estimator(protocol: Mapping[str, Any]) -> Estimator:
    """The estimator of a run, from its run.json; its orders are `orders.recorded_orders`."""
    bound = 1 if "likelihood" in protocol and protocol["steps"] is None else None  # how many is part of the orders
    return Estimator(protocol.get("steps"), bound, protocol.get("unsmooth", 0.0))
