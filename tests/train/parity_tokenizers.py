"""Replays of golden files of the tokenizers' training, for `train.parity`: quantizers, perceptual networks,
discriminators, and whole steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from golden import fill
from torch import Tensor, nn

from avarc_cli.layers.code_usage import Reanchoring, RecentCodes, ScaleUsage
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layers.vq_loss import Quantized, codebook_loss
from avarc_cli.tokenizers.llamagen_vq.config import LlamaGenVQConfig
from avarc_cli.tokenizers.llamagen_vq.family import FAMILY as LLAMAGEN_VQ
from avarc_cli.tokenizers.llamagen_vq.loss import LlamaGenVQLoss
from avarc_cli.tokenizers.llamagen_vq.network import LlamaGenVQ
from avarc_cli.tokenizers.titok.network import Codebook
from avarc_cli.tokenizers.vqvae.config import VQVAEConfig
from avarc_cli.tokenizers.vqvae.loss import VQVAELoss
from avarc_cli.tokenizers.vqvae.network import VQVAE
from avarc_cli.train.adversarial import AdversarialStep, Opponent
from avarc_cli.train.discriminators import vit
from avarc_cli.train.discriminators.blur import BlurDiscriminator
from avarc_cli.train.discriminators.dino import DinoDiscriminator
from avarc_cli.train.discriminators.losses import LeCam, hinge
from avarc_cli.train.discriminators.patchgan import PatchGAN
from avarc_cli.train.perceptual import lpips

Meta = Mapping[str, Any]
Arrays = dict[str, np.ndarray]
Replay = Callable[[Meta, Arrays], Arrays]


def find(meta: Meta) -> Replay | None:
    """What replays a file of a tokenizer's training; None for another file."""
    return llamagen_vq_steps if "loss_disc" in meta["outputs"] else KINDS.get(meta.get("kind", ""))


def weights(meta: Meta, prefix: str = "") -> dict[str, Tensor]:
    """The filled tensors whose key begins so, without that beginning."""
    keys = {k: v for k, v in meta["keys"].items() if k.startswith(prefix)}
    filled = fill.state_dict(keys, meta["seed"], meta["scales"])
    return {k.removeprefix(prefix): torch.from_numpy(v) for k, v in filled.items()}


def tensor(arrays: Arrays, name: str) -> Tensor:
    return torch.from_numpy(np.array(arrays[name]))


def plain(ours: Mapping[str, Tensor | float]) -> Arrays:
    return {name: x.detach().numpy() if isinstance(x, Tensor) else np.asarray(x) for name, x in ours.items()}


def norms(module: nn.Module, names: list[str]) -> Tensor:
    parameters = dict(module.named_parameters())
    return torch.stack([gradient(parameters[name]).norm() for name in names])


def gradient(x: Tensor) -> Tensor:
    assert x.grad is not None
    return x.grad


def straight_through(made: Quantized) -> Tensor:
    return made.latents + (made.codes - made.latents).detach()


def var_vq(meta: Meta, arrays: Arrays) -> Arrays:
    """VAR's quantizer: the loss of every scale, its gradients, and how much each scale uses its codes."""
    c = meta["config"]
    shape = VQVAEConfig(
        vocab_size=c["codes"], z_channels=c["z"], ch=32, ch_mult=(1,), patch_nums=tuple(c["patch_nums"]), blocks=1
    )
    network = VQVAE(shape)
    quantizer = network.quantize
    quantizer.load_state_dict(weights(meta))
    loss = VQVAELoss(network)
    loss.commitment = c["beta"]
    f, usage = tensor(arrays, "f").requires_grad_(), ScaleUsage(len(c["patch_nums"]), c["codes"])
    made = loss.quantize(f)
    f_hat = straight_through(made)
    (made.loss + (f_hat * tensor(arrays, "probe")).sum()).backward()

    def count(latents: Tensor) -> Tensor:
        tokens_BL = network.tokenize(latents)
        for k, tokens in enumerate(quantizer.split(tokens_BL)):
            usage.add(k, tokens)
        return tokens_BL

    ours: dict[str, Tensor | float] = {"f_hat": f_hat, "vq_loss": made.loss}
    with torch.no_grad():
        ours["tokens"] = count(f)
        ours["hits_first"] = usage.counts_KV.clone()
        ours["usages"] = usage.percent(f.numel() // f.shape[1])
        count(tensor(arrays, "f_second"))
        ours["hits_second"] = usage.counts_KV
    ours["grad_f"] = gradient(f)
    ours |= {f"grad_{name}": gradient(p) for name, p in quantizer.named_parameters()}
    return plain(ours)


def llamagen_vq(meta: Meta, arrays: Arrays) -> Arrays:
    """LlamaGen's quantizer: each part of its loss, its gradients, and the window of chosen codes."""
    c, z = meta["config"], tensor(arrays, "z").requires_grad_()
    shape = LlamaGenVQConfig(
        vocab_size=c["codes"], code_channels=c["dim"], z_channels=32, ch=32, ch_mult=(1,), side=z.shape[-1], blocks=1
    )
    network = LlamaGenVQ(shape)
    network.quantize.load_state_dict(weights(meta))
    loss = LlamaGenVQLoss(network, entropy_weight=c["entropy_ratio"])
    loss.commitment = c["beta"]
    made = loss.quantize(z)
    quantized = straight_through(made)
    (made.loss + (quantized * tensor(arrays, "probe")).sum()).backward()
    codebook = codebook_loss(made.latents, made.codes, 0.0)
    both = codebook_loss(made.latents, made.codes, loss.commitment)
    recent = RecentCodes(c["codes"])
    recent.add(made.used_N)
    return plain(
        {
            "vq_loss": codebook,
            "commit_loss": both - codebook,
            "entropy_loss": made.loss - both,
            "quantized": quantized,
            "tokens": made.used_N,
            "usage": recent.share(),
            "window_tail": recent.window[-len(arrays["window_tail"]) :],
            "grad_z": gradient(z),
            "grad_embedding": gradient(network.quantize.embedding.weight),
        },
    )


def tatitok_cvq(meta: Meta, arrays: Arrays) -> Arrays:
    """TA-TiTok's quantizer, which moves codes to features that few codes stand for."""
    c = meta["config"]
    codebook = Codebook(c["codes"], c["dim"], c.get("use_l2_norm", False))
    codebook.load_state_dict(weights(meta))
    moving = Reanchoring(codebook.embedding.weight)
    ours: dict[str, Tensor | float] = {}
    for call in ("first", "second"):
        z = tensor(arrays, f"z_{call}")
        tokens_BL = codebook.tokenize(z)
        ours[f"loss_{call}"] = codebook_loss(z, codebook.lookup(tokens_BL), c["beta"])
        ours[f"tokens_{call}"] = tokens_BL[:, None]
        moving.update(z.permute(0, 2, 3, 1).flatten(0, 2), tokens_BL.flatten())
        ours[f"embedding_{call}"] = codebook.embedding.weight.detach().clone()
        ours[f"embed_prob_{call}"] = moving.share_V.clone()
    return plain(ours)


def lpips_distance(meta: Meta, arrays: Arrays) -> Arrays:
    """LPIPS and its gradient."""
    filled = weights(meta)
    network = lpips.from_tensors(filled, filled, "the golden file")
    image, other = tensor(arrays, "image"), tensor(arrays, "other").requires_grad_()
    distance = network(image, other)
    distance.mean().backward()
    means = torch.stack([level.mean() for level in network.levels(image)])
    return plain({"distance": distance, "feature_means": means, "grad_other": gradient(other)})


def patchgan(meta: Meta, arrays: Arrays) -> Arrays:
    """The PatchGAN in training mode and after it, and its losses."""
    c = meta["config"]
    network = PatchGAN(c["ndf"], c["layers"])
    network.load_state_dict(weights(meta), strict=False)  # the running statistics are not filled
    real, fake = (network(tensor(arrays, name)) for name in ("real", "fake"))
    loss = hinge(real, fake, halved=True)
    loss.backward()
    vanilla = (nn.functional.softplus(-real).mean() + nn.functional.softplus(fake).mean()) / 2
    gradients = norms(network, meta["parameters"])
    with torch.no_grad():
        evaluated = network.eval()(tensor(arrays, "real"))
    ours = {"logits_real": real, "logits_fake": fake, "d_loss": loss, "g_loss": -fake.mean(), "logits_eval": evaluated}
    return plain({**ours, "vanilla_d_loss": vanilla, "grad_norms": gradients})


def titok_disc(meta: Meta, arrays: Arrays) -> Arrays:
    """TiTok's discriminator, its loss, and LeCam of two steps."""
    c, lecam = meta["config"], LeCam()
    network = BlurDiscriminator(c["hidden"], c["stages"])
    network.load_state_dict(weights(meta))
    real, fake = (network(tensor(arrays, name)) for name in ("real", "fake"))
    loss = hinge(real, fake, halved=True)
    loss.backward()
    both = torch.stack([lecam(real, fake) for _ in range(2)])
    gradients = norms(network, meta["parameters"])
    ours = {"logits_real": real, "logits_fake": fake, "d_loss": loss, "lecam": both, "grad_norms": gradients}
    return plain(ours)


def dino_disc(meta: Meta, arrays: Arrays) -> Arrays:
    """StyleGAN-T's discriminator, its loss, and gradients for heads and images."""
    c, filled = meta["config"], weights(meta)
    frozen = {k.removeprefix("dino."): v for k, v in filled.items() if k.startswith("dino.")}
    network = DinoDiscriminator(
        vit.from_tensors(frozen, "the golden file"), kernel=c["kernel"], norm=c["norm"], spectral=False
    )
    network.load_state_dict({k: v for k, v in filled.items() if k.startswith("heads.")}, strict=False)
    fake = tensor(arrays, "fake").requires_grad_()
    on_real, on_fake = network(tensor(arrays, "real")), network(fake)
    loss = hinge(on_real, on_fake, halved=False)
    loss.backward()
    ours = {"logits_real": on_real, "logits_fake": on_fake, "d_loss": loss, "grad_fake": gradient(fake)}
    return plain({**ours, "grad_norms": norms(network, meta["parameters"])})


class RecordingLoss(LlamaGenVQLoss):
    """Remembers what was quantized last."""

    def quantize(self, latents: Tensor) -> Quantized:
        self.made = super().quantize(latents)
        return self.made


def llamagen_vq_steps(meta: Meta, arrays: Arrays) -> Arrays:
    """Steps of LlamaGen's tokenizer: two Adams, clipping, batch normalization, the adaptive weight."""
    c = meta["config"]
    network, before = _llamagen_network(meta)
    loss = RecordingLoss(network)
    opponent = _opponent(meta)
    adaptive = (0.0, 1e4) if c["adaptive"] else None
    opponent.recipe = replace(opponent.recipe, adaptive=adaptive, clip=c["optim"]["clip"])
    changed = replace(loss.published, adversary=opponent.recipe)
    rate = c["optim"]["lr"]
    step = AdversarialStep(loss, lambda step: rate, weights=changed, lpips=_lpips(meta), opponent=opponent)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    rows: dict[str, list[Any]] = {}
    for number, images in zip(arrays["steps"], tensor(arrays, "images"), strict=True):
        total, shown = step(images, int(number), 10**6, torch.Generator())
        optimizer.zero_grad()
        total.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), c["optim"]["clip"])
        step.before_update(int(number), 10**6)
        optimizer.step()
        codebook = codebook_loss(loss.made.latents, loss.made.codes, 0.0).item()
        row = {
            "loss_gen": total.item(),
            "loss_disc": step.last_update["d_loss"],
            "adaptive_weight": shown.get("adaptive", 1.0),
            "codebook_loss": (codebook, loss.made.loss.item() - codebook),
            "tokens": loss.made.used_N.numpy(),
            "grad_norm_gen": norm.item(),
            "grad_norm_disc": step.last_update["d_norm"],
        }
        for name, value in row.items():
            rows.setdefault(name, []).append(value)
    after = {f"model.{k}": v for k, v in network.state_dict().items()}
    after |= {f"discriminator.{k}": v for k, v in opponent.network.state_dict().items()}
    statistics = [_columns(after[name])[[0, 1, 2, 3]] for name in meta["groups"]["running_stats"]]
    ours = {name: np.array(values) for name, values in rows.items()} | {"running_stats": np.stack(statistics)}
    return ours | {"digest": np.stack([digest_row(after[name], before[name]) for name in meta["digest_keys"]])}


def _llamagen_network(meta: Meta) -> tuple[LlamaGenVQ, dict[str, Tensor]]:
    """The tokenizer to train, and what all trained tensors are at first, by the file's names."""
    tensors = weights(meta, "model.")
    stated = ConfigSources((("the golden file", {"image_size": str(meta["config"]["image_size"])}),))
    network = LLAMAGEN_VQ.build({k: v.clone() for k, v in tensors.items()}, stated, "the golden file")
    before = {f"model.{k}": v for k, v in tensors.items()}
    before |= {f"discriminator.{k}": v for k, v in weights(meta, "discriminator.").items()}
    return network.train().requires_grad_(True), before


def _opponent(meta: Meta) -> Opponent:
    c = meta["config"]
    network = PatchGAN(c["ndf"], c["disc_layers"])
    network.load_state_dict(weights(meta, "discriminator."), strict=False)  # the running statistics are not filled
    return Opponent(network, LlamaGenVQLoss.published.adversary, start=c["disc_start"] - 1)  # it counts from 1


def _lpips(meta: Meta) -> lpips.LPIPS:
    filled = weights(meta, "lpips.")
    return lpips.from_tensors(filled, {k: v.abs() for k, v in filled.items()}, "the golden file")


def _columns(values: Tensor) -> np.ndarray:
    """Mean, population standard deviation, and the first four values, 0 where there are fewer."""
    x = values.detach().double().flatten()
    first = torch.zeros(4, dtype=torch.float64)
    first[: len(x[:4])] = x[:4]
    return torch.cat([x.mean()[None], x.std(correction=0)[None], first]).numpy()


def digest_row(after: Tensor, before: Tensor) -> np.ndarray:
    """`_columns`, and how far the tensor has moved."""
    return np.append(_columns(after), (after.detach().double() - before.double()).norm().item())


KINDS: dict[str, Replay] = {
    "var_vq": var_vq,
    "llamagen_vq": llamagen_vq,
    "tatitok_cvq": tatitok_cvq,
    "lpips": lpips_distance,
    "patchgan": patchgan,
    "titok_disc": titok_disc,
    "dino_disc": dino_disc,
}
