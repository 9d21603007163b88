"""The classifier: a model, a plan and candidates put together. What the commands compose, usable on its own.

from avarc_cli import load_classifier
classifier = load_classifier("digits")
print(classifier.classify("seven.png").top(3))
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avarc_cli import environment
from avarc_cli.data.datasets import ImageSet, open_images
from avarc_cli.data.labels import match, resolve_classes
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.errors import UnreadableImage, UsageError
from avarc_cli.loading import LoadedModel, load_model
from avarc_cli.results import records
from avarc_cli.results.run import Run, classify
from avarc_cli.scoring.batching import auto_tokens
from avarc_cli.scoring.engine import Request
from avarc_cli.scoring.plan import Plan, parse_plan
from avarc_cli.scoring.scores import score_function
from avarc_cli.tokens.cache import TokenCache, read
from avarc_cli.tokens.encode import encode

MAX_SAMPLES = 1 << 16  # of images that are yet to be encoded, as many as the plan asks for


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to score.

    plan: "exhaustive", "paper" or stages (scoring.plan); classes: candidates as in data.labels.resolve_classes, None
    for all; priors: file of `class<TAB>weight` lines, None for equal; score: name of a score function;
    batch_size: pairs of a forward pass as "auto" or a number; deterministic: the same batch shapes in every run.
    """

    plan: str = "exhaustive"
    classes: str | None = None
    priors: str | None = None
    score: str = "log-likelihood"
    batch_size: str = "auto"
    deterministic: bool = False


@dataclass(frozen=True)
class Prediction:
    """One image's classes, best first: (name, posterior probability, score in nats)."""

    path: str
    ranking: tuple[tuple[str, float, float], ...]

    @property
    def name(self) -> str:
        """The predicted class."""
        return self.ranking[0][0]

    @property
    def probability(self) -> float:
        """Its posterior probability among the candidates."""
        return self.ranking[0][1]

    def top(self, k: int) -> list[tuple[str, float]]:
        """The best k classes with their posterior probabilities."""
        return [(name, probability) for name, probability, _ in self.ranking[:k]]


class Classifier:
    """A loaded model with its options. Make one with `load_classifier`."""

    def __init__(self, model: LoadedModel, options: Options) -> None:
        self.model, self.options = model, options
        likelihood, classes = model.likelihood, model.classes
        chosen = (
            resolve_classes(options.classes, classes) if options.classes is not None else range(likelihood.num_classes)
        )
        self.candidates = np.array(list(chosen), dtype=np.int64)
        self.log_prior = _log_prior(options.priors, self.candidates, model)
        self.score = score_function(options.score)
        if self.score.needs_unconditional and likelihood.unconditional is None:
            raise UsageError(
                f"{model.name} gives no p(x)", f"the score '{options.score}' needs it", "use log-likelihood"
            )
        torch.use_deterministic_algorithms(options.deterministic)

    def plan(self, samples: int = MAX_SAMPLES, *, keep_tokens: bool = False) -> Plan:
        """The plan for images with so many samples.

        Raises: UsageError for one that cannot be carried out, or that does not give the token log-probabilities of
            every class where those are asked for.
        """
        segments = len(self.model.likelihood.segment_ends)
        plan = parse_plan(self.options.plan, segments=segments, candidates=len(self.candidates), samples=samples)
        if keep_tokens and not (plan.single_stage and plan.stages[0].segments == segments):
            raise UsageError(
                f"token log-probabilities cannot be saved with plan '{plan}'",
                "it scores some classes on a part of the tokens only",
                "use --plan exhaustive",
            )
        return plan

    def request(self, samples: int, *, keep_tokens: bool = False, tokens_per_batch: int | None = None) -> Request:
        """What the engine is asked for. `tokens_per_batch` continues an earlier run's automatic choice."""
        plan = self.plan(samples, keep_tokens=keep_tokens)
        return Request(
            candidates=self.candidates,
            plan=plan,
            score=self.score,
            log_prior=self.log_prior,
            tokens_per_batch=self._tokens_per_batch(plan, tokens_per_batch),
            keep_tokens=keep_tokens,
        )

    def run(
        self, cache: TokenCache, request: Request, *, save_json: bool = False, save_likelihood: bool = False
    ) -> Run:
        """A run over a token cache. Raises CacheError when the cache is another tokenizer's."""
        cache.check(self.model.tokenizer)
        class_of = np.append(
            match(cache.header.class_names, self.model.classes), records.UNKNOWN
        )  # last answers for -1
        return Run(
            model=self.model.likelihood,
            cache=cache,
            labels=class_of[cache.labels],
            request=request,
            naming=records.Naming(self.model.classes, self.candidates),
            precision=self.model.precision,
            protocol=self._protocol(cache, request) | {"save_json": save_json, "save_likelihood": save_likelihood},
            save_json=save_json,
            save_likelihood=save_likelihood,
            fixed_shapes=self.options.deterministic,
        )

    def encode(self, images: ImageSet, out: Path, **options: Any) -> Any:
        """Encode images for this classifier, with the samples its plan needs (tokens.encode has the options)."""
        tokenizer = self.model.tokenizer
        preprocess = Preprocess(options.pop("preprocess", None) or tokenizer.preprocess, tokenizer.image_size)
        return encode(images, tokenizer, preprocess, out, samples=self.plan().samples, **options)

    def classify(self, image: str | Path) -> Prediction:
        """Classify one image file. Raises as `classify_all`."""
        return self.classify_all([image])[0]

    def classify_all(self, images: Sequence[str | Path]) -> list[Prediction]:
        """Classify image files; one prediction each, in order.

        Raises: UsageError for a file that does not exist; AvarcError for what is no readable image.
        """
        paths = [Path(image) for image in images]
        with tempfile.TemporaryDirectory() as folder:
            encoded = self.encode(open_images(paths), Path(folder) / "tokens.h5")
            if encoded.unreadable:
                name, reason = encoded.unreadable[0]
                raise UnreadableImage(f"cannot read '{name}'", reason)
            cache = read(encoded.path)
            result = classify(self.run(cache, self.request(cache.header.samples)), None, keep_scores=True)
        naming = records.Naming(self.model.classes, self.candidates)
        return [
            Prediction(
                image.path,
                tuple(
                    (best["name"], best["posterior"], best["score"])
                    for best in records.best(scores, naming, len(self.candidates))
                ),
            )
            for image, scores in result.scores
        ]

    def _tokens_per_batch(self, plan: Plan, earlier: int | None) -> int:
        text, likelihood = self.options.batch_size, self.model.likelihood
        if text == "auto":
            device = torch.device(self.model.device)
            return earlier or auto_tokens(likelihood, plan, device, fixed=self.options.deterministic)
        if not text.isdecimal() or int(text) < 1:
            raise UsageError(f"batch size '{text}'", "it is a number of pairs of at least 1, or auto")
        return int(text) * likelihood.segment_ends[-1]

    def _protocol(self, cache: TokenCache, request: Request) -> dict[str, Any]:
        """run.json: everything that the numbers depend on."""
        header = cache.header
        fields = ("source", "images_sha256", "preprocess", "samples", "sigma", "seed")
        tokens = {name: getattr(header, name) for name in fields}
        tokens |= {"images": len(cache), "length": self.model.likelihood.segment_ends[-1]}
        classes = self.model.classes
        return self.model.protocol() | {
            "tokens": tokens,
            "plan": str(request.plan),
            "score": self.score.name,
            "candidates": self.candidates.tolist(),
            "candidate_ids": [classes.ids[c] for c in self.candidates],
            "candidate_names": [classes.names[c] for c in self.candidates],
            "log_prior": self.log_prior.tolist() if self.options.priors else None,
            "tokens_per_batch": request.tokens_per_batch,
            "deterministic": self.options.deterministic,
            "attention": "torch scaled_dot_product_attention, one unmasked call a segment",
            "kernels": "torch",
            "threads": torch.get_num_threads(),
            "versions": environment.versions(),
        }


def load_classifier(
    model: str = "digits",
    tokenizer: str | None = None,
    *,
    class_names: str | None = None,
    precision: str = "fp32",
    device: str = "auto",
    **options: Any,
) -> Classifier:
    """A classifier ready to use.

    Args:
        model: name of a model card (`avarc models`), or path of a checkpoint; then `tokenizer` is needed.
        tokenizer: name of a tokenizer card, or path, in place of the implied one.
        class_names: text file with one class a line, for a checkpoint that does not name its classes.
        precision: "fp32", "tf32", "bf16" or "fp16". device: "auto", "cpu", "cuda", ...
        **options: fields of `Options`: plan, classes, priors, score, batch_size, deterministic.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch asks for before deterministic runs on CUDA
    loaded = load_model(model, tokenizer, class_names=class_names, precision=precision, device=device)
    return Classifier(loaded, Options(**options))


def _log_prior(path: str | None, candidates: np.ndarray, model: LoadedModel) -> np.ndarray:
    """Log of the normalised weights of the candidates, (N,) float64; zeros without priors."""
    if path is None:
        return np.zeros(len(candidates))
    weights = _read_weights(Path(path))
    index = match(list(weights), model.classes)
    unknown = [name for name, i in zip(weights, index, strict=True) if i < 0]
    by_class: Mapping[int, float] = dict(zip(index.tolist(), weights.values(), strict=True))
    without = [model.classes.ids[c] for c in candidates if c not in by_class]
    if unknown or without:
        names = ", ".join((unknown or without)[:5])
        what = f"no classes of {model.name}: {names}" if unknown else f"candidates without a prior: {names}"
        raise UsageError(f"the priors in {path} do not fit", what, "give every candidate one line: class<TAB>weight")
    log_weight: np.ndarray = np.log([by_class[int(c)] for c in candidates])
    log_weight -= np.logaddexp.reduce(log_weight)
    return log_weight


def _read_weights(path: Path) -> dict[str, float]:
    try:
        lines = [line.split("\t") for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
        weights = {name: float(weight) for name, weight in lines}
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the priors in {path}", str(error), "write one class<TAB>weight a line") from None
    if not all(math.isfinite(w) and w > 0 for w in weights.values()):
        raise UsageError(f"a prior in {path} is not positive", "every class needs a weight above 0")
    return weights
