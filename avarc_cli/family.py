"""What a family of models provides: a `GeneratorFamily` or a `TokenizerFamily`, which `families` finds.

They read a checkpoint's configuration and build what the interfaces in `likelihood` and `tokenizer` describe. Nothing
here imports a network.

Shapes: B images or token sequences, L tokens, P pairs of (sequence, class).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from avarc_cli.errors import UsageError
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layers.loss_weights import LossWeights
from avarc_cli.layers.precision import Precision
from avarc_cli.layers.rows import Rows
from avarc_cli.layers.vq_loss import Reconstruction
from avarc_cli.likelihood import GeneratorConfig, LikelihoodModel
from avarc_cli.text.features import TextInput
from avarc_cli.tokenizer import TokenizerNetwork
from avarc_cli.trainable import CaptionTrainableModel, TrainableModel


class GeneratorFamily(ABC):
    """Generators of one architecture."""

    name: ClassVar[str]
    """In cards, checkpoint metadata and commands: "var"."""
    title: ClassVar[str]
    """In messages: "VAR transformer"."""
    signature: ClassVar[tuple[str, ...]]
    """Keys of tensors that every checkpoint of the family has. Together no other family has them, except one whose own
    signature contains these and more."""

    continuous: ClassVar[bool] = False
    """Whether they read continuous tokens, those of a VAE, rather than codes."""
    of_captions: ClassVar[tuple[str, ...]] = ()
    """Tensors whose shapes follow from what the text encoder gives: a training that starts from a file may have new
    ones."""

    @abstractmethod
    def read_config(self, tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> GeneratorConfig:
        """The configuration of a checkpoint.

        Args:
            tensors: under the published keys. stated: what files say beside them, for what tensors cannot tell.
            source: the checkpoint, for messages.
        Raises: CheckpointError when the tensors are none of the family.
        """

    @abstractmethod
    def build(
        self,
        config: Any,
        tensors: Mapping[str, Tensor],
        tokenizer: TokenizerNetwork,
        *,
        precision: Precision,
        kernels: str,
        device: torch.device,
        source: str,
    ) -> LikelihoodModel:
        """The model of a checkpoint, ready to score.

        Args:
            config: from `read_config`. tokenizer: the one that the generator was trained with.
            kernels: of all operations (`layers.kernels.use_kernels`).
        Raises: CheckpointError when the tensors are incomplete, or tokenizer and generator do not fit.
        """

    def new(self, tokenizer: TokenizerNetwork, num_classes: int, **shape: Any) -> TrainableModel:
        """An initialized model to train, on the tokenizer's device; `shape` is the family's own. Uses torch's seed."""
        raise UsageError(f"a {self.title} cannot be trained here", "training is not implemented for this family")

    def new_of_captions(self, tokenizer: TokenizerNetwork, text: TextInput, **shape: Any) -> CaptionTrainableModel:
        """An initialized model to train on captions with such features; otherwise as `new`."""
        raise UsageError(f"a {self.title} cannot be trained on captions", "training is not implemented for this family")

    def shape_of(self, config: Any, tokenizer: TokenizerNetwork, source: str) -> dict[str, Any]:
        """The shape of a checkpoint, as `new_of_captions` takes it, for a training that starts from its weights.

        Raises: CheckpointError for another tokenizer than it was trained with.
        """
        raise UsageError(f"a {self.title} cannot start from a file", "its trainings start from new weights")

    def random_workload(self, shape: str, scales: Sequence[int] | None, device: torch.device) -> BenchWorkload:
        """A model of this shape with random weights, beside a plain PyTorch implementation, for `avarc bench`."""
        raise UsageError(f"a {self.title} cannot be benchmarked", "this family has no reference implementation")

    def model_workload(self, model: LikelihoodModel, device: torch.device) -> BenchWorkload:
        """The same with the weights of a loaded model."""
        raise UsageError(f"a {self.title} cannot be benchmarked", "this family has no reference implementation")


class BenchWorkload(Protocol):
    """One image's tokens, and models with the same weights to score them with."""

    segment_ends: tuple[int, ...]
    """End position of each segment; the last is L."""

    num_classes: int
    """Of the models."""

    flops: int
    """Floating-point operations to score one pair, only the necessary ones."""

    tokens_L: Tensor
    """int64."""

    def reference(self, class_id_P: Tensor) -> Tensor:
        """Token log-probabilities by a straightforward float32 implementation in plain PyTorch, (P, L)."""
        ...

    def model(self, precision: str, kernels: str) -> LikelihoodModel:
        """The family's model. Raises: UsageError for a precision that is not available."""
        ...


class TokenizerFamily(ABC):
    """Image tokenizers of one architecture; name, title and signature as of a `GeneratorFamily`."""

    name: ClassVar[str]
    title: ClassVar[str]
    signature: ClassVar[tuple[str, ...]]
    generator: ClassVar[str] = ""
    """Name of the family of generators that a small model of its tokens is made of; "" where none can be trained."""
    teacher: ClassVar[str] = ""
    """Name of the family of tokenizers whose codes a model trained in two stages first learns to predict; "" where
    training has one stage."""
    undecayed: ClassVar[tuple[str, ...]] = ()
    """Words in the names of parameters that the published training applies no weight decay to, besides those of one
    dimension."""

    @abstractmethod
    def build(self, tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> TokenizerNetwork:
        """The network of a checkpoint, in evaluation mode, on the CPU.

        Raises: CheckpointError when the tensors are incomplete, or something that they cannot tell is stated nowhere.
        """

    def new(self, **shape: Any) -> TokenizerNetwork:
        """An initialized network to train, on the CPU; `shape` is the family's own. Uses torch's seed.

        Raises: UsageError for a shape that does not fit together.
        """
        raise UsageError(f"a {self.title} cannot be trained here", "training is not implemented for this family")

    def training_loss(self, network: TokenizerNetwork) -> TokenizerLoss:
        """The loss that trains a network of `new`."""
        raise UsageError(f"a {self.title} cannot be trained here", "training is not implemented for this family")

    def first_stage(self, teacher: TokenizerNetwork, **shape: Any) -> tuple[TokenizerNetwork, TokenizerLoss]:
        """An initialized network to predict the tokens that `teacher` gives, on its device, and the loss to train it.

        `shape` is the family's own. Uses torch's seed.
        Raises: UsageError for a shape that does not fit together, or does not fit the teacher.
        """
        raise self._one_stage()

    def second_stage(
        self, first: Mapping[str, Tensor], stated: ConfigSources, source: str, teacher: TokenizerNetwork
    ) -> tuple[TokenizerNetwork, TokenizerLoss]:
        """The network of a first stage's checkpoint with the teacher's decoder behind it, and the loss to train them.

        Only what decodes is trained, on the teacher's device.
        Raises: UsageError when the checkpoint is of no first stage, or not of this teacher's tokens; as `build`.
        """
        raise self._one_stage()

    def _one_stage(self) -> UsageError:
        return UsageError(f"a {self.title} has no stages", "it is trained in one", "train it without another tokenizer")


class TokenizerLoss(Protocol):
    """A training loss; it may keep statistics from step to step."""

    def __call__(
        self, images: Tensor, step: int, steps: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch or a part of it, and numbers to show.

        Args:
            images: (B, 3, H, H) float32 in [-1, 1]. step: from 0, of this many `steps` of the training.
            generator: the step's own, on the CPU.
        """
        ...

    def before_update(self, step: int, steps: int) -> None:
        """Called once a step, by all processes: after the gradients of every part, before the weights change."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What is kept from step to step, for a checkpoint; the same in all processes."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        ...


@runtime_checkable
class DrawnLoss(Protocol):
    """A training loss that needs random numbers for each image."""

    def draw(self, rows: Rows, generator: torch.Generator) -> None:
        """Draw them for these rows of a batch, which come next: the same however a batch is divided.

        Args:
            generator: the step's own, on the CPU.
        """
        ...


@runtime_checkable
class CaptionedLoss(Protocol):
    """A training loss of a tokenizer whose decoder reads captions."""

    def read(self, text_BTD: Tensor) -> None:
        """Take the captions of the images that come next, as `TokenizerNetwork.with_guidance`."""
        ...


@runtime_checkable
class PixelLoss(TokenizerLoss, Protocol):
    """A training loss whose error of pixels can be replaced by the terms of a published loss."""

    published: ClassVar[LossWeights]
    """The published one."""

    @property
    def last_weight(self) -> Tensor:
        """The weight of the decoder's last convolution."""
        ...

    def reconstruct(self, images: Tensor, step: int, steps: int, generator: torch.Generator) -> Reconstruction:
        """What is made of a batch, with gradients; arguments as of a call."""
        ...
