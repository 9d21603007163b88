"""Which model to load, and how it computes."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, fields, replace
from pathlib import Path

from avarc_cli.captioning import CaptionChoice
from avarc_cli.zoo import model_folder


@dataclass(frozen=True)
class ModelSpec:
    """Which model to load, and how it computes.

    A model alone is `ModelSpec("var-d16")`, a checkpoint with its tokenizer `ModelSpec("var.pth", "vae.pth")`; the
    other fields are given by name.
    """

    model: str = "digits"
    """Name of a model card (`avarc models`), or path of a checkpoint or of a model folder (`zoo.model_folder`)."""

    tokenizer: str | None = None
    """Name of a tokenizer card, or path. None for the one a card implies; a checkpoint's path implies none."""

    _: KW_ONLY

    model_config: str | Path | None = None
    """JSON file that states what the tensors of the generator cannot tell."""

    tokenizer_config: str | Path | None = None
    """JSON file that states what the tensors of the tokenizer cannot tell."""

    class_names: str | Path | None = None
    """For a checkpoint that does not name its classes: text file with one a line, in the order of the class ids, or the
    folder that it was trained on, whose sub-folders are the classes in sorted order."""

    class_order: str | None = None
    """How a checkpoint that does not name its classes numbered folders called 0, 1, 2, ...: "number", or "text" for
    the order of the names as text. None for "number"."""

    precision: str = "fp32"
    """One of fp32, tf32 (CUDA), bf16, fp16, int16 (CPU), int8 and fp8 (CUDA). Or a cascade of two, which classifies
    only: cascade, bf16+fp32 and the like, or auto, which is a cascade where that is much faster (docs/cascade.md)."""

    device: str = "auto"
    """As torch names it: cpu, cuda, cuda:1, mps, xpu; or auto, the first CUDA device where there is one."""

    kernels: str = "auto"
    """One of auto, torch, triton and flash (`devices.pick_kernels`)."""

    products: str = "auto"
    """What multiplies float32 matrices on a CPU, on which the last bits of scores depend: torch, onednn, avarc, rule,
    or auto for the fastest by a measurement, unless AVARC_PRODUCTS says which (`product_library.resolve`)."""

    bank: str | Path | None = None
    """Folder of classes that were added to this model (`avarc add-class`)."""

    lora: str | Path | None = None
    """Folder with a LoRA adapter in PEFT's format, to merge into the weights."""

    lora_alpha: float | None = None
    """Scale of LoRA tensors inside the generator's checkpoint, where nothing states it."""

    weight_set: str | None = None
    """Which of several sets of weights in the generator's checkpoint, such as "ema"; None for the trained weights."""

    tokenizer_weight_set: str | None = None
    """The same of the tokenizer's checkpoint."""

    image_size: int | None = None
    """Side of the images in pixels, for a tokenizer that reads images of several sizes."""

    captions: str | Path | None = None
    """Of a model of captions, a file with the captions that it chooses from: .txt, .json, .csv, or their features,
    .safetensors (docs/captions.md)."""

    templates: tuple[str, ...] = ()
    """In place of a file: texts like "a photo of a {}", which the names of classes are put into."""

    template_names: tuple[str, ...] = ()
    """The classes whose names are put into `templates`: names, or synsets of ImageNet."""

    text_encoder: str | Path | None = None
    """What encodes captions: a name (`avarc models`) or a folder. None for the encoder of the model's training."""

    aesthetic_score: float | None = None
    """Of the images that captions describe, for a model that is given one; None for the model's default."""

    @property
    def caption_choice(self) -> CaptionChoice:
        """The fields about captions."""
        return CaptionChoice(**{each.name: getattr(self, each.name) for each in fields(CaptionChoice)})

    def with_files(self) -> ModelSpec:
        """The same with the files of a model folder in its place. Raises: CheckpointError for a damaged one."""
        folder, reader = model_folder.find(self.model), model_folder.find(self.tokenizer)
        tokenizer = str(reader.tokenizer) if reader else self.tokenizer
        if folder is None:
            return replace(self, tokenizer=tokenizer)
        return replace(self, model=str(folder.generator), tokenizer=tokenizer or str(folder.tokenizer))
