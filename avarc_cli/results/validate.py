"""Checks the JSON files of a run, so that one that was edited or corrupted is named before it is used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from avarc_cli.errors import AvarcError
from avarc_cli.scoring.plan import STAGE

AGAIN = "delete the run folder and classify again"
NUMBER, MAYBE = (int, float), (int, float, type(None))
PROTOCOL = {"plan": str, "candidates": list, "tokens": dict, "model": dict}
RECORD = {
    "index": int,
    "path": str,
    "prediction": int,
    "prediction_id": str,
    "prediction_name": str,
    "label": (int, type(None)),
    "label_id": (str, type(None)),
    "label_name": (str, type(None)),
    "label_rank": (int, type(None)),
    "posterior": NUMBER,
    "score": NUMBER,
    "margin": MAYBE,
    "near_tie": bool,
    "bits_per_token": NUMBER,
    "tokens_scored": int,
    "best": list,
}
BEST = {"class": int, "posterior": NUMBER}
# Lists of run.json with one entry per candidate; older versions lack some of them.
COLUMNS = {"candidates": int, "counts_as": int, "candidate_ids": str, "candidate_names": str}


def require(there: Any, fields: Mapping[str, Any], where: str) -> None:
    """Raises AvarcError unless these fields exist and have these types; numbers must be finite."""
    found = there if isinstance(there, Mapping) else {}
    invalid = [name for name, kind in fields.items() if name not in found or not _is(found[name], kind)]
    if invalid:
        raise _corrupt(where, invalid)


def check_record(record: Any, where: str) -> None:
    """Raises AvarcError unless this is a line of predictions.jsonl."""
    require(record, RECORD, where)
    for best in record["best"]:
        require(best, BEST, where)


def check_protocol(protocol: Mapping[str, Any], where: str) -> None:
    """Raises AvarcError unless run.json has valid values where it is read."""
    require(protocol, PROTOCOL, where)
    require(protocol["model"], {"name": str}, where)
    require(protocol["tokens"], {"source": str, "preprocess": str}, where)
    count = len(protocol["candidates"])
    invalid = [
        name
        for name, kind in COLUMNS.items()
        if name in protocol
        and not (
            _is(protocol[name], list)
            and len(protocol[name]) == count > 0
            and all(_is(value, kind) for value in protocol[name])
        )
    ]
    if not all(STAGE.fullmatch(part.strip()) for part in protocol["plan"].split(",")):
        invalid.append("plan")
    if "length" in protocol["tokens"] and not _is(protocol["tokens"]["length"], int):
        invalid.append("tokens.length")
    if invalid:
        raise _corrupt(where, invalid)


def _corrupt(where: str, fields: list[str]) -> AvarcError:
    return AvarcError(f"'{where}' is corrupt", f"missing or invalid: {', '.join(fields)}", AGAIN)


def _is(value: Any, kind: Any) -> bool:
    if isinstance(value, bool) and kind is not bool:
        return False
    return isinstance(value, kind) and not (isinstance(value, float) and not math.isfinite(value))
