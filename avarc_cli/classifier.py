"""The classifier: a model, a plan and candidates put together. What the commands compose, usable on its own.

from avarc_cli import load_classifier
classifier = load_classifier("digits")
print(classifier.classify("seven.png").top(3))
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avarc_cli import environment
from avarc_cli.data.datasets import ImageSet, open_images
from avarc_cli.data.known import datasets
from avarc_cli.data.label_mapping import default_candidates, map_labels
from avarc_cli.data.labels import match, resolve_classes
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.errors import CacheError, UnreadableImage, UsageError
from avarc_cli.loaded import LoadedModel
from avarc_cli.loading import load_model
from avarc_cli.results import records, tuned
from avarc_cli.results.run import Run, classify
from avarc_cli.scoring.batching import auto_tokens, max_cached_tokens, parse_bytes
from avarc_cli.scoring.plan import Plan, parse_plan
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.scores import score_function
from avarc_cli.tokens.cache import TokenCache, read
from avarc_cli.tokens.encode import EncodeResult, encode
from avarc_cli.tokens.encoder import default_workers
from avarc_cli.tokens.verify import verify

AUTO = "auto"  # --plan: the tuned plan that lies beside the model's weights; --batch-size: what fits
# What run.json says of a cache's header:
RECORDED = ("source", "dataset", "images_sha256", "preprocess", "precision", "patch_nums", "samples", "sigma", "seed")
MAX_SAMPLES = 1 << 16  # of images that are yet to be encoded, as many as the plan asks for


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to score.

    plan: "exhaustive", "paper" or stages (scoring.plan), a file FILE.json that `avarc tune` wrote, or "auto" for the
    one that comes with the model; classes: candidates as in data.labels.resolve_classes, None
    for those of the dataset; dataset: the known one that the images are of (data.known), else "";
    priors: file of `class<TAB>weight` lines, None for equal; score: name of a score function;
    batch_size: pairs of a forward pass as "auto" or a number; deterministic: the same batch shapes in every run;
    offsets: add the offsets that a class bank stores to the scores of its classes;
    memory: what the run may take, weights included, as "8GiB" or "500MiB"; None without a limit.
    """

    plan: str = "exhaustive"
    classes: str | None = None
    dataset: str = ""
    priors: str | None = None
    score: str = "log-likelihood"
    batch_size: str = "auto"
    deterministic: bool = False
    offsets: bool = True
    memory: str | None = None


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
        self.batch_size = None if options.batch_size == AUTO else _parse_batch_size(options.batch_size)
        self.memory = None if options.memory is None else parse_bytes(options.memory)
        likelihood = model.likelihood
        self.candidates, self.candidates_of = _candidates(options, model)
        self.log_prior = _log_prior(options.priors, self.candidates, model)
        offset_N = model.offsets[self.candidates]  # of a whole image; a part of it has its share
        self.offset_per_token = offset_N / likelihood.segment_ends[-1] if options.offsets else None
        self.tuned = self._tuned_plan()
        self.score = score_function(options.score)
        if self.score.needs_unconditional and likelihood.unconditional is None:
            raise UsageError(
                f"{model.name} gives no p(x)", f"the score '{options.score}' needs it", "use log-likelihood"
            )
        if options.deterministic != torch.are_deterministic_algorithms_enabled():
            torch.use_deterministic_algorithms(options.deterministic)  # it imports the compiler: 1.7 s and 150 MB

    def plan(self, samples: int = MAX_SAMPLES, *, keep_tokens: bool = False) -> Plan:
        """The plan for images with so many samples.

        Raises: UsageError for one that cannot be carried out, or that does not give the token log-probabilities of
            every class where those are asked for.
        """
        segments = len(self.model.likelihood.segment_ends)
        text = str(self.tuned.plan) if self.tuned else self.options.plan
        plan = parse_plan(text, segments=segments, candidates=len(self.candidates), samples=samples)
        if self.tuned:
            plan = self.tuned.plan  # the same, with what it is expected to leave
        if keep_tokens and not (plan.single_stage and plan.stages[0].segments == segments):
            raise UsageError(
                f"token log-probabilities cannot be saved with plan '{plan}'",
                "it scores some classes on a part of the tokens only",
                "use --plan exhaustive",
            )
        return plan

    def request(
        self,
        samples: int,
        *,
        keep_tokens: bool = False,
        keep_segments: bool = False,
        tokens_per_batch: int | None = None,
    ) -> ScoringRequest:
        """What the engine is asked for. `tokens_per_batch` continues an earlier run's automatic choice."""
        plan = self.plan(samples, keep_tokens=keep_tokens)
        return ScoringRequest(
            candidates=self.candidates,
            plan=plan,
            score=self.score,
            log_prior=self.log_prior,
            offset_per_token=self.offset_per_token,
            tokens_per_batch=self._tokens_per_batch(plan, tokens_per_batch),
            max_cached_tokens=max_cached_tokens(self.model.likelihood, self.memory),
            temperature=(self.tuned.temperature if self.tuned else None) or 1.0,
            reuse_prefix=not self.options.deterministic,
            keep_tokens=keep_tokens,
            keep_segments=keep_segments,
        )

    def run(
        self, cache: TokenCache, request: ScoringRequest, *, save_json: bool = False, save_likelihood: bool = False
    ) -> Run:
        """A run over a token cache.

        Raises: CacheError when the cache is another tokenizer's, empty, or differs from its checksums; UsageError where
            a tuned plan is for other ones.
        """
        cache.check(self.model.tokenizer)
        if not len(cache):
            raise CacheError(f"'{cache.path}' holds no images", "there is nothing to classify")
        verify(cache).check(cache.path)
        if self.tuned:
            self.tuned.check(self.tokens_made_for(cache, request.plan.samples), self._plan_path)
        targets = map_labels(cache.header.class_names, cache.header.dataset, self.model.classes)
        return Run(
            model=self.model.likelihood,
            cache=cache,
            labels=targets.to_model(cache.labels),
            request=request,
            candidate_labels=records.CandidateLabels(self.model.classes, self.candidates, targets),
            precision=self.model.precision,
            protocol=self._protocol(cache, request)
            | {
                "counts_as": targets.counts_as[self.candidates].tolist(),
                "save_json": save_json,
                "save_likelihood": save_likelihood,
            },
            save_json=save_json,
            save_likelihood=save_likelihood,
            save_segments=request.keep_segments,
            fixed_shapes=self.options.deterministic,
        )

    def encode(
        self, images: ImageSet, out: Path, *, preprocess: str | None = None, workers: int | None = None, **options: Any
    ) -> EncodeResult:
        """Encode images for this classifier, with the samples its plan needs (tokens.encode has the options).

        preprocess: None for the tokenizer's own; workers: None for as many as the device needs.
        """
        tokenizer = self.model.tokenizer
        pixels = Preprocess(preprocess or tokenizer.preprocess, tokenizer.image_size)
        workers = default_workers(self.model.device) if workers is None else workers
        return encode(images, tokenizer, pixels, out, samples=self.plan().samples, workers=workers, **options)

    def classify(self, image: str | Path) -> Prediction:
        """Classify one image file. Raises as `classify_all`."""
        return self.classify_all([image])[0]

    def classify_all(self, images: Sequence[str | Path]) -> list[Prediction]:
        """Classify image files; one prediction each, in order.

        Raises: UsageError for a file that does not exist; AvarcError for what is no readable image.
        """
        paths = [Path(image) for image in images]
        with tempfile.TemporaryDirectory() as folder:
            encoded = self.encode(open_images(paths), Path(folder) / "tokens.h5", workers=0)
            if encoded.unreadable:
                name, reason = encoded.unreadable[0]
                raise UnreadableImage(f"cannot read '{name}'", reason)
            cache = read(encoded.path)
            result = classify(self.run(cache, self.request(cache.header.samples)), None, keep_scores=True)
        labels = records.CandidateLabels(self.model.classes, self.candidates)
        return [
            Prediction(
                image.path,
                tuple(
                    (best["name"], best["posterior"], best["score"])
                    for best in records.best(scores, labels, len(self.candidates))
                ),
            )
            for image, scores in result.scores
        ]

    def made_for(self) -> dict[str, Any]:
        """What a tuned plan's promise depends on, but for the tokens.

        Not the score: both score functions differ by a constant of the image, so that they rank classes alike.
        """
        model = self.model.protocol()
        return {
            "model": model["model"]["sha256"],
            "tokenizer": model["tokenizer"]["sha256"],
            "bank": model["bank"],
            "offsets": self.options.offsets if self.model.bank else None,
            "precision": self.model.precision,
            "segments": len(self.model.likelihood.segment_ends),
            "candidates": self.candidates.tolist(),
            "log_prior": self.log_prior.tolist() if self.log_prior.any() else None,
        }

    @staticmethod
    def tokens_made_for(cache: TokenCache, samples: int) -> dict[str, Any]:
        """What a tuned plan's promise depends on in the tokens, if the plan looks at so many samples."""
        return {"preprocess": cache.header.preprocess, "sigma": cache.header.sigma if samples > 1 else None}

    @property
    def _plan_path(self) -> Path:
        if self.options.plan == AUTO:
            return Path(self.model.file).with_name("plan.json")
        return Path(self.options.plan)

    def _tuned_plan(self) -> tuned.TunedPlan | None:
        path = self._plan_path
        if path.suffix.lower() != ".json":
            return None
        if self.options.plan == AUTO and not path.exists():
            raise UsageError(
                f"no tuned plan comes with {self.model.name}",
                f"there is no '{path}'",
                f"tune one: avarc tune TOKENS.h5 --model {self.model.name} --out plan.json; then --plan plan.json",
            )
        plan = tuned.read(path)
        plan.check(self.made_for(), path)
        return plan

    def _tokens_per_batch(self, plan: Plan, earlier: int | None) -> int:
        likelihood = self.model.likelihood
        if self.batch_size is not None:
            return self.batch_size * likelihood.segment_ends[-1]
        device = torch.device(self.model.device)
        return earlier or auto_tokens(likelihood, plan, device, fixed=self.options.deterministic, memory=self.memory)

    def _protocol(self, cache: TokenCache, request: ScoringRequest) -> dict[str, Any]:
        """run.json: everything that the numbers depend on."""
        header = cache.header
        tokens = {name: getattr(header, name) for name in RECORDED}
        tokens |= {"images": len(cache), "length": self.model.likelihood.segment_ends[-1]}
        classes = self.model.classes
        return self.model.protocol() | {
            "tokens": tokens,
            "plan": str(request.plan),
            "tuned_plan": self.tuned.to_dict() if self.tuned else None,
            "score": self.score.name,
            "candidates": self.candidates.tolist(),
            "candidate_ids": [classes.ids[c] for c in self.candidates],
            "candidate_names": [classes.names[c] for c in self.candidates],
            "log_prior": self.log_prior.tolist() if self.options.priors else None,
            "tokens_per_batch": request.tokens_per_batch,
            "prefix_tokens": request.max_cached_tokens,
            "offsets": self.options.offsets if self.model.bank else None,
            "deterministic": self.options.deterministic,
            "attention": environment.attention(self.model.kernels),
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
    kernels: str = "auto",
    bank: Path | None = None,
    lora: Path | None = None,
    **options: Any,
) -> Classifier:
    """A classifier ready to use.

    Args:
        model: name of a model card (`avarc models`), or path of a checkpoint; then `tokenizer` is needed.
        tokenizer: name of a tokenizer card, or path, in place of the implied one.
        class_names: text file with one class a line, for a checkpoint that does not name its classes.
        precision: "fp32", "tf32", "bf16", "fp16", "int8" or "fp8". device: "auto", "cpu", "cuda", ...
        kernels: "auto", "triton" or "torch".
        bank: folder with classes that were added to the model (avarc add-class).
        lora: folder with a LoRA adapter, as PEFT saves them, to merge into the weights.
        **options: fields of `Options`: plan, classes, dataset, priors, score, batch_size, deterministic, offsets,
            memory.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch asks for before deterministic runs on CUDA
    loaded = load_model(
        model,
        tokenizer,
        class_names=class_names,
        precision=precision,
        device=device,
        kernels=kernels,
        bank=bank,
        lora=lora,
    )
    return Classifier(loaded, Options(**options))


def _parse_batch_size(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < 1:
        raise UsageError(f"batch size '{text[:20]}'", "it is a number of pairs from 1 to 999999999, or auto")
    return int(text)


def _candidates(options: Options, model: LoadedModel) -> tuple[np.ndarray, str]:
    """Class ids (N,) int64, and the title of the dataset that they are of, where they follow from it."""
    if options.classes is not None:
        return np.array(resolve_classes(options.classes, model.classes), dtype=np.int64), ""
    chosen = default_candidates(options.dataset, model.classes)
    if chosen is None:
        return np.arange(model.likelihood.num_classes), ""
    return chosen, datasets()[options.dataset].title


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
