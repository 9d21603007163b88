"""The orders in which the tokens of an image are scored, for models that allow any.

Shapes: G images, O orders, L tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from avarc_cli.errors import UsageError
from avarc_cli.scoring.plan import Plan, read_stages
from avarc_cli.words import are, counted

if TYPE_CHECKING:
    from avarc_cli.likelihood import LikelihoodModel

RASTER = "raster"
BOUND = "bound"
MAX_ORDERS = 4096
"""Random orders of an image; scores hardly change beyond a few dozen (docs/orders.md)."""

IntGOL = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Orders:
    """Where the orders of an image come from."""

    count: int
    """O."""
    seed: int = 0
    """Of random orders."""
    fixed_OL: npt.NDArray[np.int64] | None = None
    """The same orders for every image, from a file; None for random ones."""
    text: str = ""
    """What `--orders` said."""
    bound: bool = False
    """Whether each order is a draw of the order-agnostic bound: some tokens are given, the others are scored."""

    @property
    def is_raster(self) -> bool:
        """Whether tokens are scored in the order of their positions, the only order of most models."""
        return self.text == RASTER

    @property
    def file(self) -> str | None:
        """The file that they came from, if they came from one."""
        return None if self.fixed_OL is None else self.text

    def of(self, rows: npt.NDArray[np.int64], length: int, count: int) -> IntGOL | None:
        """The first `count` orders of these images, (G, O, L) int64: element j is scored j-th; None for raster.

        An order is a function of the seed, the image's row and its own number alone, so that it depends neither on the
        other images nor on how many orders there are, and is the same for all candidates. In a draw of the bound, ~p
        (which is -1 - p) stands for a token at position p that is given.
        """
        if self.is_raster:
            return None
        if self.bound:
            return np.array([[random_mask(self.seed, int(row), k, length) for k in range(count)] for row in rows])
        if self.fixed_OL is not None:
            return np.broadcast_to(self.fixed_OL[:count], (len(rows), count, length))
        return np.array([[random_order(self.seed, int(row), k, length) for k in range(count)] for row in rows])

    def check_used(self, plan: Plan, *, asked: bool) -> None:
        """Raises: UsageError where the user asked for more orders than the plan uses."""
        if asked and plan.orders < self.count:
            raise UsageError(
                f"plan '{plan}' uses {plan.orders} of {counted(self.count, 'order')}",
                "a stage averages as many as it names",
                f"write @{self.count} behind its last stage, or --orders {plan.orders}",
            )

    def describe(self, count: int, rule: str) -> str:
        """In words, for the first `count` of them."""
        if self.is_raster:
            return "raster order"
        if self.bound:
            return f"{counted(count, 'random mask')}, seed {self.seed}, for the order-agnostic bound"
        kind = "from a file" if self.fixed_OL is not None else f"at random, seed {self.seed}"
        return f"{counted(count, 'order')} {kind}, combined by {rule}"

    def made_for(self) -> dict[str, str]:
        """What the guarantee of a tuned plan depends on: random orders are as good as any others."""
        if self.fixed_OL is None:
            return {"orders": RASTER if self.is_raster else BOUND if self.bound else "random"}
        return {"orders": f"sha256 {hashlib.sha256(self.fixed_OL.astype('<i8').tobytes()).hexdigest()}"}

    def protocol(self, rule: str) -> dict[str, Any]:
        """What results depend on, for run.json; how many orders there are is part of the plan."""
        kind = self.made_for()["orders"]
        return {"orders": kind, "order_seed": self.seed if kind in ("random", BOUND) else None, "combine": rule}


ONE_RASTER = Orders(1, text=RASTER)


def random_order(seed: int, index: int, number: int, length: int) -> npt.NDArray[np.int64]:
    """A uniformly random permutation of 0 .. length - 1: a function of the arguments alone (`tokens.noise`)."""
    key = np.array([seed, 1], dtype=np.uint64)
    counter = np.array([0, 0, index, number], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=key)).permutation(length)


def random_mask(seed: int, index: int, number: int, length: int) -> npt.NDArray[np.int64]:
    """Draw `number` of an image's masks: a random order whose first tokens are given, marked by ~.

    How many are scored, n, is uniform on 1 .. length over all images, and over the draws of one image as evenly spread
    as possible: n follows the van der Corput sequence, shifted at random for each image.
    """
    key, counter = np.array([seed, 2], dtype=np.uint64), np.array([0, 0, index, 0], dtype=np.uint64)
    shift = np.random.Generator(np.random.Philox(counter=counter, key=key)).random()
    binary = f"{number:b}"[::-1]
    spread = sum(int(bit) / 2 ** (place + 1) for place, bit in enumerate(binary))
    scored = 1 + int((spread + shift) % 1.0 * length)
    order = random_order(seed, index, number, length)
    order[: length - scored] = ~order[: length - scored]
    return order


def positions(order: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The positions that an order names, given ones included."""
    return np.where(order < 0, ~order, order)


def check_orders(text: str) -> None:
    """Raises: UsageError for a value of `--orders` that no model could use; the content of a file is read later."""
    if text == RASTER or _is_file(text):
        if _is_file(text) and not Path(text).is_file():
            raise UsageError(f"there is no file '{text}'", "--orders FILE.npy names permutations (K, L)")
        return
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= MAX_ORDERS and len(text) < 9):
        raise UsageError(
            f"cannot read --orders '{text}'",
            f"it is {RASTER}, a number of random orders from 1 to {MAX_ORDERS}, or a file of permutations (.npy)",
        )


def check_bound(bound: int | None, orders: str | None) -> None:
    """Raises: UsageError where both `--bound` and `--orders` are given."""
    if bound is not None and orders is not None:
        raise UsageError("--bound and --orders exclude each other", "a bound is a mean over all orders")


def parse_orders(text: str, seed: int, length: int) -> Orders:
    """The orders that `--orders` names. Raises: UsageError, also for a file that does not hold permutations (K, L)."""
    check_orders(text)
    if text == RASTER:
        return ONE_RASTER
    if not _is_file(text):
        return Orders(int(text), seed, text=text)
    fixed_OL = _read(Path(text), length)
    return Orders(len(fixed_OL), fixed_OL=fixed_OL, text=text)


def choose_orders(
    asked: str | None, seed: int, model: LikelihoodModel, name: str, *, bound: int | None = None
) -> Orders:
    """The orders to score a model's tokens in.

    Args:
        asked: `--orders`; None for the model's default.
        name: of the model, for messages.
        bound: draws of the order-agnostic bound, in place of orders; only for a model of hidden tokens.
    Raises: UsageError as `parse_orders`, and for a model with a fixed order.
    """
    if bound is not None:
        check_bound(bound, asked)
        return Orders(bound, seed, text=str(bound), bound=True)
    if not model.any_order:
        if asked is not None:
            why = "it gives log p(token | before) in one order only"
            raise UsageError(f"{name} scores its tokens in a fixed order", why, "leave out --orders")
        return ONE_RASTER
    default = str(model.default_orders) if model.default_orders else RASTER
    return parse_orders(default if asked is None else asked, seed, model.segment_ends[-1])


def recorded_orders(protocol: Mapping[str, Any], file: Path | None = None) -> Orders:
    """The orders of a run, from its run.json.

    Args:
        file: that the orders came from; None where it is unknown, or they came from none.
    Raises: UsageError for orders from an unknown file, or from one that holds others now.
    """
    kind = protocol.get("orders", RASTER)
    if kind == RASTER:
        return ONE_RASTER
    if kind not in ("random", BOUND) and file is not None:
        orders = parse_orders(str(file), 0, int(protocol["tokens"]["length"]))
        if (now := orders.made_for()["orders"]) != kind:
            why = f"{kind} in the run, {now} in the file"
            raise UsageError(f"'{file}' holds other orders than the run was made with", why, "put those back")
        return orders
    if kind not in ("random", BOUND):
        why = "run.json records the digest of that file only"
        raise UsageError("the run scored its tokens in orders from a file", why, "classify with --save-likelihood")
    count = max(stage.orders for stage in read_stages(protocol["plan"], len(protocol["candidates"])))
    return Orders(count, int(protocol.get("order_seed") or 0), text=str(count), bound=kind == BOUND)


def _is_file(text: str) -> bool:
    return text.endswith(".npy")


def _read(path: Path, length: int) -> npt.NDArray[np.int64]:
    try:
        orders = np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError, SyntaxError, MemoryError) as error:
        raise UsageError(f"cannot read '{path}'", str(error), "save permutations (K, L) with numpy.save") from None
    what, fix = f"'{path}' holds no orders", f"save int64 permutations (K, {length}) with numpy.save"
    if orders.dtype.kind not in "iu":
        raise UsageError(what, f"its values are {orders.dtype}, not whole numbers", fix)
    if orders.ndim != 2 or not len(orders):
        raise UsageError(what, f"its shape is {orders.shape}, expected are one or more rows", fix)
    if orders.shape[1] != length:
        raise UsageError(what, f"its rows have {orders.shape[1]} positions, the model has {length}", fix)
    if len(orders) > MAX_ORDERS:
        why = f"there {are(len(orders))} {counted(len(orders), 'row')}, at most {MAX_ORDERS} are read"
        raise UsageError(f"'{path}' holds too many orders", why, "keep fewer")
    kept = np.asarray(orders).astype(np.int64)
    for number, row in enumerate(kept):
        outside = row[(row < 0) | (row >= length)]
        if len(outside):
            raise UsageError(what, f"row {number} names position {outside[0]}, from 0 to {length - 1} exist", fix)
        values, counts = np.unique(row, return_counts=True)
        if len(values) < length:
            twice = values[counts > 1][0]
            raise UsageError(what, f"row {number} names position {twice} more than once", fix)
    return kept
