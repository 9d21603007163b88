"""What a token cache says about how it was made, and how two such statements are compared."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avarc_cli.errors import CacheError

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class CacheHeader:
    """How a cache was made.

    format: version of the layout; tokenizer, tokenizer_file, tokenizer_sha256: its name, file name, and digest of
    the file; patch_nums: side of each scale; image_size: pixels a side; preprocess: protocol text;
    precision: of the encoder;
    samples: S; sigma: standard deviation of the neighbours' noise on the latents, and seed of it (both 0 when S is 1);
    latents: whether they are kept; class_names: what labels index into; dataset: the known dataset it is
    ("imagenet-r"), "" for any other; source: what was encoded, as the user named it; images: how many that were,
    unreadable ones included; images_sha256: digest of their names and labels.
    """

    format: int = FORMAT
    tokenizer: str
    tokenizer_file: str
    tokenizer_sha256: str
    vocab_size: int
    patch_nums: tuple[int, ...]
    image_size: int
    preprocess: str
    precision: str
    samples: int
    sigma: float
    seed: int
    latents: bool
    class_names: tuple[str, ...]
    dataset: str
    source: str
    images: int
    images_sha256: str

    @property
    def num_tokens(self) -> int:
        """L, tokens an image."""
        return sum(side * side for side in self.patch_nums)

    def to_dict(self) -> dict[str, Any]:
        """The header as JSON knows it (lists for tuples)."""
        values = dataclasses.asdict(self)
        return values | {"patch_nums": list(self.patch_nums), "class_names": list(self.class_names)}

    def to_json(self) -> str:
        """One line with sorted keys: the same header is the same bytes. Odd file names are escaped, so it is ASCII."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes, path: Path) -> CacheHeader:
        """The header of the cache at `path`.

        Raises: CacheError for another format version; KeyError, TypeError, ValueError for what is no header.
        """
        values = {"dataset": "", "precision": "fp32"} | json.loads(text)  # the first caches did not tell
        version = values["format"]
        if version != FORMAT:
            fix = "upgrade avarc: pip install --upgrade avarc" if version > FORMAT else "encode the images again"
            raise CacheError(f"'{path}' has another format", f"it is version {version}, this is {FORMAT}", fix)
        kept = {field.name: values[field.name] for field in dataclasses.fields(cls)}
        lists = {name: tuple(kept[name]) for name in ("patch_nums", "class_names")}
        header = cls(**(kept | lists))
        numbers = (*header.patch_nums, header.image_size, header.samples, header.vocab_size, header.images)
        if not all(type(number) is int and number > 0 for number in numbers):
            raise ValueError("a size in its header is not a positive whole number")
        texts = [getattr(header, field.name) for field in dataclasses.fields(cls) if field.type == "str"]
        if not all(isinstance(text, str) for text in (*texts, *header.class_names)):
            raise ValueError("a name in its header is no text")
        return header


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which part of a cache a file holds, when it was not encoded as a whole.

    unit: images a unit, of the numbering here; batch_size: images the tokenizer read at once; units: the numbers of
    those that are in the file, increasing; unreadable: indices in the full set of the images left out of it.
    """

    unit: int
    batch_size: int
    units: tuple[int, ...]
    unreadable: tuple[int, ...]

    def to_json(self) -> str:
        """One line with sorted keys."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Share:
        """Raises: KeyError, TypeError, ValueError for what is none."""
        values = json.loads(text)
        numbers = {name: tuple(int(number) for number in values[name]) for name in ("units", "unreadable")}
        share = cls(unit=int(values["unit"]), batch_size=int(values["batch_size"]), **numbers)
        if share.unit < 1 or not share.units or sorted(set(share.units)) != list(share.units) or share.units[0] < 0:
            raise ValueError("its units are not increasing numbers")
        return share

    def count(self, images: int) -> int:
        """How many units so many images make."""
        return -(-images // self.unit)
