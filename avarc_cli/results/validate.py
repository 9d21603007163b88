"""Checks the JSON files of a run, so that one that was edited or corrupted is named before it is used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from avarc_cli.errors import AvarcError
from avarc_cli.scoring.plan import STAGE

AGAIN = "delete the run folder and classify again"
ROUNDING = 1e-6  # by which a probability may exceed 1
MAX_CLASS_ID = 10**6  # a run has a name for every id up to its largest
NONE: Mapping[str, Any] = MappingProxyType({})
LONGEST = 2**63 - 1  # as an int64
NUMBER, MAYBE = (int, float), (int, float, type(None))
PROTOCOL = {"plan": str, "candidates": list, "tokens": dict, "model": dict}
PROTOCOL_OPTIONAL = {"precision": str, "bank": (dict, type(None)), "stated": dict, "device_name": str, "options": dict}
PROTOCOL_OPTIONAL |= {"likelihood": str, "unsmooth": NUMBER, "steps": (int, type(None))}
PROTOCOL_OPTIONAL |= {"cascade": dict}
PROTOCOL_OPTIONAL |= {"orders": str, "order_seed": (int, type(None)), "combine": str}
TOKENS = {"source": str, "preprocess": str}
TOKENS_OPTIONAL = {"dataset": str, "length": int, "sample": dict}
SAMPLE = {"images": int, "seed": int}
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
BEST_OPTIONAL = {"score": NUMBER, "tokens": int, "samples": int, "orders": int, "estimated": bool, "precision": str}
RECORD_OPTIONAL = {"decided_in": str, "survivors_checked": bool, "exact_tokens": int}
# Lists of run.json with one entry per candidate; older versions lack some of them.
COLUMNS = {"candidates": int, "counts_as": int, "candidate_ids": str, "candidate_names": str}
METRICS = {"images": int, "labelled": int, "near_ties": int, "tokens_scored_per_image": MAYBE, "bits_per_token": MAYBE}
METRICS_OPTIONAL = {"label_not_a_candidate": int, "seconds_per_image": MAYBE, "expected_calibration_error": NUMBER}
METRICS_LABELLED = {"accuracy": NUMBER, "accuracy_95": list, "correct": int, "top_k": dict}


def require(there: Any, fields: Mapping[str, Any], where: str, optional: Mapping[str, Any] = NONE) -> None:
    """Raises AvarcError unless these fields exist and have these types; numbers must be finite, and fit into 64 bits.

    Args:
        optional: fields that may be missing.
    """
    found = there if isinstance(there, Mapping) else {}
    invalid = [name for name, kind in fields.items() if name not in found or not _is(found[name], kind)]
    invalid += [name for name, kind in optional.items() if name in found and not _is(found[name], kind)]
    if invalid:
        raise _corrupt(where, invalid)


def check_record(record: Any, where: str) -> None:
    """Raises AvarcError unless this is a line of predictions.jsonl."""
    require(record, RECORD, where, RECORD_OPTIONAL)
    invalid = [name for name in ("index", "label_rank") if (record[name] or 0) < 0]
    invalid += [] if 0 <= record["posterior"] <= 1 + ROUNDING else ["posterior"]
    if invalid:
        raise _corrupt(where, invalid)
    for best in record["best"]:
        require(best, BEST, where, BEST_OPTIONAL)


def check_stages(detail: Any, candidates: int) -> list[dict[str, Any]]:
    """The stages of json/INDEX.json.

    Raises: ValueError unless each has a list of survivors, and the first a log-likelihood for each of the run's
        candidates.
    """
    stages: Any = detail.get("stages") if isinstance(detail, dict) else None
    if not _is(stages, list) or not all(isinstance(each, dict) and _is(each.get("survivors"), list) for each in stages):
        raise ValueError("it has no list of stages with their survivors")
    sums: Any = stages[0].get("log_likelihood") if stages else None
    if not _is(sums, list) or len(sums) != candidates or not all(_is(value, NUMBER) for value in sums):
        raise ValueError(f"its first stage has no log-likelihood for each of {candidates} candidates")
    return list(stages)


def check_metrics(metrics: Any, where: str) -> None:
    """Raises AvarcError unless metrics.json has what a report shows."""
    require(metrics, METRICS, where, METRICS_OPTIONAL)
    if not metrics["labelled"]:
        return
    require(metrics, METRICS_LABELLED, where)
    if len(metrics["accuracy_95"]) != 2 or not all(_is(value, NUMBER) for value in metrics["accuracy_95"]):
        raise _corrupt(where, ["accuracy_95"])
    require(metrics["top_k"], dict.fromkeys(metrics["top_k"], NUMBER), where)


def check_protocol(protocol: Mapping[str, Any], where: str) -> None:
    """Raises AvarcError unless run.json has valid values where it is read."""
    require(protocol, PROTOCOL, where, PROTOCOL_OPTIONAL)
    require(protocol["model"], {"name": str}, where)
    require(protocol["tokens"], TOKENS, where, TOKENS_OPTIONAL)
    if "sample" in protocol["tokens"]:
        require(protocol["tokens"]["sample"], SAMPLE, where)
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
    if not all(0 <= class_id <= MAX_CLASS_ID for class_id in protocol["candidates"] if _is(class_id, int)):
        invalid.append("candidates")
    if invalid:
        raise _corrupt(where, invalid)


def _corrupt(where: str, fields: list[str]) -> AvarcError:
    return AvarcError(f"'{where}' is corrupt", f"missing or invalid: {', '.join(fields)}", AGAIN)


def _is(value: Any, kind: Any) -> bool:
    if isinstance(value, bool) and kind is not bool:
        return False
    if isinstance(value, int):
        return isinstance(value, kind) and abs(value) <= LONGEST
    return isinstance(value, kind) and not (isinstance(value, float) and not math.isfinite(value))
