"""A model with its options, which encodes images into token caches and classifies these.

`classifier.Classifier` adds what is done with images at once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from avarc_cli import product_library
from avarc_cli.data.datasets import ImageSet
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.data.views import SINGLE_VIEW, Views
from avarc_cli.errors import UnreadableImage
from avarc_cli.loading import multiplying_by
from avarc_cli.progress import (
    MetricsProgress,
    Notify,
    Progress,
    no_message,
    no_metrics,
    no_progress,
)
from avarc_cli.results import places
from avarc_cli.results.folder import RunFolder
from avarc_cli.results.records import RunImage
from avarc_cli.results.run import Run, RunResult, classify
from avarc_cli.scoring.scores import ImageScores
from avarc_cli.scoring_setup import ScoringSetup
from avarc_cli.tokens.cache import TokenCache, read
from avarc_cli.tokens.encode import EncodeResult, encode
from avarc_cli.tokens.encoder import default_workers
from avarc_cli.torch_flags import deterministic_algorithms
from avarc_cli.work.shards import UNDIVIDED, Shard
from avarc_cli.work.workers import HERE, Workers, check_division


class CacheClassifier(ScoringSetup):
    """A loaded model with its options, and what it encodes and classifies.

    Attributes: those of `ScoringSetup`.
    """

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
        scorer = self if folder is None or overwrite else self.multiplying_as(folder.recorded("arithmetic"))

        def make(tokens_per_batch: int | None) -> Run:
            request = scorer.request(cache.header, keep_tokens=save_likelihood, tokens_per_batch=tokens_per_batch)
            recorded = folder.recorded("cascade") if folder and tokens_per_batch else None
            run = scorer.run(
                cache, request, save_json=save_json, save_likelihood=save_likelihood, recorded=recorded, say=say
            )
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

    def score_images(self, images: ImageSet) -> list[tuple[RunImage, ImageScores]]:
        """Encode these images and score them, without a file that stays; one result each, in order.

        Raises: UnreadableImage for the first one that cannot be read.
        """
        with tempfile.TemporaryDirectory() as folder:
            encoded = self.encode(images, Path(folder) / "tokens.h5", workers=0)
            if encoded.unreadable:
                name, reason = encoded.unreadable[0]
                raise UnreadableImage(f"cannot read '{name}'", reason)
            return self.classify_cache(read(encoded.path), keep_scores=True).scores

    def multiplying_as(self, recorded: Any) -> CacheClassifier:
        """This classifier, with float32 products by the library of an earlier run, which it is to continue.

        Args:
            recorded: `arithmetic` in run.json; None where there is no run.
        """
        if not isinstance(recorded, str):
            return self
        model = multiplying_by(self.model, product_library.recorded(recorded))
        return self if model is self.model else CacheClassifier(model, self.options)

    def exhaustive(self, samples: int) -> CacheClassifier:
        """What a plan is tuned with: all candidates on all tokens, averaged over this many samples."""
        options = replace(self.options, plan=f"exhaustive:{samples}", score="log-likelihood", combine="mean")
        return CacheClassifier(self.model, options)
