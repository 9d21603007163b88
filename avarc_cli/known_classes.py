"""The classes of a model as far as they are known before torch is imported: a wrong name is an error at once."""

from __future__ import annotations

from pathlib import Path

from avarc_cli import bank as banks
from avarc_cli.bank import Bank
from avarc_cli.data.class_names import named_space
from avarc_cli.data.labels import LabelSpace
from avarc_cli.zoo import local_files, model_folder
from avarc_cli.zoo.cards import ModelCard, any_card, is_path
from avarc_cli.zoo.metadata import read_metadata


def known_classes(
    model: str,
    *,
    class_names: str | Path | None = None,
    class_order: str | None = None,
    weight_set: str | None = None,
    bank: Path | None = None,
) -> LabelSpace | None:
    """The classes that the user, the model's file or its card names; None where only the weights tell.

    Args:
        model: name of a model card, or path of a checkpoint or model folder. The others are as in `loading.ModelSpec`.
    Raises: UsageError, CheckpointError as `load_model`.
    """
    folder = model_folder.find(model)
    model = str(folder.generator) if folder else model
    card = None if is_path(model) else any_card(model)
    if card is not None and not isinstance(card, ModelCard):
        return None
    file = local_files.locate(card.weights) if card else Path(model)
    metadata = read_metadata(file, weight_set or local_files.weight_set(card)) if file else None
    if metadata is None and card is None and class_names is None:
        return None
    space = named_space(card.label_space if card else None, class_names, metadata or {}, class_order)
    if space is None or bank is None:
        return space
    added = banks.read(bank)
    return added.extend(space) if seems_made_for(added, model) else None


def seems_made_for(bank: Bank, model: str) -> bool:
    """Whether a bank was made for a model of this name; when it is loaded, the models themselves are compared."""
    return bank.base.name == (model_folder.name_of(Path(model)) if is_path(model) else model)
