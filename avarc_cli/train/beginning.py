"""A tokenizer's training that begins with the weights of a file, as the fine-tuned one of LlamaGen did."""

from __future__ import annotations

from pathlib import Path

from avarc_cli import families
from avarc_cli.errors import UsageError
from avarc_cli.family import TokenizerFamily
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.tokenizer import TokenizerNetwork
from avarc_cli.zoo import checkpoint


def tokenizer_of(path: Path, known: TokenizerFamily, image_size: int | None) -> TokenizerNetwork:
    """The file's network, to be trained, on the CPU.

    Args:
        image_size: pixels; None for what the file says.
    Raises: UsageError for a network of another family, or of images of another size; CheckpointError for a file that
        cannot be read.
    """
    read = checkpoint.read(path)
    pixels = {} if image_size is None else {"image_size": image_size}
    stated = ConfigSources((("--image-size", pixels), (f"the metadata of {path}", read.metadata)))
    found = families.TOKENIZERS.recognize(read.tensors, read.metadata.get("family"), str(path))
    if found.name != known.name:
        what = f"a {known.title} cannot start from {path}"
        raise UsageError(what, f"it holds a {found.title}", "name a file of the same kind of tokenizer")
    network = known.build(read.tensors, stated, str(path))
    if image_size not in (None, network.image_size):
        what = f"{path} does not read images of {image_size} pixels"
        raise UsageError(what, f"it reads {network.image_size}", f"write --image-size {network.image_size}")
    return network.requires_grad_(True)
