"""Text encoders by name, and the features of captions, which are computed once on this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import torch

from avarc_cli import strict_json
from avarc_cli.errors import AvarcError, CheckpointError, UsageError
from avarc_cli.progress import StartProgress, silent
from avarc_cli.text import feature_file, hub_folder
from avarc_cli.text.captions import check_encoder
from avarc_cli.text.encoder import Encoded, TextEncoder, encode
from avarc_cli.text.features import CaptionFeatures, TextInput
from avarc_cli.zoo import cards, local_files, paths

KINDS = {"t5": "avarc_cli.text.t5:T5", "clip": "avarc_cli.text.clip:CLIP", "small": "avarc_cli.text.small:SmallText"}
"""Kind -> its class, which is imported when it is first used."""
MODEL_TYPES = {"t5": "t5", "clip": "clip", "clip_text_model": "clip", "avarc-small-text": "small"}
"""`model_type` in a folder's config.json -> kind."""
VERSION = 2
"""Of what encoders do with a caption; a change makes features be computed again."""
CUT = "cut"  # in the metadata of a file of features: the rows of captions that were too long


@dataclass(frozen=True)
class Found:
    """A text encoder on this machine, not loaded."""

    name: str
    """As in `TextInput.encoder`; "" for a folder of the user's own."""
    kind: str
    """A name in KINDS."""
    folder: Path
    positions: int
    sha256: str
    """Of everything that features depend on."""

    def load(self, device: torch.device) -> TextEncoder:
        """Raises: UsageError without the packages of avarc[text]; CheckpointError for damaged files."""
        module, _, name = KINDS[self.kind].partition(":")
        loaded: TextEncoder = getattr(import_module(module), name)(self.folder, self.name, self.positions, device)
        return loaded

    def text_input(self, features: CaptionFeatures) -> TextInput:
        """What a generator reads that is trained on these features, which this encoder made."""
        pooled = features.pooled_RE
        return TextInput(
            encoder=self.name or self.folder.name,
            positions=self.positions,
            width=features.sequence_RTD.shape[2],
            pooled_width=0 if pooled is None else pooled.shape[1],
        )

    def protocol(self) -> dict[str, str]:
        """For run.json."""
        return {"name": self.name or self.folder.name, "sha256": self.sha256}


def find(encoder: str | Path) -> Found:
    """A text encoder by name, or in a folder.

    Raises: UsageError for another name; AvarcError for one that is not downloaded; CheckpointError for another folder.
    """
    known = {card.name: card for card in cards.text_encoder_cards()}
    if str(encoder) in known:
        card = known[str(encoder)]
        folder = local_files.require_folder(card)
        return Found(card.name, card.kind, folder, card.positions, hub_folder.sha256_of(folder))
    check_encoder(str(encoder))
    folder = Path(encoder)
    config = hub_folder.read_config(folder)
    stated = str(config.get("model_type"))
    if stated not in MODEL_TYPES:
        why = f"its {hub_folder.CONFIG} says model_type '{stated}'; avarc reads {', '.join(MODEL_TYPES)}"
        raise CheckpointError(f"'{folder}' is another text encoder than avarc knows", why)
    kind = MODEL_TYPES[stated]
    positions = next(card.positions for card in known.values() if card.kind == kind)
    own = config.get("positions", config.get("text_config", config).get("max_position_embeddings"))
    if isinstance(own, int):
        positions = own if kind == "small" else min(positions, own)
    return Found("", kind, folder, positions, hub_folder.sha256_of(folder))


def metadata(found: Found, encoded: Encoded) -> dict[str, str]:
    """What a file of features says about how they were made."""
    return {"encoder_sha256": found.sha256, CUT: json.dumps(encoded.cut)}


def check_kind(found: Found, wanted: str, model: str) -> None:
    """Raises: UsageError where a model was trained with an encoder of another kind than this folder's."""
    kinds = {card.name: card.kind for card in cards.text_encoder_cards()}
    if kinds.get(wanted, found.kind) != found.kind:
        why = f"'{found.folder}' holds a {found.kind}; {model} was trained with {wanted}, a {kinds[wanted]}"
        raise UsageError(f"{model} cannot read what this text encoder makes", why, f"use --text-encoder {wanted}")


def encode_once(found: Found, texts: Sequence[str], device: torch.device, progress: StartProgress = silent) -> Encoded:
    """Features of captions: from avarc's cache if they were computed before, else computed, and kept there.

    The encoder is freed before this returns. progress: opens a bar if captions are encoded.

    Raises: as `Found.load`.
    """
    unique = tuple(dict.fromkeys(texts))
    path = _place(found, unique)
    encoded = _cached(path, unique, found.name)
    if encoded is None:
        encoded = _encode(found, unique, device, progress)
        with suppress(OSError):  # the cache only saves time
            path.parent.mkdir(parents=True, exist_ok=True)
            feature_file.write(path, encoded.features, unique, metadata(found, encoded))
    if len(unique) == len(texts):
        return encoded
    row = {text: i for i, text in enumerate(unique)}
    cut = {unique[i] for i in encoded.cut}
    rows = [row[text] for text in texts]
    return Encoded(take(encoded.features, rows), tuple(i for i, text in enumerate(texts) if text in cut))


def take(features: CaptionFeatures, rows: Sequence[int]) -> CaptionFeatures:
    """The features of these captions, in this order."""
    pooled, guidance = features.pooled_RE, features.guidance_RTD
    return replace(
        features,
        captions=tuple(features.captions[i] for i in rows),
        sequence_RTD=features.sequence_RTD[list(rows)],
        length_R=features.length_R[list(rows)],
        pooled_RE=None if pooled is None else pooled[list(rows)],
        guidance_RTD=None if guidance is None else guidance[list(rows)],
    )


def _encode(found: Found, texts: Sequence[str], device: torch.device, progress: StartProgress) -> Encoded:
    encoder = found.load(device)
    try:
        with progress("encoding captions", len(texts) + 1) as bar:
            return encode(encoder, texts, bar.update)
    finally:
        del encoder
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _place(found: Found, texts: Sequence[str]) -> Path:
    content = json.dumps([VERSION, found.sha256, found.positions, list(texts)])
    return paths.captions_folder() / f"{hashlib.sha256(content.encode()).hexdigest()}{feature_file.SUFFIX}"


def _cached(path: Path, texts: tuple[str, ...], encoder: str) -> Encoded | None:
    if not path.is_file():
        return None
    with suppress(AvarcError, OSError, ValueError):  # damaged: it is made again
        features, metadata = feature_file.load(path)
        if features.captions == texts:
            cut = tuple(strict_json.parse(metadata[CUT]))
            return Encoded(replace(features, encoder=encoder), cut)
    return None
