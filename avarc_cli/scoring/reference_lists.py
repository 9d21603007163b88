"""The reference implementation's way to write a plan: three lists, with one number per stage in each.

`10,3,1 / 1,1,3 / 6,10,10` is the paper's plan: candidates that each stage keeps, samples that it averages, and scales
that it scores. As a plan of ours it is `6:10,10:3,10:1:3`.
"""

from __future__ import annotations

import re

from avarc_cli.errors import UsageError

FORM = "write candidates kept / samples / scales, with one number per stage in each: 10,3,1 / 1,1,3 / 6,10,10"


def translate(text: str) -> str:
    """The plan that three lists describe; any other text unchanged.

    Raises: UsageError for lists that describe no plan.
    """
    if "/" not in text or ":" in text or "exhaustive" in text or text.strip().lower().endswith(".json"):
        return text
    lists = [_numbers(part, text) for part in text.split("/")]
    if len(lists) != 3:
        raise _wrong(text, f"there are {len(lists)} lists, not 3")
    kept, samples, scales = lists
    if not len(kept) == len(samples) == len(scales):
        raise _wrong(text, f"the lists have {len(kept)}, {len(samples)} and {len(scales)} numbers")
    if 0 in {*kept, *samples, *scales}:
        raise _wrong(text, "a number is 0")
    if sorted(kept, reverse=True) != kept or kept[-1] != 1:
        raise _wrong(text, "the candidates do not decrease to 1")
    for name, numbers in (("samples", samples), ("scales", scales)):
        if sorted(numbers) != numbers:
            raise _wrong(text, f"the {name} decrease")
    return ",".join(
        f"{segments}:{keep}" + f":{count}" * (count > 1)
        for keep, count, segments in zip(kept, samples, scales, strict=True)
    )


def _numbers(part: str, text: str) -> list[int]:
    numbers = [number.strip() for number in part.strip().strip("[]").split(",")]
    if not all(re.fullmatch("[0-9]{1,9}", number) for number in numbers):
        raise _wrong(text, f"'{part.strip()}' is not a list of whole numbers")
    return [int(number) for number in numbers]


def _wrong(text: str, why: str) -> UsageError:
    return UsageError(f"cannot read plan '{text}'", why, FORM)
