"""Compares weights on this machine, byte for byte, with the digests that were published or recorded.

Loading does not do this: it trusts a file whose size and times did not change (`weights_index`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from avarc_cli.errors import AvarcError
from avarc_cli.progress import StartProgress
from avarc_cli.zoo import checkpoint, digests, local_files, sharded, weights_index
from avarc_cli.zoo.card import AssetFile, Card, HubFile, LocalFile, NetworkCard, TextEncoderCard

MB = 10**6
WHOLE, UNKNOWN, MISSING, DAMAGED, REPAIRED = "whole", "not recorded", "missing", "damaged", "damaged, made again"


@dataclass(frozen=True)
class Verified:
    """What became of one file. The field names are keys of the JSON output of `avarc models verify`."""

    name: str  # of the card
    file: Path
    status: str  # WHOLE; UNKNOWN: there is no digest to compare it with; MISSING; DAMAGED; REPAIRED: a copy
    sha256: str  # of its bytes, in hex; "" where the file is missing
    fix: str = ""  # what to do if it is damaged

    @property
    def is_damaged(self) -> bool:
        return self.status in (MISSING, DAMAGED, REPAIRED)


def verify(card: Card, start: StartProgress) -> list[Verified]:
    """Compare a card's file with its digest, or its index and shards, and their safetensors copies.

    A damaged copy is made again if its source is whole. `start` is called with the name and the MB of each file.

    Raises: AvarcError if a file cannot be read or a copy not be written, or the weights are not on this machine.
    """
    if isinstance(card.weights, LocalFile) and not card.weights.path.is_file():
        return [
            Verified(card.name, card.weights.path, MISSING, "", f"put it back, or: avarc models remove {card.name}")
        ]
    path = local_files.require(card)
    if isinstance(card.weights, AssetFile):
        return [Verified(card.name, path, UNKNOWN, _sha256(path, start))]  # a package manager's matter
    results: list[Verified] = []
    for file in sharded.files(path):
        entry = weights_index.recorded(file)
        source = _source(card, file, entry, start)
        results.append(source)
        for weight_set, copy in (entry.copies if entry else {}).items():
            results += _copy(card, source, weight_set, copy, start)
    return results


def verify_encoder(card: TextEncoderCard, start: StartProgress) -> list[Verified]:
    """Compare the files of a text encoder with the digests that are their names in the Hugging Face cache.

    Raises: AvarcError if they are not on this machine, or cannot be read.
    """
    folder, results = local_files.require_folder(card), []
    for file in (folder / name for name in card.weights.filenames):
        expected = file.resolve().name
        found = _sha256(file, start)
        same = digests.of_file(file, expected) == expected if digests.is_git(expected) else found == expected
        status = UNKNOWN if not digests.is_digest(expected) else WHOLE if same else DAMAGED
        fix = local_files.download_command(card) if status == DAMAGED else ""
        results.append(Verified(card.name, file, status, found, fix))
    return results


def verify_network(card: NetworkCard, start: StartProgress) -> Verified:
    """Compare a frozen network with its published digest. Raises: as `verify_encoder`."""
    path, expected = local_files.require_network(card), card.weights.sha256
    found = _sha256(path, start)
    status = UNKNOWN if expected is None else WHOLE if found == expected else DAMAGED
    return Verified(card.name, path, status, found, local_files.download_command(card) if status == DAMAGED else "")


def _source(card: Card, file: Path, entry: weights_index.IndexEntry | None, start: StartProgress) -> Verified:
    if not file.is_file():
        return Verified(card.name, file, MISSING, "", sharded.AGAIN)
    found, expected = _sha256(file, start), _expected(card, file, entry)
    if expected in (None, found):
        return Verified(card.name, file, WHOLE if expected else UNKNOWN, found)
    if isinstance(card.weights, HubFile):
        fix = local_files.download_command(card)
    else:
        fix = "copy it again from where it came; if you changed it yourself, register it again: "
        fix += f"avarc models remove {card.name}, then avarc models add"
    return Verified(card.name, file, DAMAGED, found, fix)


def _expected(card: Card, file: Path, entry: weights_index.IndexEntry | None) -> str | None:
    """The sha256 that the card states, the name of the file in the Hugging Face cache, or what was recorded."""
    stated = card.weights.sha256 or local_files.blob_sha256(file) if isinstance(card.weights, HubFile) else None
    return stated or (entry.sha256 if entry else None)


def _copy(
    card: Card, source: Verified, weight_set: str, copy: weights_index.Copy, start: StartProgress
) -> list[Verified]:
    """The result for a copy; none if it was deleted, which anyone may do."""
    path = Path(copy.path)
    if not path.is_file():
        return []
    found = _sha256(path, start)
    if found == copy.sha256:
        return [Verified(card.name, path, WHOLE, found)]
    path.unlink()  # it is not to be loaded again, whether or not it can be made again
    if source.is_damaged:
        return [Verified(card.name, path, DAMAGED, found, f"repair {source.file} first: the copy was deleted")]
    checkpoint.convert_and_cache(source.file, weight_set=weight_set or None)
    return [Verified(card.name, path, REPAIRED, found, f"it was made again from {source.file}")]


def _sha256(file: Path, start: StartProgress) -> str:
    try:
        size = file.stat().st_size
    except OSError as problem:
        raise AvarcError(f"{file} cannot be read", problem.strerror or str(problem), "check its permissions") from None
    with start(file.name, size // MB) as bar:
        return weights_index.sha256_of_file(file, lambda done: bar.update(done // MB))
