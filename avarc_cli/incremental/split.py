"""Parsing of --base and --tasks: which classes are known from the start, and which are added when."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from avarc_cli.data.labels import close_names, normalize
from avarc_cli.errors import MAX_NAMES, UsageError

_RANGE = re.compile(r"([0-9]{1,9})-([0-9]{1,9})")
HOW = "write classes as 0+1+2, ranges of numbers as 0-4, tasks with a comma between: --base 0-4 --tasks 5-6,7-9"


@dataclass(frozen=True)
class Split:
    """Class names of each task, in order; the first is the base."""

    tasks: tuple[tuple[str, ...], ...]  # class names of each

    @property
    def base(self) -> tuple[str, ...]:
        """Classes that are known from the start."""
        return self.tasks[0]

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes, in the order in which they come."""
        return tuple(name for task in self.tasks for name in task)

    @property
    def task_indices(self) -> list[list[int]]:
        """Positions in `classes` of each task's classes."""
        return [[self.classes.index(name) for name in task] for task in self.tasks]

    @property
    def titles(self) -> tuple[str, ...]:
        """A short name of each task, for tables."""
        return tuple(task[0] if len(task) == 1 else f"{task[0]}..{task[-1]}" for task in self.tasks)


def parse_split(base: str, tasks: str, class_names: Sequence[str]) -> Split:
    """The split that --base and --tasks describe.

    base: one group of classes; tasks: groups with a comma between. A group: names with `+` between, and ranges of
    numbers (`5-7`), where the classes are called so.
    Raises: UsageError for unknown classes (with the closest names), and for one that appears twice.
    """
    groups = [_group(base, class_names), *(_group(task, class_names) for task in tasks.split(","))]
    listed = [name for group in groups for name in group]
    if twice := sorted({name for name in listed if listed.count(name) > 1}):
        raise UsageError(f"class '{twice[0]}' appears twice", f"in --base '{base}' and --tasks '{tasks}'", HOW)
    return Split(tuple(groups))


def _group(text: str, class_names: Sequence[str]) -> tuple[str, ...]:
    known = {normalize(name): name for name in class_names}
    names: list[str] = []
    for part in (p.strip() for p in text.replace(",", "+").split("+")):
        numbers = _RANGE.fullmatch(part)
        span = range(int(numbers[1]), int(numbers[2]) + 1) if numbers and normalize(part) not in known else range(0)
        names += [str(n) for n in span] if 0 < len(span) <= len(known) else [part]  # a longer one has unknown classes
    unknown = [name for name in names if normalize(name) not in known]
    if unknown:
        close = close_names(unknown[0], class_names) or list(class_names[:MAX_NAMES])
        raise UsageError(f"the data has no class '{unknown[0]}'", f"its classes are named like {', '.join(close)}", HOW)
    return tuple(known[normalize(name)] for name in names)
