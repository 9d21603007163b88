"""What is asked for next, computed in a thread while what was asked for is in use."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class Ahead(Generic[_Key, _Value]):
    """A function whose values are computed ahead, in one thread."""

    def __init__(self, make: Callable[[_Key], _Value]) -> None:
        self._make, self._thread = make, ThreadPoolExecutor(1)
        self._made: dict[_Key, Future[_Value]] = {}

    def __call__(self, key: _Key, following: _Key | None) -> _Value:
        """The value of `key`, used once, while that of `following`, if any, is begun. Raises: as the function."""
        value = self._made.pop(key, None) or self._thread.submit(self._make, key)
        if following is not None and following not in self._made:
            self._made[following] = self._thread.submit(self._make, following)
        return value.result()
