"""Whether a run folder holds the run that is asked for, and which of its predictions a continued run keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from avarc_cli.errors import UsageError, describe_differences

Record: TypeAlias = "dict[str, Any]"

AreCurrent: TypeAlias = Callable[[Sequence[Record]], "list[bool | None]"]
"""Of each line of predictions: whether it is of the image and the tokens that the run has now; None if it does not say
what tokens it is of, as in earlier versions."""

# What does not decide about the numbers, or only about their last bits, or is a name of what has a digest.
NOTES = frozenset({"threads", "label_space", "options"})
NAMES = frozenset({"name", "file"})


def differences(recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The fields of run.json that make two requests different, with both values; empty for the same request."""
    # Earlier versions did not record whether a limit was given.
    count = "limit" if "limit" in _tokens(recorded) else "images"
    return describe_differences(_decisive(recorded, count), _decisive(asked, count))


def is_same(recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    """Whether two requests are the same, and of images that are called the same."""
    return not differences(recorded, asked) and _tokens(recorded).get("source") == _tokens(asked).get("source")


def _decisive(protocol: Mapping[str, Any], count: str) -> dict[str, Any]:
    kept = {name: value for name, value in protocol.items() if name not in NOTES}
    for part in ("model", "tokenizer"):
        if isinstance(kept.get(part), Mapping) and "sha256" in kept[part]:
            kept[part] = {name: value for name, value in kept[part].items() if name not in NAMES}
    if "tokens" in kept:
        # The source is decided by the predictions themselves (`Kept.check_source`).
        notes = {"source", "images", "limit"} - {count}
        kept["tokens"] = {name: value for name, value in _tokens(protocol).items() if name not in notes}
    return kept


def _tokens(protocol: Mapping[str, Any]) -> Mapping[str, Any]:
    tokens = protocol.get("tokens")
    return tokens if isinstance(tokens, Mapping) else {}


@dataclass(frozen=True)
class Kept:
    """What a continued run keeps of its predictions."""

    records: list[Record]
    """Those of whole groups."""
    proven: int
    """Number of predictions that are known to be of the present tokens."""
    outdated: int
    """Number of predictions of other tokens."""
    unknown: int
    """Number of predictions that do not say of what tokens they are."""

    @classmethod
    def of(cls, records: Sequence[Record], are_current: AreCurrent, images: int, group: int) -> Kept:
        """Of these predictions of a run of `images` images, which are scored in groups."""
        current = are_current(records)
        kept = [record for record, good in zip(records, current, strict=True) if good is not False]
        sizes = Counter(record["index"] // group for record in kept)
        whole = [r for r in kept if sizes[r["index"] // group] == min(group, images - r["index"] // group * group)]
        return cls(whole, current.count(True), current.count(False), current.count(None))

    def check_source(self, where: str, recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> str | None:
        """What the run's source was called, where it is called otherwise now; None where it is the same.

        Raises: UsageError when most predictions are not of the same tokens: then it is another source.
        """
        there, here = (_tokens(protocol).get("source") for protocol in (recorded, asked))
        if there == here:
            return None
        others = self.outdated + self.unknown
        if others > self.proven:
            why = f"tokens.source: {there} there, {here} here; {others} of {others + self.proven} images differ"
            raise another_run(where, why)
        return str(there)


def another_run(where: str, why: str) -> UsageError:
    """The error for a folder with the run of another request."""
    fix = "repeat that run's options to continue it, name another --out, or replace it with --overwrite"
    return UsageError(f"'{where}' holds another run", why, fix)
