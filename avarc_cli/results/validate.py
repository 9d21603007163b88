"""What the JSON of a run must hold, so that a file that was changed by hand or by a fault is named at once."""

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
# Of run.json, where it is there: one entry a candidate, or for the first, the candidates themselves.
COLUMNS = {"candidates": int, "counts_as": int, "candidate_ids": str, "candidate_names": str}


def require(there: Any, fields: Mapping[str, Any], where: str) -> None:
    """Raises AvarcError unless these fields are there and of these types; numbers are finite."""
    found = there if isinstance(there, Mapping) else {}
    lost = [name for name, kind in fields.items() if name not in found or not _is(found[name], kind)]
    if lost:
        raise AvarcError(f"'{where}' is damaged", f"it has no {', '.join(lost)} that can be read", AGAIN)


def check_record(record: Any, where: str) -> None:
    """Raises AvarcError unless this is a line of predictions.jsonl."""
    require(record, RECORD, where)
    for best in record["best"]:
        require(best, BEST, where)


def check_protocol(protocol: Mapping[str, Any], where: str) -> None:
    """Raises AvarcError unless run.json holds what is read from it."""
    require(protocol, PROTOCOL, where)
    require(protocol["model"], {"name": str}, where)
    require(protocol["tokens"], {"source": str, "preprocess": str}, where)
    count = len(protocol["candidates"])
    lost = [
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
        lost.append("plan")
    if "length" in protocol["tokens"] and not _is(protocol["tokens"]["length"], int):
        lost.append("tokens.length")
    if lost:
        raise AvarcError(f"'{where}' is damaged", f"it has no {', '.join(lost)} that can be read", AGAIN)


def _is(value: Any, kind: Any) -> bool:
    if isinstance(value, bool) and kind is not bool:
        return False
    return isinstance(value, kind) and not (isinstance(value, float) and not math.isfinite(value))
