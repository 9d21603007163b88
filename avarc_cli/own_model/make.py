"""Makes a model folder from a folder of images, step by step; a step that is finished is not repeated."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avarc_cli import __version__, environment, tuning
from avarc_cli.classifier import Classifier, load_classifier
from avarc_cli.data.datasets import ImageSet
from avarc_cli.devices import device_name, pick_device
from avarc_cli.loading import load_tokenizer
from avarc_cli.model_spec import ModelSpec
from avarc_cli.own_model import card, folder, hold_out
from avarc_cli.own_model.decisions import Decisions, choose_augmentation, decide
from avarc_cli.own_model.request import Request
from avarc_cli.own_model.sizes import GENERATOR_FAMILY, TOKENIZER_FAMILY, Sizes
from avarc_cli.own_model.speed import Speed, measure
from avarc_cli.own_model.survey import Survey
from avarc_cli.progress import MetricsProgress, Notify, StartProgress
from avarc_cli.results.tuned import TunedPlan
from avarc_cli.tokens.cache import TokenCache, read
from avarc_cli.train.generator import train_generator
from avarc_cli.train.images import Augment
from avarc_cli.train.recipe import Recipe
from avarc_cli.train.tokenizer import train_tokenizer
from avarc_cli.zoo import model_folder
from avarc_cli.zoo.checkpoint import sha256_of

SAVE_EVERY_SECONDS = 30.0
MANY = 500  # images that are worth starting processes for
TRAINING_BAR = Callable[[str, int], AbstractContextManager[MetricsProgress]]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be made of which images, where."""

    survey: Survey
    request: Request
    out: Path
    training: ImageSet
    held_out: ImageSet | None
    """None where the classes have too few images."""
    device: torch.device

    @classmethod
    def of(cls, survey: Survey, request: Request, out: Path, device: str) -> Task:
        """Split the images. Raises: UsageError for a device that is not there."""
        kept, held = hold_out.split(survey.images.labels, request.hold_out, request.seed)
        images = survey.images
        others = images.take(held) if len(held) else None
        return cls(
            survey=survey,
            request=request,
            out=out,
            training=images.take(kept),
            held_out=others,
            device=pick_device(device),
        )

    @property
    def asked(self) -> dict[str, Any]:
        """What decides about the result."""
        images = self.survey.images
        digest = hashlib.sha256("\0".join(images.names).encode("utf-8", "surrogateescape"))
        digest.update(images.labels.tobytes())
        return asdict(self.request) | {"images": len(images), "images_sha256": digest.hexdigest()}

    def counts(self, part: ImageSet | None) -> list[int]:
        """Images of each class in a part."""
        classes = len(self.survey.images.class_names)
        return [0] * classes if part is None else np.bincount(part.labels, minlength=classes).tolist()

    def choose(self) -> tuple[Decisions, bool]:
        """What is done, and whether an earlier call decided it. Raises: as `decide` and `open_working`."""
        if (decided := folder.open_working(self.out, self.asked, Decisions.from_dict)) is not None:
            return decided, True

        augment = Augment(mode=choose_augmentation(self.survey, self.request.augment), flip=self.request.flip)

        def speed(sizes: Sizes) -> Speed:
            return measure(self.training, sizes, augment, self.device)

        large = self.device.type != "cpu"
        return decide(self.survey, self.request, len(self.training), speed, large=large), False


def make(
    task: Task, decisions: Decisions, *, training_bar: TRAINING_BAR, bar: StartProgress, say: Notify
) -> dict[str, Any]:
    """Train, tune, measure, and write the folder; continues where an interrupted call stopped.

    Args:
        training_bar: (description, steps) -> the progress of a training. bar: the same of other steps.
        say: called with messages for the user.
    Returns: the facts in model.json.
    Raises: as `train_tokenizer`, `train_generator`, `Classifier.encode`, `Classifier.classify_cache` and `tuning.tune`;
        OSError when the folder cannot be written.
    """
    started = time.monotonic()
    is_new = folder.start_working(task.out, task.asked, decisions.to_dict())
    _train(task, decisions, training_bar, say)
    work = folder.working(task.out)
    spec = ModelSpec(str(work / folder.GENERATOR), str(work / folder.TOKENIZER), device=str(task.device))
    classifier = load_classifier(spec)
    held_out, plan = None, None
    if task.held_out is not None:
        with bar("encoding held-out images", len(task.held_out)) as shown:
            workers = 0 if len(task.held_out) < MANY else None
            encoded = classifier.encode(
                task.held_out, work / "held-out.h5", workers=workers, progress=shown.update, say=say
            )
        cache = read(encoded.path)
        held_out = _evaluate(classifier, cache, work, bar)
        plan = _tune(classifier, cache, work, task.request.seed, bar)
    minutes = (time.monotonic() - started) / 60 if is_new else None
    facts = _facts(task, decisions, classifier, held_out, plan, minutes)
    folder.finish(task.out, facts, card.write(task.out.resolve().name, facts), has_plan=plan is not None)
    return facts


def _train(task: Task, decisions: Decisions, training_bar: TRAINING_BAR, say: Notify) -> None:
    """Train what is not yet trained."""
    work, sizes = folder.working(task.out), decisions.sizes
    augment = Augment(mode=decisions.augment, flip=task.request.flip)
    tokenizer, generator = work / folder.TOKENIZER, work / folder.GENERATOR
    if not tokenizer.exists():
        with training_bar("training tokenizer", decisions.tokenizer_steps) as progress:
            train_tokenizer(
                task.training,
                tokenizer,
                dict(sizes.tokenizer),
                Recipe(
                    steps=decisions.tokenizer_steps,
                    batch_size=sizes.tokenizer_batch,
                    lr=sizes.tokenizer_lr,
                    weight_decay=0.01,
                    betas=(0.9, 0.99),
                    save_every=_save_every(decisions.speed.tokenizer),
                    seed=task.request.seed,
                ),
                image_size=sizes.image_size,
                family=TOKENIZER_FAMILY,
                augment=augment,
                device=task.device,
                progress=progress,
                say=say,
            )
    if not generator.exists():
        reader = load_tokenizer(ModelSpec(str(tokenizer), device=str(task.device)))
        with training_bar("training generator", decisions.generator_steps) as progress:
            train_generator(
                task.training,
                generator,
                reader,
                sizes.generator,
                Recipe(
                    steps=decisions.generator_steps,
                    batch_size=sizes.generator_batch,
                    lr=sizes.generator_lr,
                    save_every=_save_every(decisions.speed.generator),
                    seed=task.request.seed,
                ),
                family=GENERATOR_FAMILY,
                augment=augment,
                progress=progress,
                say=say,
            )


def _save_every(seconds_per_step: float) -> int:
    return max(1, min(500, round(SAVE_EVERY_SECONDS / max(seconds_per_step, 1e-6))))


def _evaluate(classifier: Classifier, cache: TokenCache, work: Path, bar: StartProgress) -> dict[str, Any] | None:
    """How well every class scored to the end does on the held-out images; None where none of them can be read."""
    with bar("classifying held-out images", len(cache)) as shown:
        result = classifier.classify_cache(cache, work / "run", progress=lambda done, _: shown.update(done))
    metrics = result.metrics
    if not metrics["labelled"]:
        return None
    return {
        "images": metrics["labelled"],
        "accuracy": metrics["accuracy"],
        "accuracy_95": metrics["accuracy_95"],
        "correct": metrics["correct"],
        "per_class": {each["name"]: each for each in metrics["per_class"].values()},
        "confused": card.confusion(result.records),
    }


def _tune(classifier: Classifier, cache: TokenCache, work: Path, seed: int, bar: StartProgress) -> TunedPlan | None:
    """Tune a plan on one half of the held-out images, measured on the other; on all, or not at all, where few."""
    half = len(cache) // 2
    agreement, measured = hold_out.agreement_for(len(cache) - half), half
    if agreement is None:
        agreement, measured = hold_out.agreement_for(len(cache)), 0
    if agreement is None or len(classifier.candidates) < 2:
        return None
    with bar("tuning a plan", len(cache)) as shown:
        return tuning.tune(
            classifier,
            cache,
            agreement=agreement,
            hold_out=measured,
            seed=seed,
            out=work / folder.PLAN,
            progress=shown.update,
        )


def _facts(
    task: Task,
    decisions: Decisions,
    classifier: Classifier,
    held_out: dict[str, Any] | None,
    plan: TunedPlan | None,
    minutes: float | None,
) -> dict[str, Any]:
    """What model.json says.

    Args:
        minutes: that it took; None after an interruption.
    """
    names, work = task.survey.images.class_names, folder.working(task.out)
    per_class: Mapping[str, Any] = {} if held_out is None else held_out.pop("per_class")
    model = classifier.model
    rows = zip(names, task.counts(task.training), task.counts(task.held_out), strict=True)
    return {
        "format": model_folder.FORMAT,
        model_folder.GENERATOR: folder.GENERATOR,
        model_folder.TOKENIZER: folder.TOKENIZER,
        "plan": None if plan is None else folder.PLAN,
        "family": model.family,
        "tokenizer_family": model.tokenizer.family,
        "tokens": model.tokenizer.layout.num_tokens,
        "preprocess": model.tokenizer.preprocess,
        "classes": [
            {
                "name": name,
                "training_images": trained,
                "held_out_images": held,
                "accuracy": per_class.get(name, {}).get("accuracy"),
            }
            for name, trained, held in rows
        ],
        "held_out": held_out,
        "tuned": None if plan is None else _plan_facts(plan),
        "sizes": decisions.sizes.to_dict(),
        "data": {
            "source": task.survey.images.source,
            "images": len(task.survey.images),
            "unreadable": len(task.survey.unreadable),
            "images_sha256": task.asked["images_sha256"],
        },
        "made": {
            "avarc": __version__,
            "torch": torch.__version__,
            "date": datetime.now(timezone.utc).date().isoformat(),
            "took_minutes": minutes,
            "device": f"{device_name(task.device)}, {environment.cores()} cores",
            "augment": decisions.augment,
            "tokenizer_steps": decisions.tokenizer_steps,
            "generator_steps": decisions.generator_steps,
            "short": decisions.is_short,
            **{key: value for key, value in asdict(task.request).items() if key not in ("augment", "image_size")},
        },
        "sha256": {name: sha256_of(work / name) for name in (folder.GENERATOR, folder.TOKENIZER)},
    }


def _plan_facts(plan: TunedPlan) -> dict[str, Any]:
    measured = plan.held_out or plan.calibration
    return {
        "agreement": plan.guarantee["agreement"],
        "share_of_exhaustive": measured["share_of_exhaustive"],
        "accuracy": measured.get("accuracy"),
        "images": measured["images"],
    }
