"""What a checkpoint says about itself and what is stated beside it; and tokenizers, which need nothing more."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from avarc_cli import families, strict_json
from avarc_cli.devices import pick_device
from avarc_cli.errors import CheckpointError, UsageError
from avarc_cli.layers import convolution
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layers.state_dict import known_finite
from avarc_cli.layout import TokenLayout
from avarc_cli.loaded import LoadedTokenizer
from avarc_cli.model_spec import ModelSpec
from avarc_cli.zoo import checkpoint, local_files, model_folder, weight_sets
from avarc_cli.zoo.cards import ModelCard, TokenizerCard, is_path, tokenizer_card

CONFIG = "config.json"  # beside the weights, in the format of the model's reference implementation


def place(spec: str, card: ModelCard | TokenizerCard | None) -> tuple[Path, str]:
    """Where the weights are, and what they are called. Raises: AvarcError if those of a card are not here."""
    return (local_files.require(card), card.name) if card else (Path(spec), model_folder.name_of(Path(spec)))


def read_tokenizer(
    name: str, spec: ModelSpec, device: torch.device, asked: TokenLayout | None, implied: TokenLayout | None
) -> LoadedTokenizer:
    """Load a tokenizer.

    Args:
        name: of a card, or path. spec: how it is read. asked: the layout that the user names. implied: the one of the
            generator or its card, for files that state none.
    """
    card, asked_name = None if is_path(name) else tokenizer_card(name), name
    path, name = place(name, card)
    weight_set = spec.tokenizer_weight_set or local_files.weight_set(card)
    read = checkpoint.read(path, weight_set=weight_set)
    path, last = read.path, implied or (card.layout if card else None)
    pixels = {} if spec.image_size is None else {"image_size": spec.image_size}
    stated = read_stated(read, spec.tokenizer_config, "--tokenizer-config", first=asked, last=last, pixels=pixels)
    family = families.TOKENIZERS.recognize(read.tensors, _tokenizer_family(read, stated, card), str(path))
    with known_finite(read.is_finite):
        network = family.build(read.tensors, stated, str(path))
    read.note_finite()
    if spec.image_size not in (None, network.image_size):
        raise UsageError(
            f"{name} does not read images of {spec.image_size} pixels",
            f"it reads {network.image_size}",
            f"leave out --image-size, or write --image-size {network.image_size}",
        )
    network.to(device)
    if device.type == "cpu":
        network.speed_up()
    convolution.to_channels_last(network)
    preprocess = read.metadata.get("preprocess", card.preprocess if card else "resize-crop")
    return LoadedTokenizer(
        network=network,
        family=family.name,
        name=name,
        file=str(path),
        sha256=read.sha256,
        preprocess=preprocess,
        layout=network.layout,
        load=partial(_read_tokenizer_on, asked_name, spec, asked, implied),
        weights=read.metadata.get(weight_sets.READ, ""),
        weight_set=weight_set,
    )


def _read_tokenizer_on(
    name: str, spec: ModelSpec, asked: TokenLayout | None, implied: TokenLayout | None, device: str
) -> LoadedTokenizer:
    return read_tokenizer(name, spec, pick_device(device), asked, implied)


def _tokenizer_family(read: checkpoint.Checkpoint, stated: ConfigSources, card: TokenizerCard | None) -> str | None:
    """The family that a tokenizer's file or card names. Raises: UsageError when the file is a generator's."""
    family = stated_family(stated, families.TOKENIZERS, families.GENERATORS) or (card.family if card else None)
    generators = families.GENERATORS.all().values()
    if family is None and any(not families.missing_tensors(each, read.tensors) for each in generators):
        raise UsageError(
            f"{read.path} is a generator, not a tokenizer", "it has class embeddings", "add --tokenizer NAME|FILE"
        )
    return family


def read_stated(
    read: checkpoint.Checkpoint,
    config: str | Path | None,
    option: str,
    *,
    first: TokenLayout | None = None,
    last: TokenLayout | None = None,
    pixels: Mapping[str, int] | None = None,
) -> ConfigSources:
    """What is stated about a checkpoint beside its tensors, in order of precedence.

    Args:
        config: the file that an option of this name gives. first, last: layouts that come before and after all files.
        pixels: the image size that the user names, if any.
    """
    beside = read.path.with_name(CONFIG)
    sources: list[tuple[str, Mapping[str, Any]]] = []
    if first is not None:
        sources.append(("the command", {"layout": first.to_dict()}))
    if pixels:
        sources.append(("--image-size", pixels))
    if config is not None:
        sources.append((f"{option} {config}", _read_json(Path(config))))
    if beside.is_file():
        sources.append((str(beside), _read_json(beside)))
    sources.append((metadata_of(read), read.metadata))
    if last is not None:
        sources.append(("the generator or its card", {"layout": last.to_dict()}))
    return ConfigSources(tuple(sources))


def metadata_of(read: checkpoint.Checkpoint) -> str:
    return f"the metadata of {read.path}"


def _read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object. Raises: CheckpointError naming the file."""
    try:
        return strict_json.parse_object(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"the configuration {path} cannot be read", str(error), "correct or move the file"
        ) from None


def stated_family(stated: ConfigSources, wanted: families.Registry[Any], other: families.Registry[Any]) -> str | None:
    """The family that files state, or None.

    A name of the other kind does not count: generator and tokenizer may lie beside the same config.json.
    """
    found = stated.find("family")
    name = None if found is None else str(found[0])
    return None if name in other.names() and name not in wanted.names() else name
