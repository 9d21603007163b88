"""A model with its options: the plan, the request and the run that they amount to.

`classifier.Classifier` is this with what is done with it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from avarc_cli import cascading
from avarc_cli.candidates import candidates, log_prior
from avarc_cli.data.label_mapping import map_labels
from avarc_cli.data.views import SINGLE, Views
from avarc_cli.errors import CacheError, UsageError
from avarc_cli.loaded import LoadedModel
from avarc_cli.options import Options, parse_batch_size, parse_bytes
from avarc_cli.progress import Notify, no_message
from avarc_cli.results import records, tuned
from avarc_cli.results.protocol import run_protocol
from avarc_cli.results.run import Run
from avarc_cli.scoring.batching import auto_tokens, cached_tokens_per_batch, max_cached_tokens
from avarc_cli.scoring.combining import check_prunes, check_rule
from avarc_cli.scoring.conformal import tried_estimates
from avarc_cli.scoring.estimator import Estimator
from avarc_cli.scoring.orders import choose_orders
from avarc_cli.scoring.other_precisions import OtherPrecisions
from avarc_cli.scoring.plan import Plan, parse_plan
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.rounding_noise import RoundingNoise
from avarc_cli.scoring.scores import score_function
from avarc_cli.settings import check_one_precision, is_cascade, precision_of_winners
from avarc_cli.tokens.cache import TokenCache
from avarc_cli.tokens.header import CacheHeader
from avarc_cli.tokens.verify import verify
from avarc_cli.words import counted


class ScoringSetup:
    """A loaded model with its options.

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
        self.others = OtherPrecisions(partial(self.estimator.load, model.loader()), model.device)
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
        plan = cascading.in_precisions(plan, self.model)
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
        if keep_tokens or keep_segments:
            check_one_precision(self.model.precision, "log-likelihoods that are saved")
        plan = self.plan(header.samples, can_smooth=header.has_more_samples, keep_tokens=keep_tokens)
        return ScoringRequest(
            candidates=self.candidates,
            plan=plan,
            score=self.score,
            log_prior=self.log_prior,
            offset_per_token=self.offset_per_token,
            tokens_per_batch=self._tokens_per_batch(plan, tokens_per_batch),
            cached_tokens_per_batch=cached_tokens_per_batch(self.model.likelihood, torch.device(self.model.device)),
            max_cached_tokens=max_cached_tokens(self.model.likelihood, self.memory, self.other_weights(plan)),
            combine=self.options.combine,
            temperature=(self.tuned.temperature if self.tuned else None) or 1.0,
            first_cut=self.tuned.first_cut if self.tuned else None,
            reuse_prefix=not self.options.deterministic,
            keep_tokens=keep_tokens,
            keep_segments=keep_segments,
            keep_estimates=tried_estimates(self.model.likelihood) if keep_segments else (),
        )

    def run(
        self,
        cache: TokenCache,
        request: ScoringRequest,
        *,
        save_json: bool = False,
        save_likelihood: bool = False,
        recorded: Any = None,
        say: Notify = no_message,
    ) -> Run:
        """A run over a token cache, for `results.run.classify`.

        Args:
            recorded: what run.json says of the cascade that this run continues; None for a new run.
            say: called with a message where the rounding noise of a cascade is measured.
        Raises: CacheError when the cache was made by another tokenizer, is empty, or differs from its checksums;
            UsageError when a tuned plan was made for other tokens.
        """
        cache.check(self.model.tokenizer)
        if not len(cache):
            raise CacheError(f"'{cache.path}' holds no images", "there is nothing to classify")
        verify(cache).check(cache.path)
        if self.tuned:
            self.tuned.check(self.tokens_made_for(cache, request.plan.samples))
        noise = self._noise(cache, request, recorded, say)
        cascade = None if noise is None else cascading.cascade_of(self.model, request, noise)
        targets = map_labels(cache.header.class_names, cache.header.dataset, self.model.classes)
        return Run(
            model=self.model.likelihood,
            cache=replace(cache, path=cache.path.absolute()),  # other processes may read it
            labels=targets.to_model(cache.labels),
            request=request,
            orders=self.orders,
            candidate_labels=records.CandidateLabels(self.model.classes, self.candidates, targets),
            precision=precision_of_winners(self.model.precision),
            device=self.model.device,
            load=self.others.load,
            others=self.others,
            cascade=cascade,
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
            }
            | (cascading.protocol(cascade, noise) if cascade and noise else {}),
            save_json=save_json,
            save_likelihood=save_likelihood,
            save_segments=request.keep_segments,
            deterministic=self.options.deterministic,
        )

    def _noise(self, cache: TokenCache, request: ScoringRequest, recorded: Any, say: Notify) -> RoundingNoise | None:
        """The rounding noise of a cascade; None in a single precision. Arguments as in `run`."""
        if not is_cascade(self.model.precision):
            return None
        cascading.check_rule(request, self.orders)
        begun = None if recorded is None else cascading.recorded_noise(recorded, self.model, request)
        if begun is not None:
            return begun
        known = cascading.NOISE.stored(cascading.noise_key(self.model, self._about_noise), say)
        if known is not None and cascading.serves(known, self.model, request, len(cache)):
            return known
        return self.measure_noise(cache, request, say)

    @property
    def _about_noise(self) -> dict[str, Any]:
        return self.orders.made_for() | self.estimator.made_for(self.model.likelihood)

    def known_noise(self) -> RoundingNoise | None:
        """The rounding noise of a cascade as it was measured earlier on this machine; None where it was not."""
        return cascading.NOISE.stored(cascading.noise_key(self.model, self._about_noise))

    def measure_noise(self, cache: TokenCache, request: ScoringRequest, say: Notify = no_message) -> RoundingNoise:
        """Measure the rounding noise of a cascade on the first images of a cache, for this run and later ones."""
        orders, about = self.orders, self._about_noise
        return cascading.measure_noise(self.model, self.others, cache, request, orders, about, say)

    # Tuned plans

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
        if isinstance(earlier, int) and earlier > 0:
            return earlier
        return auto_tokens(
            likelihood,
            plan,
            device,
            fixed=self.options.deterministic,
            memory=self.memory,
            other_weights=self.other_weights(plan),
        )

    def other_weights(self, plan: Plan) -> int:
        """Bytes of the weights in the other precisions of a plan or a cascade, at most.

        They may not be loaded yet: each is taken to need twice as much as the model at hand, as fp32 does beside bf16;
        as much beside fp32 and beside int16, which keeps float32 weights.
        """
        others = len(plan.precisions) + is_cascade(self.model.precision)
        times = 1 if self.model.precision.partition("+")[0] in ("fp32", "tf32", "int16") else 2
        return times * others * self.model.likelihood.resident_bytes
