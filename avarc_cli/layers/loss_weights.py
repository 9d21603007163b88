"""The published loss of a tokenizer's reconstructions, as data: how much each term weighs, and when it begins."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """A discriminator and its training; times are fractions of the steps of the training."""

    kind: str
    """ "patch" (pix2pix), "blur" (TiTok) or "dino" (StyleGAN-T on a frozen ViT)."""
    weight: float
    """Of the generator's loss -mean D(reconstruction)."""
    start: float
    """When it begins to count."""
    ramp: float = 0.0
    """How long its weight rises."""
    own_weight: float = 1.0
    """Of the discriminator's own loss."""
    halved: bool = True
    """Whether the hinge losses of images and reconstructions are averaged, rather than added."""
    adaptive: tuple[float, float] | None = None
    """Bounds of a factor that makes both gradients equally long at the decoder's last layer; None for no factor."""
    adaptive_epsilon: float = 1e-4
    """Added to the length of the generator's gradient."""
    lecam: float = 0.0
    """Weight of the LeCam regularizer."""
    consistency: float = 0.0
    """Weight of the squared change of logits under augmentation."""
    augmented: bool = False
    """Whether the discriminator sees images augmented, and blurred at first."""
    runs_before_start: bool = False
    """Whether it sees batches, and its optimizer makes steps without gradients, before it begins to count."""
    lr: float | None = None
    """Peak learning rate of its optimizer; None for the tokenizer's."""
    own_schedule: bool = False
    """Whether its learning rate begins, and warms up, when it begins to count; otherwise it is as the tokenizer's."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float = 1.0


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the terms, for images in [-1, 1]."""

    absolute: float = 0.0
    squared: float = 1.0
    lpips: float = 0.0
    lpips_from: int = 0
    """The side in pixels from which images are compared by LPIPS."""
    logits: float = 0.0
    """Of the squared difference of ConvNeXt-S's logits."""
    adversary: Adversary


VQGAN = LossWeights(
    squared=1.0,
    lpips=1.0,
    adversary=Adversary(
        kind="patch",
        weight=0.5,
        own_weight=0.5,
        start=0.05,  # step 20,000 of 40 epochs
        runs_before_start=True,
        betas=(0.9, 0.95),
    ),
)
"""As LlamaGen's code trains it (arXiv:2406.06525); arXiv:2012.09841 has an adaptive weight besides."""
