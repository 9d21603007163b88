"""Finished run folders that are written by hand, without a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Line:
    """An image and its prediction; classes by name."""

    path: str
    said: str
    label: str | None = None
    posterior: float = 0.9
    tokens: int = 16
    near_tie: bool = False
    digest: str | None = None


def write_run(
    folder: Path,
    lines: Sequence[Line],
    *,
    classes: Sequence[str],
    ids: Sequence[str] | None = None,
    seconds: float = 0.5,
    source: str = "images",
    **protocol: Any,
) -> Path:
    """A run of these images.

    Args:
        classes: names of the candidates, in the order of their numbers. ids: of each; the names if None.
        protocol: further fields of run.json.
    """
    own = dict(zip(classes, ids or classes, strict=True))
    records = []
    for index, line in enumerate(lines):
        number = list(classes).index(line.said)
        known = line.label is not None
        rank = None if line.label not in own else 0 if line.label == line.said else 1
        records.append(
            {
                "index": index,
                "path": line.path,
                "prediction": number,
                "prediction_id": own[line.said],
                "prediction_name": line.said,
                "label": (list(classes).index(line.label) if line.label in own else 99) if known else None,
                "label_id": own.get(line.label or "", line.label),
                "label_name": line.label,
                "label_rank": rank,
                "posterior": line.posterior,
                "score": -1.0,
                "margin": 1.0,
                "near_tie": line.near_tie,
                "bits_per_token": 1.0,
                "tokens_scored": line.tokens,
                "best": [{"class": number, "posterior": line.posterior}],
            }
            | ({"tokens_digest": line.digest} if line.digest else {})
        )
    folder.mkdir(parents=True)
    run = {
        "plan": "2:1",
        "model": {"name": "handmade", "sha256": "0" * 64},
        "tokenizer": {"name": "handmade", "sha256": "1" * 64},
        "tokens": {"source": source, "preprocess": "none 8x8", "length": 8},
        "candidates": list(range(len(classes))),
        "candidate_ids": list(own.values()),
        "candidate_names": list(classes),
        "device_name": "test",
    }
    metrics = {
        "images": len(lines),
        "labelled": 0,
        "near_ties": 0,
        "tokens_scored_per_image": 1.0,
        "bits_per_token": 1.0,
        "seconds_per_image": seconds,
    }
    (folder / "run.json").write_text(json.dumps(run | protocol))
    (folder / "predictions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder
