"""A run of ten images through a model that is computed by hand, with as little memory as a test wants."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import numpy as np
import torch
from torch import Tensor

from avarc_cli.data.labels import LabelSpace
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.results.records import CandidateLabels
from avarc_cli.results.run import Run
from avarc_cli.scoring.plan import parse_plan
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.scores import score_function
from avarc_cli.tokens import TokenCache

NAMES = tuple("abcd")


class SmallModel(LikelihoodModel):
    """A likelihood model of four classes and two segments that runs out of memory beyond `capacity` tokens at once.

    A token's log-probability is the negative squared difference between token and class id.
    """

    segment_ends = (4, 16)
    num_classes = 4
    unconditional = None
    flops_per_token = 1

    def __init__(self, capacity: int, error: BaseException | None = None) -> None:
        """`error` is raised beyond the capacity; CUDA's by default."""
        self.capacity, self.error = capacity, error or torch.OutOfMemoryError("CUDA out of memory")

    def begin(
        self, tokens_BL: Tensor, sequence_P: Tensor, class_id_P: Tensor, order_BL: Tensor | None = None
    ) -> dict[str, Any]:
        return {"tokens": tokens_BL[sequence_P], "class": class_id_P, "at": 0}

    def extend(self, state: dict[str, Any], stop: int, *, keep_cache_segments: int) -> Tensor:
        start, end = (self.segment_ends[state["at"] - 1] if state["at"] else 0), self.segment_ends[stop - 1]
        if len(state["class"]) * (end - start) > self.capacity:
            raise self.error
        state["at"] = stop
        distance_PT: Tensor = state["tokens"][:, start:end] - state["class"][:, None]
        return -(distance_PT**2).float()

    def select(self, state: dict[str, Any], keep_Q: Tensor) -> dict[str, Any]:
        return state | {"tokens": state["tokens"][keep_Q], "class": state["class"][keep_Q]}

    def fork(self, *args: Any) -> NoReturn:
        raise NotImplementedError("there is one sample per image")

    def sample(self, *args: Any, **options: Any) -> NoReturn:
        raise NotImplementedError("nothing is sampled here")

    def bytes_per_token(self, *, cached: bool) -> int:
        return 1


@dataclass(frozen=True)
class SmallCache:
    """Images, each of whose tokens are the id of its class, or of the next class where the image changed."""

    images: int = 10
    changed: frozenset[int] = frozenset()

    @property
    def paths(self) -> Sequence[str]:
        return [f"{i}.png" for i in range(self.images)]

    def __len__(self) -> int:
        return self.images

    def tokens(self, rows: Sequence[int]) -> np.ndarray:
        class_id = np.asarray(rows) + np.isin(rows, list(self.changed))
        return np.repeat(class_id % 4, 16).reshape(-1, 1, 16)

    def in_file(self, rows: np.ndarray) -> np.ndarray:
        return rows


def make_run(
    model: SmallModel,
    tokens_per_batch: int = 512,
    plan: str = "exhaustive",
    *,
    images: int = 10,
    changed: Iterable[int] = (),
    **more: Any,
) -> Run:
    """A run of this model; 64 tokens are one image. `more`: other fields of the run."""
    return Run(
        model=model,
        cache=cast(TokenCache, SmallCache(images, frozenset(changed))),
        labels=np.arange(images) % 4,
        request=ScoringRequest(
            candidates=np.arange(4),
            plan=parse_plan(plan, segments=2, candidates=4, samples=1),
            score=score_function("log-likelihood"),
            log_prior=np.zeros(4),
            tokens_per_batch=tokens_per_batch,
            keep_tokens=more.get("save_likelihood", False),
        ),
        candidate_labels=CandidateLabels(LabelSpace("letters", NAMES, NAMES), np.arange(4)),
        precision="fp32",
        protocol={"plan": plan} | {name: value for name, value in more.items() if value},
        **more,
    )
