"""Numbers in sentences."""

from __future__ import annotations

from collections.abc import Iterable


def counted(number: int, noun: str) -> str:
    """A number of things: "1 image", "2 images", "1,200 classes".

    Args:
        noun: in the singular; the last word of it becomes the plural ("tar file", "unreadable image").
    """
    return f"{number:,} {agreeing(number, noun)}"


def agreeing(number: int, noun: str) -> str:
    """The noun in singular or plural, without the number, for where that is written in another way."""
    return noun if number == 1 else plural(noun)


def are(number: int) -> str:
    """The verb to a number of things: "is" for one, "are" for more."""
    return "is" if number == 1 else "are"


def plural(noun: str) -> str:
    """The regular plural of a noun: images, classes, batches. Units of measure (MB) have none."""
    if noun.isupper():
        return noun
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"


def listed(words: Iterable[str], last: str = "and") -> str:
    """Words as a sentence lists them: "a", "a and b", "a, b and c".

    Args:
        last: what joins the last two.
    """
    *first, end = words
    return f"{', '.join(first)} {last} {end}" if first else end


def percent(fraction: float) -> str:
    """A probability for people; what is nearly certain or nearly impossible does not read 100 % or 0 %."""
    if 0 < fraction < 0.0005:
        return "< 0.1%"
    return f"{fraction:.1%}" if fraction < 0.9995 else "> 99.9%"
