"""The Python API: a model, a plan and candidate classes combined into a classifier (docs/python-api.md).

Example:
    from avarc_cli import load_classifier
    classifier = load_classifier("digits")
    print(classifier.classify("seven.png").top(3))
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from PIL import Image

from avarc_cli import page, product_library
from avarc_cli.cache_classifier import CacheClassifier
from avarc_cli.data.given_images import image_sets, is_one_image
from avarc_cli.data.labels import resolve_classes
from avarc_cli.errors import UsageError
from avarc_cli.frames import frame
from avarc_cli.loading import ModelSpec, load_model, with_bank
from avarc_cli.options import Options
from avarc_cli.prediction import LogLikelihoods, Prediction, Predictions
from avarc_cli.progress import Notify, StartProgress, no_message, silent
from avarc_cli.results.records import CandidateLabels
from avarc_cli.sampling import Sampling, sample
from avarc_cli.settings import check_one_precision
from avarc_cli.tokens.request import default_batch_size
from avarc_cli.words import counted

if TYPE_CHECKING:
    from pandas import DataFrame

    from avarc_cli.data.datasets import ImageSet
    from avarc_cli.data.given_images import ManyImages, OneImage
    from avarc_cli.explain.explained_image import ExplainedImage

SHOWN = 96  # pixels a side of a sampled picture in a notebook


class Classifier(CacheClassifier):
    """A loaded model with its options, and what it classifies. Make one with `load_classifier`.

    It does not change: `add_class` returns another one. An image is a path, an image of Pillow, or an array or tensor,
    (H, W), (H, W, C) or (C, H, W), of uint8 or of floats from 0 to 1; a class is its id or name, or its number.

    Attributes: those of `ScoringSetup`.
    """

    @overload
    def classify(self, images: OneImage) -> Prediction: ...  # type: ignore[overload-overlap]  # a text is one path

    @overload
    def classify(self, images: ManyImages) -> Predictions: ...

    def classify(self, images: OneImage | ManyImages) -> Prediction | Predictions:
        """The prediction for one image, or the predictions for a list, an iterator or a batch of images.

        Raises: as `classify_all`; UsageError for the path of a folder or list that has several images.
        """
        if not is_one_image(images):
            return self.classify_all(images)
        [(image, scores)] = self.score_images(self._one(images))
        return Prediction.of(image.path, scores, self._naming)

    def classify_all(self, images: OneImage | ManyImages) -> Predictions:
        """One prediction for each image, in order; an iterator is read in batches. A path may also be a folder.

        Raises: UsageError for a file that does not exist, and for anything but images; UnreadableImage for a file
            that is not a readable image.
        """
        return Predictions(self.classify_each(images))

    def classify_each(self, images: OneImage | ManyImages) -> Iterator[Prediction]:
        """As `classify_all`, but each prediction as soon as its batch is scored: of an endless iterator, too."""
        for some in self._sets(images):
            for image, scores in self.score_images(some):
                yield Prediction.of(image.path, scores, self._naming)

    def log_likelihood(self, images: OneImage | ManyImages) -> LogLikelihoods:
        """log p(image | class) of every candidate on all tokens, whatever the plan; without priors and offsets.

        Raises: as `classify_all`; UsageError for a cascade of precisions.
        """
        check_one_precision(self.model.precision, "log-likelihoods")
        plain = CacheClassifier(self.model, replace(self.exhaustive(1).options, priors=None, offsets=False))
        scored = list(chain.from_iterable(map(plain.score_images, self._sets(images))))
        values = np.empty((len(scored), len(self.candidates)))
        for row, (_, scores) in zip(values, scored, strict=True):
            row[scores.stages[-1].candidates] = scores.stages[-1].log_likelihood
        names, ids = ([of[c] for c in self.candidates] for of in (self.model.classes.names, self.model.classes.ids))
        return LogLikelihoods(tuple(image.path for image, _ in scored), tuple(names), tuple(ids), values)

    def explain(
        self, image: OneImage, class_: int | str = "prediction", contrast: int | str = "rival"
    ) -> ExplainedImage:
        """Where in an image the evidence for a class is; a notebook shows the maps.

        Args:
            class_: the class to explain; "prediction" for the predicted one.
            contrast: what it is compared with; "rival" for the strongest other class.
        Raises: UsageError for unknown classes, and a model whose tokens have no place; as `classify`.
        """
        from avarc_cli.explain.explain import explain_images
        from avarc_cli.explain.explained_image import ExplainedImage
        from avarc_cli.explain.options import ExplainOptions

        options = ExplainOptions(target=self._text(class_), contrast=self._text(contrast))
        result = explain_images(self, self._one(image), options, workers=0)
        return ExplainedImage(result.explanations[0])

    def sample(self, class_: int | str, count: int = 1, sampling: Sampling | None = None) -> SampledImages:
        """Pictures of a class, drawn from p(image | class), as images of Pillow.

        Args:
            sampling: guidance, top-k, top-p and seed; None for `Sampling()`.
        Raises: UsageError for an unknown class, and a count below 1.
        """
        if count < 1:
            raise UsageError(f"{count} pictures were asked for, must be at least 1")
        name = self._text(class_)
        if len(resolve_classes(name, self.model.classes)) != 1:
            raise UsageError(f"'{name}' names several classes", fix="sample them one at a time")
        how = sampling or Sampling()
        drawn = sample(self.model, [name], count, how)
        [class_id], [called] = drawn.class_ids, drawn.names
        return SampledImages(
            map(Image.fromarray, drawn.pictures[0]), id=self.model.classes.ids[class_id], name=called, seed=how.seed
        )

    def add_class(
        self,
        name: str,
        images: OneImage | ManyImages,
        *,
        bank: str | Path | None = None,
        method: str = "lora",
        steps: int | None = None,
        seed: int = 0,
        offset: bool = True,
        replace_existing: bool = False,
        progress: StartProgress = silent,
        say: Notify = no_message,
    ) -> Classifier:
        """Teach the model a class, store it in a bank, and return a classifier that has it; this one stays as it is.

        Where the options name candidates, the class is one more. The file of the model does not change.

        Args:
            bank: the folder of the added classes; created if it does not exist. None for that of this classifier.
            method, steps, seed: what is trained, for how long, and the seed of it (docs/add-class.md).
            offset: fit an offset that makes old and new scores comparable.
            replace_existing: fit a class again that the bank has.
            progress: opens bars for the steps of the work. say: called with messages for the user.
        Raises: UsageError for a name that is taken or unusable, a bank of another model, and options that hold for
            the present classes only: tuned plans and priors; as `incremental.adding.add_classes`.
        """
        from avarc_cli import bank as banks
        from avarc_cli.incremental.editing import Existing
        from avarc_cli.incremental.fit import FitOptions
        from avarc_cli.incremental.teaching import teach

        path, fit = self._bank(bank), FitOptions(method=method, steps=steps, seed=seed)
        if self.tuned is not None or self.options.priors is not None:
            what = "the tuned plan" if self.tuned is not None else "the priors"
            fix = "load a classifier without, and add the class to that one"
            raise UsageError(f"{what} of this classifier would not hold with '{name}'", "there is one more class", fix)
        base, existing = self.model.base or self.model, Existing(replace=replace_existing)
        examples = next(image_sets(images, sys.maxsize), None)
        if examples is None:
            raise UsageError(f"there are no images of '{name}'", "a class is learned from its images")
        teach(base, path, name, examples, fit, offset=offset, existing=existing, progress=progress, say=say)
        known = with_bank(base, banks.read(path))
        options = self.options
        if options.classes is not None:
            named = [self.model.classes.ids[c] for c in self.candidates]
            kept = {known.classes.ids.index(each) for each in named if each in known.classes.ids}
            options = replace(options, classes=sorted(kept | set(resolve_classes(name, known.classes))))
        return Classifier(known, options)

    def _bank(self, asked: str | Path | None) -> Path:
        present = self.model.bank.path if self.model.bank else None
        if present is not None and asked is not None and Path(asked).absolute() != present.absolute():
            fix = "leave bank out, or load a classifier with that bank"
            raise UsageError(f"this classifier has the bank '{present}', not '{asked}'", fix=fix)
        chosen = present or asked
        if chosen is None:
            raise UsageError("which bank gets the class?", fix="name a folder: add_class(..., bank='bank')")
        return Path(chosen)

    def _text(self, class_: int | str) -> str:
        """A class as the library's functions read it. Raises: UsageError for a number that is not a class id."""
        if isinstance(class_, str):
            return class_
        space = self.model.classes
        if not 0 <= class_ < len(space):
            raise UsageError(f"there is no class {class_}", f"{space.name} has the ids 0 to {len(space) - 1}")
        return space.ids[class_]

    @property
    def _naming(self) -> CandidateLabels:
        return CandidateLabels(self.model.classes, self.candidates)

    def _sets(self, images: OneImage | ManyImages) -> Iterator[ImageSet]:
        return image_sets(images, default_batch_size(self.model.tokenizer.image_size))

    def _one(self, image: OneImage) -> ImageSet:
        if not is_one_image(image):
            raise UsageError("one image is needed", f"this is a {type(image).__name__}", "name one image")
        [images] = self._sets(image)
        if len(images) != 1:
            fix = "classify_all classifies all of them"
            raise UsageError(f"'{image}' has {counted(len(images), 'image')}", "one is needed", fix)
        return images


class SampledImages(list[Image.Image]):
    """Pictures of a class that a model drew, in the order of their numbers.

    Attributes: id and name of the class; seed. Seed, class and number decide a picture, so that it can be drawn again.
    """

    def __init__(self, pictures: Iterable[Image.Image], *, id: str, name: str, seed: int) -> None:
        super().__init__(pictures)
        self.id, self.name, self.seed = id, name, seed

    def to_dict(self) -> list[dict[str, Any]]:
        """For each picture the row of `to_pandas`, and the picture as the data URI of a PNG."""
        shown = (page.picture(np.asarray(each)).source for each in self)
        return [{**row, "picture": picture} for row, picture in zip(self._rows(), shown, strict=True)]

    def to_pandas(self) -> DataFrame:
        """A table with a row for each picture: id and name of the class, seed, and number, from 0.

        Raises: UsageError without pandas.
        """
        return frame(self._rows())

    def _rows(self) -> list[dict[str, Any]]:
        return [{"id": self.id, "name": self.name, "seed": self.seed, "number": n} for n in range(len(self))]

    def _repr_html_(self) -> str:
        """The pictures in a row, in a notebook."""
        shown = [page.picture(np.asarray(each)) for each in self]
        return page.render("notebook_pictures.html", pictures=shown, alt="sampled picture", side=SHOWN)


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
    options, spec = options or Options(), ModelSpec(model) if isinstance(model, str) else model
    if options.deterministic:
        spec = replace(spec, products=product_library.without_measurement(spec.products))
    return Classifier(load_model(spec, progress=progress), options)
