"""Replays of the golden training steps of generators, for `train.parity`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from golden import fill
from torch import Tensor

from avarc_cli import families
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.likelihood import NetworkModel
from avarc_cli.models.llamagen.likelihood import LlamaGenLikelihood
from avarc_cli.models.llamagen.network import LlamaGen
from avarc_cli.models.maskgen.likelihood import MaskGenLikelihood
from avarc_cli.models.maskgen.network import MaskGen
from avarc_cli.models.maskgit.bert import Bert
from avarc_cli.models.maskgit.likelihood import MaskGITBertLikelihood, MaskGITLikelihood
from avarc_cli.models.maskgit.uvit import UViT
from avarc_cli.models.randar.likelihood import RandARLikelihood
from avarc_cli.models.randar.network import RandAR
from avarc_cli.models.rar.likelihood import RARLikelihood
from avarc_cli.models.rar.network import RAR
from avarc_cli.models.var.config import read_config
from avarc_cli.models.var.likelihood import VARLikelihood
from avarc_cli.models.var.loss import stage_weights
from avarc_cli.models.var.network import VAR
from avarc_cli.objective import Draw, Stage, StepLoss
from avarc_cli.text.features import CaptionFeatures
from avarc_cli.tokenizers.vqvae.network import MultiScaleQuantizer
from avarc_cli.train import schedules
from avarc_cli.train.recipe import Recipe
from avarc_cli.train.update import DECAYED, average, new_optimizer, update
from avarc_cli.trainable import CaptionTrainableModel, TrainableModel

Meta = Mapping[str, Any]
Arrays = dict[str, np.ndarray]
Replay = Callable[[Meta, Arrays], Arrays]
OfStep = Callable[[int, dict[str, Tensor]], StepLoss]  # (step, its inputs) -> loss
MODELS: dict[str, tuple[Any, Any]] = {
    "llamagen": (LlamaGen, LlamaGenLikelihood),
    "randar": (RandAR, RandARLikelihood),
    "rar": (RAR, RARLikelihood),
    "maskgit": (UViT, MaskGITLikelihood),
    "maskgit-bert": (Bert, MaskGITBertLikelihood),
    "maskgen": (MaskGen, MaskGenLikelihood),
}


def find(meta: Meta) -> Replay | None:
    """What replays a file of a generator's training; None for another file."""
    keys, outputs = meta["keys"], meta["outputs"]
    if "var_lr" in outputs:
        return schedules_of
    if "loss" not in outputs or "digest" not in outputs:
        return None
    if "var.pos_start" in keys:
        return var
    if "text" in meta["inputs"]:
        return with_captions
    return with_classes if "labels" in meta["inputs"] else None


def schedules_of(meta: Meta, arrays: Arrays) -> Arrays:
    """The tables of `train.schedules`, through recipes."""
    of = meta["config"]

    def recipe(steps: int, **more: Any) -> Recipe:
        return Recipe(steps=steps, batch_size=1, **({"lr": 1.0} | more))

    def table(name: str, value: Callable[[int], float]) -> np.ndarray:
        return np.array([value(step) for step in arrays[name].tolist()])

    o, r, v = of["one_d"], of["randar"], of["var"]
    rising = {"warmup": _length(v["warmup"], v["total"]), "first": v["wp0"], "final": v["wpe"]}
    decay = recipe(v["total"], weight_decay=v["wd"], final_weight_decay=v["wd_end"])
    one_d = {"lr": o["lr"], "warmup": o["warmup"], "first": 0.0, "final": o["end_lr"] / o["lr"]}
    anneal = (of["rar"]["start"] / of["rar"]["total"], of["rar"]["end"] / of["rar"]["total"])
    rar, ema = recipe(of["rar"]["total"], anneal=anneal), recipe(1, ema_decay=of["ema"]["decay"], ema_start="copy")
    randar = {"lr": r["lr"], "warmup": r["warmup"], "first": 0.0, "final": r["min_lr_ratio"], "schedule": "cosine"}
    return {
        "var_lr": np.stack(
            [table("var_steps", recipe(v["total"], schedule=name, **rising).rate) for name in v["names"]]
        ),
        "var_wd": table("var_steps", decay.decay),
        "one_d_cosine": table("one_d_steps", recipe(o["total"], schedule="cosine", **one_d).rate),
        "one_d_constant": table("one_d_steps", recipe(o["total"], schedule=schedules.CONSTANT, **one_d).rate),
        "randar_lr": table("randar_steps", recipe(r["total"], **randar).rate),
        "rar_ratio": table("rar_steps", lambda step: rar.objective(step).permuted),
        "ema_decay": table("ema_updates", lambda update_number: ema.averaging(update_number - 1)),
    }


def var(meta: Meta, arrays: Arrays) -> Arrays:
    """A VAR's steps, with progressive training if the file has it, and one loss with stochastic depth."""
    config, optim = meta["config"], meta["config"]["optim"]
    filled = _filled(meta)
    tensors = {key.removeprefix("var."): value for key, value in filled.items() if key.startswith("var.")}
    stated = ConfigSources((("the golden file", config),))
    shape = read_config(tensors, stated, "the golden file")
    quantizer = MultiScaleQuantizer(config["vocab_size"], config["z_channels"], tuple(config["patch_nums"]))
    start = "vae.quantize."
    quantizer.load_state_dict({k.removeprefix(start): v for k, v in filled.items() if k.startswith(start)})
    quantizer.requires_grad_(False)
    network = VAR.from_state_dict(shape, tensors, source="the golden file")
    model = VARLikelihood(network.requires_grad_(True), quantizer)
    recipe = Recipe(
        steps=optim["total"],
        batch_size=config["batch"],
        lr=optim["peak_lr"],
        schedule=optim["schedule"],
        warmup=_length(optim["warmup"], optim["total"]),
        first=optim["wp0"],
        final=optim["wpe"],
        weight_decay=optim["wd"],
        final_weight_decay=optim["wd_end"] or None,
        decayed="published",
        clip=optim["clip"],
        ema_decay=None,
        progressive=optim.get("pg", 0.0),
        progressive_first=optim.get("pg0", 1),
        progressive_ramp=_length(optim["pgwp"], optim["total"]) if "pgwp" in optim else 1 / 300,
    )
    count, ends = len(config["patch_nums"]), model.segment_ends
    more = {}
    if "drop_path_keep" in arrays:
        first = {name: value[0] for name, value in _steps(meta, arrays).items()}
        skipping = Recipe(steps=1, batch_size=1, lr=1.0, drop_path=config["drop_path_rate"]).objective(0)
        draw = Draw(kept_D2B=torch.from_numpy(arrays["drop_path_keep"]))
        with torch.no_grad():
            loss = model.training_loss(first["tokens"], _classes(model, first), skipping, draw)
        more["drop_path_loss"] = np.array(loss.mean.item())
    stages = [recipe.objective(step, count).stage or Stage(count, 1.0) for step in arrays["steps"].tolist()]
    weights = np.zeros((len(stages), ends[-1]))
    for row, stage in zip(weights, stages, strict=True):
        row[: ends[stage.segments - 1]] = stage_weights(shape, stage).numpy()
    more |= {"loss_weight": weights, "last_scale": np.array([stage.segments - 1 for stage in stages])}

    def of_step(step: int, given: dict[str, Tensor]) -> StepLoss:
        return model.training_loss(given["tokens"], _classes(model, given), recipe.objective(step, count), Draw())

    return _run(meta, arrays, model, recipe, of_step) | more


def with_classes(meta: Meta, arrays: Arrays) -> Arrays:
    """The steps of a generator of classes: LlamaGen, RandAR, RAR, MaskGIT."""
    model, recipe = _model(meta), _recipe(meta)
    assert isinstance(model, TrainableModel)

    def of_step(step: int, given: dict[str, Tensor]) -> StepLoss:
        draw = Draw(order_BL=given.get("orders"), hidden_BL=given.get("masks"))
        return model.training_loss(given["tokens"], _classes(model, given), recipe.objective(step), draw)

    ratio = [recipe.objective(step).permuted for step in arrays["steps"].tolist()]
    return _run(meta, arrays, model, recipe, of_step) | {"random_ratio": np.array(ratio)}


def with_captions(meta: Meta, arrays: Arrays) -> Arrays:
    """The steps of a generator of captions: MaskGen VQ."""
    model, recipe = _model(meta), _recipe(meta)
    assert isinstance(model, CaptionTrainableModel)

    def features(text: Tensor, pooled: Tensor, empty: CaptionFeatures | None = None) -> CaptionFeatures:
        length_R = torch.full((len(text),), text.shape[1])
        captions = tuple(map(str, range(len(text))))
        return CaptionFeatures(
            captions=captions, sequence_RTD=text, length_R=length_R, pooled_RE=pooled[:, 0], empty=empty
        )

    empty = features(torch.from_numpy(arrays["null_text"]), torch.from_numpy(arrays["null_text_pooled"]))

    def of_step(step: int, given: dict[str, Tensor]) -> StepLoss:
        return model.caption_loss(
            given["tokens"],
            features(given["text"], given["text_pooled"], empty),
            given["drop"],
            recipe.objective(step),
            Draw(hidden_BL=given["masks"]),
            score_B=given["aes_score"],
        )

    return _run(meta, arrays, model, recipe, of_step)


def _length(steps: float, total: int) -> float:
    """As a recipe has it, where numbers below 1 are fractions of the steps."""
    return steps if steps >= 1 else steps / total


def _filled(meta: Meta) -> dict[str, Tensor]:
    """The weights before the first update."""
    weights = fill.state_dict(meta["keys"], meta["seed"], meta["scales"])
    return {key: torch.from_numpy(value) for key, value in weights.items()}


def _model(meta: Meta) -> NetworkModel:
    """The file's model, of the family that its tensors are of."""
    config = meta["config"]
    heads = config.get("heads", config.get("n_head"))
    names = {"num_attention_heads": heads, "decoder_num_heads": heads, "codebook_size": config["vocab_size"]}
    stated = (config, names, {"text_context_length": config["text_len"]} if "text_len" in config else {})
    sources = ConfigSources(tuple((f"part {i} of the golden file", each) for i, each in enumerate(stated)))
    tensors = {key.removeprefix("model."): value for key, value in _filled(meta).items()}
    family = families.GENERATORS.recognize(tensors, None, "the golden file")
    network, likelihood = MODELS[family.name]
    shape = family.read_config(tensors, sources, "the golden file")
    model: NetworkModel = likelihood(network.from_state_dict(shape, tensors, source="it").requires_grad_(True))
    return model


def _recipe(meta: Meta) -> Recipe:
    """The recipe of a file that is not VAR's."""
    config, optim = meta["config"], meta["config"]["optim"]
    steps = optim.get("total", max(config["steps"]) + 1)
    final = optim.get("min_lr_ratio", optim.get("end_lr", 0.0) / optim["lr"])
    default = "cosine" if "total" in optim else schedules.CONSTANT
    start, end = config.get("anneal", (steps, steps))
    return Recipe(
        steps=steps,
        batch_size=config["batch"],
        lr=optim["lr"],
        schedule=optim.get("schedule", default),
        warmup=optim.get("warmup", 0),
        first=0.0,
        final=final,
        weight_decay=optim["wd"],
        decayed="published",
        betas=(optim.get("beta1", 0.9), optim.get("beta2", 0.95)),
        clip=optim["clip"],
        ema_decay=0.999 if optim.get("ema") else None,
        ema_start="copy",
        smoothing=config.get("label_smoothing", 0.0),
        visible=config.get("weight_visible", 0.0),
        anneal=(start / steps, end / steps),
        skip_norm=optim.get("skip_grad_norm"),
        skip_from=optim.get("skip_grad_iter", 0),
    )


def _steps(meta: Meta, arrays: Arrays) -> dict[str, Tensor]:
    """The inputs that differ from step to step, the step first."""
    count = len(arrays["steps"])
    fixed = ("null_text", "null_text_pooled", "drop_path_keep", "steps")
    given = {name: torch.from_numpy(arrays[name]) for name in meta["inputs"] if name not in fixed}
    assert all(len(value) == count for value in given.values())
    return given


def _classes(model: NetworkModel, given: dict[str, Tensor]) -> Tensor:
    return torch.where(given["drop"], model.num_classes, given["labels"])


@dataclass
class _Log:
    """What is recorded of every step, by output."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, **values: float) -> None:
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)


def _run(meta: Meta, arrays: Arrays, model: NetworkModel, recipe: Recipe, of_step: OfStep) -> Arrays:
    """All steps, as `train.loop` makes them, but with the file's own step numbers."""
    network, given, log = model.network.train(), _steps(meta, arrays), _Log()
    before = {key: value.detach().clone() for key, value in model.checkpoint_tensors().items()}
    optimizer = new_optimizer(network, recipe, model.decays)
    averaged = {key: value.detach().clone() for key, value in network.state_dict().items()}
    for i, step in enumerate(arrays["steps"].tolist()):
        loss = of_step(step, {name: value[i] for name, value in given.items()})
        optimizer.zero_grad(set_to_none=True)
        loss.mean.backward()
        made = update(list(network.parameters()), optimizer, recipe, step)
        # The number of updates so far, not the step: the files' steps may leave some out.
        average(averaged, network, recipe.averaging(i))
        decayed = next(group for group in optimizer.param_groups if group[DECAYED])
        log.add(loss=loss.mean.item(), correct=loss.accuracy.item(), grad_norm=made.norm)
        log.add(lr=decayed["lr"], wd=decayed["weight_decay"], stepped=made.stepped, skip_norm=made.norms or 0.0)
    outputs = {name: np.array(values) for name, values in log.values.items()}
    outputs["digest"] = _digest(meta, model.checkpoint_tensors(), before)
    network.load_state_dict(averaged)
    outputs["ema_digest"] = _digest(meta, model.checkpoint_tensors(), before)
    prefix = getattr(network, "prefix", "")
    names = {id(parameter): prefix + name for name, parameter in network.named_parameters()}
    outputs["groups"] = np.array(
        [names[id(p)] for group in optimizer.param_groups if group[DECAYED] for p in group["params"]]
    )
    return outputs


def _digest(meta: Meta, after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> np.ndarray:
    """Mean, standard deviation, first four values and norm of the change of every tensor that the file lists."""
    rows = []
    for key in meta["digest_keys"]:
        new, old = (
            tensors[key.removeprefix("var.")].detach().numpy().astype(np.float64).ravel() for tensors in (after, before)
        )
        first = np.pad(new[:4], (0, max(0, 4 - new.size)))
        rows.append([new.mean(), new.std(), *first, np.linalg.norm(new - old)])
    return np.array(rows)
