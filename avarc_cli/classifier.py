"""The Python API: a model, a plan and candidate classes combined into a classifier (docs/python-api.md).

Example:
    from avarc_cli import load_classifier
    classifier = load_classifier("digits")
    print(classifier.classify("seven.png").top(3))
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from avarc_cli.candidates import candidates, log_prior
from avarc_cli.data.datasets import ImageSet, open_images
from avarc_cli.data.label_mapping import map_labels
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.data.views import SINGLE, SINGLE_VIEW, Views
from avarc_cli.errors import CacheError, UnreadableImage, UsageError
from avarc_cli.loaded import LoadedModel
from avarc_cli.loading import ModelSpec, load_model
from avarc_cli.options import Options, parse_batch_size, parse_bytes
from avarc_cli.prediction import Prediction
from avarc_cli.progress import (
    MetricsProgress,
    Notify,
    Progress,
    StartProgress,
    no_message,
    no_metrics,
    no_progress,
    silent,
)
from avarc_cli.results import places, records, tuned
from avarc_cli.results.folder import RunFolder
from avarc_cli.results.protocol import run_protocol
from avarc_cli.results.run import Run, RunResult, classify
from avarc_cli.scoring.batching import auto_tokens, max_cached_tokens
from avarc_cli.scoring.combining import check_prunes, check_rule
from avarc_cli.scoring.conformal import tried_estimates
from avarc_cli.scoring.estimator import Estimator
from avarc_cli.scoring.orders import choose_orders
from avarc_cli.scoring.plan import Plan, parse_plan
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.scores import score_function
from avarc_cli.tokens.cache import TokenCache, read
from avarc_cli.tokens.encode import EncodeResult, encode
from avarc_cli.tokens.encoder import default_workers
from avarc_cli.tokens.header import CacheHeader
from avarc_cli.tokens.verify import verify
from avarc_cli.torch_flags import deterministic_algorithms
from avarc_cli.words import counted
from avarc_cli.work.shards import UNDIVIDED, Shard
from avarc_cli.work.workers import HERE, Workers, check_division


class Classifier:
    """A loaded model with its options. Make one with `load_classifier`.

    Attributes:
        candidates: class ids to choose from, (N,) int64.
        candidates_of: title of the dataset that the candidates follow from, "" for any other choice.
        estimator: how a model of hidden tokens is scored.
        orders: in which tokens are scored.
        log_prior: log of the candidates' prior probabilities, (N,) float64; zeros without priors.
        tuned: the tuned plan in use, None for any other plan.
    """

    def __init__(self, model: LoadedModel, options: Options) -> None:
        """Combine a model with options.

        Raises: UsageError for classes, priors, a score, a batch size or a tuned plan that do not fit the model.
        """
        self.options = options
        self.estimator = Estimator(options.steps, options.bound, options.unsmooth)
        if self.estimator.asked:
            model = replace(model, likelihood=self.estimator.applied(model.likelihood, model.name))
        self.model = model
        self.batch_size = parse_batch_size(options.batch_size)
        self.memory = None if options.memory is None else parse_bytes(options.memory)
        likelihood = model.likelihood
        self.candidates, self.candidates_of = candidates(model.classes, options.classes, options.dataset)
        self.log_prior = log_prior(model.classes, self.candidates, options.priors)
        offset_N = model.offsets[self.candidates]  # of a whole image: each token adds its part
        self.offset_per_token = offset_N / likelihood.segment_ends[-1] if options.offsets else None
        self.orders = choose_orders(options.orders, options.order_seed, likelihood, model.name, bound=options.bound)
        check_rule(options.combine, bound=self.orders.bound)
        self.tuned = self._tuned_plan()
        self.score = score_function(options.score)
        if self.score.needs_unconditional and likelihood.unconditional is None:
            why = f"the score '{options.score}' needs it"
            raise UsageError(f"{model.name} gives no p(x)", why, "use log-likelihood")

    # Classifying

    def classify(self, image: str | Path) -> Prediction:
        """Classify one image file. Raises as `classify_all`."""
        return self.classify_all([image])[0]

    def classify_all(self, images: Sequence[str | Path]) -> list[Prediction]:
        """Classify image files; returns one prediction each, in order.

        Raises: UsageError for a file that does not exist; UnreadableImage for a file that is not a readable image.
        """
        with tempfile.TemporaryDirectory() as folder:
            encoded = self.encode(open_images([Path(image) for image in images]), Path(folder) / "tokens.h5", workers=0)
            if encoded.unreadable:
                name, reason = encoded.unreadable[0]
                raise UnreadableImage(f"cannot read '{name}'", reason)
            result = self.classify_cache(read(encoded.path), keep_scores=True)
        naming = records.CandidateLabels(self.model.classes, self.candidates)
        return [Prediction.of(image.path, scores, naming) for image, scores in result.scores]

    def encode(
        self,
        images: ImageSet,
        out: str | Path,
        *,
        preprocess: str | None = None,
        views: Views = SINGLE_VIEW,
        sigma: float = 0.1,
        seed: int = 0,
        workers: int | None = None,
        overwrite: bool = False,
        progress: Progress = no_progress,
        say: Notify = no_message,
    ) -> EncodeResult:
        """Encode images into a token cache for this classifier: these views, or as many samples as its plan needs.

        Call it again with the same arguments to continue after an interruption. `tokens.encode` has more options.

        Args:
            out: the cache to write.
            preprocess: as `--preprocess` (`Preprocess.choose`). None for the tokenizer's own.
            views: of each image. If there are several, the plan must average over some of them.
            sigma, seed: standard deviation, in units of the latents, and seed of the smoothing noise.
            workers: processes that decode images; 0 decodes in this one. None for as many as the device needs.
            overwrite: replace a cache or unfinished chunks of another request; encode a complete cache again.
            progress: called with (images done, images in all).
            say: called with messages for the user, such as how many images changed since an earlier call.
        Raises: as `smoothing_samples` and `tokens.encode`.
        """
        tokenizer, samples = self.model.tokenizer, self.smoothing_samples(views)
        with deterministic_algorithms(self.options.deterministic):
            return encode(
                images,
                tokenizer,
                Preprocess.choose(preprocess, tokenizer.preprocess, tokenizer.image_size, views),
                Path(out),
                samples=samples,
                sigma=sigma,
                seed=seed,
                workers=default_workers(self.model.device) if workers is None else workers,
                overwrite=overwrite,
                progress=progress,
                say=say,
            )

    def classify_cache(
        self,
        cache: TokenCache,
        out: str | Path | None = None,
        *,
        save_json: bool = False,
        save_likelihood: bool = False,
        shard: Shard = UNDIVIDED,
        workers: Workers = HERE,
        keep_scores: bool = False,
        overwrite: bool = False,
        options: Mapping[str, Any] | None = None,
        on_start: Callable[[Run], None] = lambda run: None,
        progress: MetricsProgress = no_metrics,
        say: Notify = no_message,
    ) -> RunResult:
        """Classify every image of a token cache.

        Args:
            out: run folder for predictions and metrics (docs/formats.md); a run that was interrupted continues there.
                None keeps the results in memory.
            save_json: write each image's stages to OUT/json/.
            save_likelihood: write each image's token log-probabilities to OUT/likelihood/.
            shard: classify only this part of the images; all shards of one `out` may run at once.
            workers: who scores the images.
            keep_scores: return the scores of all candidates, of the images scored in this call.
            overwrite: replace a run of another request in `out`. Only files that belong to a run are deleted.
            options: of the command, for run.json, from which it can be repeated.
            on_start: called once with the run, before anything is scored.
            progress: called after every chunk of images with (images done, running numbers).
            say: called with messages for the user, such as that a batch had to be made smaller.
        Raises: as `run` and `results.run.classify`; UsageError for `overwrite` with a shard, or a shard without `out`.
        """
        check_division(shard, workers, out=out, overwrite=overwrite)
        folder = None if out is None else RunFolder(Path(out))

        def make(tokens_per_batch: int | None) -> Run:
            request = self.request(cache.header, keep_tokens=save_likelihood, tokens_per_batch=tokens_per_batch)
            run = self.run(cache, request, save_json=save_json, save_likelihood=save_likelihood)
            notes: dict[str, Any] = {} if options is None else {"options": dict(options)}
            if folder is not None:
                notes[places.KEY] = places.record(self.model.given, cache.path, folder.path, self.orders.file)
            return replace(run, protocol={**run.protocol, **notes})

        run = make(folder.recorded("tokens_per_batch") if folder else None)
        if folder and overwrite and folder.has_another(run.protocol):
            run = make(None)
            folder.replace(run.protocol)
        on_start(run)
        return classify(run, folder, shard=shard, workers=workers, keep_scores=keep_scores, progress=progress, say=say)

    # What a run consists of

    def plan(self, samples: int = tuned.ANY_SAMPLES, *, can_smooth: bool = True, keep_tokens: bool = False) -> Plan:
        """The plan for images with this many samples.

        Args:
            can_smooth: whether there could be more samples (`parse_plan`).
        Raises: UsageError for a plan that the model, the candidates or the samples do not allow, or, with
            `keep_tokens`, one whose last stage does not score every token.
        """
        segments = len(self.model.likelihood.segment_ends)
        text = str(self.tuned or self.options.plan)
        plan = parse_plan(
            text,
            segments=segments,
            candidates=len(self.candidates),
            samples=samples,
            orders=self.orders.count,
            can_smooth=can_smooth,
            can_estimate=self.model.likelihood.has_block_parallel,
            can_cut=self.tuned is not None,
        )
        if self.tuned:
            plan = self.tuned.plan  # the same stages, with the survivors they are expected to leave
        check_prunes(self.options.combine, plan)
        self.orders.check_used(plan, asked=self.options.orders is not None)
        if keep_tokens and plan.stages[-1].segments < segments:
            why = "its last stage scores a part of the tokens only"
            fix = f"let it score all {counted(segments, 'segment')}, or use --plan exhaustive"
            raise UsageError(f"token log-probabilities cannot be saved with plan '{plan}'", why, fix)
        return plan

    def smoothing_samples(self, views: Views) -> int:
        """Smoothing samples to make of images that are encoded for this classifier, the image itself included.

        Raises: UsageError for a plan that averages more than the views, or looks at one of several only.
        """
        if views.kind == SINGLE:
            return self.plan().samples
        plan = self.plan(views.count, can_smooth=False)
        if plan.samples == 1:
            why, fix = f"--{views.kind} makes {views.count} of each image", f"name a plan like exhaustive:{views.count}"
            raise UsageError(f"plan '{self.options.plan}' scores one view only", why, fix)
        return 1

    def request(
        self,
        header: CacheHeader,
        *,
        keep_tokens: bool = False,
        keep_segments: bool = False,
        tokens_per_batch: int | None = None,
    ) -> ScoringRequest:
        """The scoring engine's request for the images of a cache.

        Args:
            header: the cache's.
            keep_tokens: return the token log-probabilities.
            keep_segments: return their sums over each segment of each sample, and the estimates that `tune` considers.
            tokens_per_batch: the automatic choice of an earlier run that this one continues.
        """
        plan = self.plan(header.samples, can_smooth=header.has_more_samples, keep_tokens=keep_tokens)
        return ScoringRequest(
            candidates=self.candidates,
            plan=plan,
            score=self.score,
            log_prior=self.log_prior,
            offset_per_token=self.offset_per_token,
            tokens_per_batch=self._tokens_per_batch(plan, tokens_per_batch),
            max_cached_tokens=max_cached_tokens(self.model.likelihood, self.memory),
            combine=self.options.combine,
            temperature=(self.tuned.temperature if self.tuned else None) or 1.0,
            first_cut=self.tuned.first_cut if self.tuned else None,
            reuse_prefix=not self.options.deterministic,
            keep_tokens=keep_tokens,
            keep_segments=keep_segments,
            keep_estimates=tried_estimates(self.model.likelihood) if keep_segments else (),
        )

    def run(
        self, cache: TokenCache, request: ScoringRequest, *, save_json: bool = False, save_likelihood: bool = False
    ) -> Run:
        """A run over a token cache, for `results.run.classify`.

        Raises: CacheError when the cache was made by another tokenizer, is empty, or differs from its checksums;
            UsageError when a tuned plan was made for other tokens.
        """
        cache.check(self.model.tokenizer)
        if not len(cache):
            raise CacheError(f"'{cache.path}' holds no images", "there is nothing to classify")
        verify(cache).check(cache.path)
        if self.tuned:
            self.tuned.check(self.tokens_made_for(cache, request.plan.samples))
        targets = map_labels(cache.header.class_names, cache.header.dataset, self.model.classes)
        return Run(
            model=self.model.likelihood,
            cache=replace(cache, path=cache.path.absolute()),  # other processes may read it
            labels=targets.to_model(cache.labels),
            request=request,
            orders=self.orders,
            candidate_labels=records.CandidateLabels(self.model.classes, self.candidates, targets),
            precision=self.model.precision,
            device=self.model.device,
            load=partial(self.estimator.load, self.model.loader()),
            protocol=run_protocol(
                self.model,
                cache,
                request,
                orders=self.orders,
                tuned=self.tuned,
                priors=self.options.priors is not None,
                offsets=self.options.offsets,
                deterministic=self.options.deterministic,
            )
            | self.estimator.protocol(self.model.likelihood, self.orders, request.plan.orders, request.combine)
            | {
                "counts_as": targets.counts_as[self.candidates].tolist(),
                "save_json": save_json,
                "save_likelihood": save_likelihood,
            },
            save_json=save_json,
            save_likelihood=save_likelihood,
            save_segments=request.keep_segments,
            deterministic=self.options.deterministic,
        )

    # Tuned plans

    def exhaustive(self, samples: int) -> Classifier:
        """What a plan is tuned with: all candidates on all tokens, averaged over this many samples."""
        options = replace(self.options, plan=f"exhaustive:{samples}", score="log-likelihood", combine="mean")
        return Classifier(self.model, options)

    def made_for(self) -> dict[str, Any]:
        """What the guarantee of a tuned plan depends on, apart from the tokens.

        The score is left out: both score functions differ by a constant of the image, so they rank classes alike.
        """
        model = self.model
        return (
            model.made_for()
            | {
                "offsets": self.options.offsets if model.bank else None,
                "segments": len(model.likelihood.segment_ends),
                "candidates": self.candidates.tolist(),
                "log_prior": self.log_prior.tolist() if self.log_prior.any() else None,
            }
            | (self.orders.made_for() if model.likelihood.any_order else {})
            | self.estimator.made_for(model.likelihood)
        )

    @staticmethod
    def tokens_made_for(cache: TokenCache, samples: int) -> dict[str, Any]:
        """What the guarantee of a tuned plan that averages this many samples depends on in the tokens."""
        return {"preprocess": cache.header.preprocess, "sigma": cache.header.sigma if samples > 1 else None}

    def _tuned_plan(self) -> tuned.TunedPlan | None:
        plan = tuned.find(self.options.plan, self.model)
        if plan is not None:
            plan.check(self.made_for())
        return plan

    def _tokens_per_batch(self, plan: Plan, earlier: int | None) -> int:
        likelihood = self.model.likelihood
        if self.batch_size is not None:
            return self.batch_size * likelihood.segment_ends[-1]
        device = torch.device(self.model.device)
        return earlier or auto_tokens(likelihood, plan, device, fixed=self.options.deterministic, memory=self.memory)


def load_classifier(
    model: ModelSpec | str = "digits", options: Options | None = None, *, progress: StartProgress = silent
) -> Classifier:
    """A classifier that is ready to use.

    Sets the environment variable CUBLAS_WORKSPACE_CONFIG if it is not set: deterministic CUDA runs need it beforehand.

    Args:
        model: a `ModelSpec`, or a string for `ModelSpec(model)`: the name of a model card, or the path of a checkpoint.
        options: None for `Options()`. progress: opens the bar of encoding captions, if that takes place.
    Raises: as `load_model` and `Classifier`.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return Classifier(load_model(model, progress=progress), options or Options())
