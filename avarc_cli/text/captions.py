"""The captions that candidates are: from a file, or class names put into templates. There is no torch here.

Shapes: N candidates, R captions; a candidate may have several.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from avarc_cli.data.class_names import read_class_names
from avarc_cli.data.labels import LabelSpace, human_name, subset, subset_names
from avarc_cli.errors import UsageError
from avarc_cli.settings import check_file
from avarc_cli.text import caption_files, feature_file
from avarc_cli.zoo.cards import caption_card, text_encoder_card

RULE = "mean of the log-likelihoods over the captions of a candidate"
"""What the score of a candidate with several captions is."""
SUFFIXES = (*caption_files.READERS, feature_file.SUFFIX)
PLACE = "{}"  # where a template has the class name
ALONE = PLACE
"""The template whose captions are the names themselves."""


@dataclass(frozen=True)
class Captions:
    """Candidates with their captions."""

    source: str
    """What they are from, for messages."""
    ids: tuple[str, ...]
    """(N,) unique: the names of the candidates, or the names of a dataset's classes."""
    names: tuple[str, ...]
    """(N,) for people."""
    texts: tuple[str, ...]
    """(R,) the captions; of a file of features that does not state them, the names."""
    candidate: tuple[int, ...]
    """(R,) which candidate each caption is of."""
    templates: tuple[str, ...] = ()
    """What the names were put into, if they are class names."""
    features: Path | None = None
    """The file that holds the features, if they were encoded already."""
    digest: str = ""
    """In hex: of that file, or of the names and captions."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_several(self) -> bool:
        """Whether a candidate has several captions."""
        return len(self.texts) > len(self.ids)

    @property
    def by_name(self) -> dict[str, list[str]]:
        """The captions of each candidate."""
        owned: dict[str, list[str]] = {name: [] for name in self.ids}
        for text, owner in zip(self.texts, self.candidate, strict=True):
            owned[self.ids[owner]].append(text)
        return owned

    @property
    def label_space(self) -> LabelSpace:
        """The candidates as classes."""
        return LabelSpace(self.source, self.ids, self.names)

    @property
    def same(self) -> list[tuple[str, str]]:
        """Pairs of candidates with the same caption, which no image can tell apart: classes of the same name."""
        first: dict[str, int] = {}
        pairs = {(first.setdefault(text, owner), owner) for text, owner in zip(self.texts, self.candidate, strict=True)}
        return [(self.ids[a], self.ids[b]) for a, b in sorted(pairs) if a != b]


def read(path: Path) -> Captions:
    """The captions of a file: .txt, .json, .csv, or features (.safetensors).

    Raises: UsageError for a file that is not there or holds no captions, or holds some twice, with the places.
    """
    check_file(path, "--captions")
    stat = path.stat()
    return _read(path, stat.st_size, stat.st_mtime_ns)


@cache
def _read(path: Path, size: int, mtime_ns: int) -> Captions:
    """As `read`; commands ask several times, and features may be gigabytes."""
    suffix = path.suffix.lower()
    if suffix == feature_file.SUFFIX:
        header = feature_file.read_header(path)
        return _grouped(path.name, header.names, header.texts, features=path, digest=header.sha256)
    if suffix not in caption_files.READERS:
        why = f"captions are in files that end in {', '.join(SUFFIXES)}"
        raise UsageError(f"cannot read captions from '{path}'", why, "rename or convert the file")
    entries = caption_files.read(path)
    return _grouped(path.name, [entry.name for entry in entries], [entry.caption for entry in entries])


def _spoken(name: str) -> str:
    """A class name as words: golden_retriever is one with a space."""
    return name if " " in name else name.replace("_", " ")


def choose(path: str | Path | None, templates: Sequence[str], classes: Sequence[str]) -> Captions:
    """The captions of a file, or class names in templates. Raises: UsageError as `read` and `from_templates`."""
    check_options(None if path is None else Path(path), templates, None)
    return from_templates(templates, classes) if path is None else read(Path(path))


def read_texts(path: Path, templates: Sequence[str]) -> Captions:
    """The captions of a file that are to be encoded, in templates where there are some.

    Raises: UsageError as `read` and `check_templates`, for features, and for templates of anything but a list of names.
    """
    if path.suffix.lower() == feature_file.SUFFIX:
        raise UsageError(f"'{path}' has features already", "captions are in .txt, .json or .csv files")
    check_templates(templates)
    check_file(path, "FILE")
    found = read(path)
    if not templates:
        return found
    if found.texts != found.ids:
        raise UsageError(f"'{path}' has captions with names", "a template is for names alone", "leave out --template")
    return from_templates(templates, found.ids, found.source)


def from_templates(templates: Sequence[str], classes: Sequence[str], source: str = "") -> Captions:
    """Class names in templates: each class is a candidate with a caption for every template.

    Args:
        templates: with "{}" once each. classes: names or synsets; of these, the human-readable name is used.
        source: what the classes are of, for messages.
    Raises: UsageError as `check_templates`, for no classes, and for classes that occur twice.
    """
    check_templates(templates)
    if not classes:
        raise UsageError("which classes are to be put into the template?", "the images have no class names", NO_CLASSES)
    if twice := [name for name in dict.fromkeys(classes) if classes.count(name) > 1]:
        raise UsageError(f"class '{twice[0]}' occurs twice", "each class is one candidate", "name it once")
    names = [human_name(name) for name in classes]
    captions = [[template.replace(PLACE, _spoken(name)) for template in templates] for name in names]
    texts = tuple(text for each in captions for text in each)
    candidate = tuple(i for i, each in enumerate(captions) for _ in each)
    return Captions(
        source or "the class names",
        tuple(classes),
        tuple(names),
        texts,
        candidate,
        templates=tuple(templates),
        digest=_digest(classes, texts, candidate),
    )


NO_CLASSES = "name the classes with --class-names FILE, one a line, or write the captions into a file: --captions FILE"


def template_names(named: str | Path | None, class_names: Sequence[str], classes: str | None) -> tuple[str, ...]:
    """The classes whose names go into templates: the first of these that there is.

    Args:
        named: a file with one name a line, or the folder of training images, whose sub-folders are the classes.
        class_names: of the images' classes.
        classes: a known subset, a file, or names with commas between them.
    Raises: UsageError where there are none, and for files that cannot be read.
    """
    if named is not None:
        return read_class_names(Path(named))
    if class_names:
        return tuple(class_names)
    if classes is None or classes == "all":
        raise UsageError("which classes are to be put into the template?", "the images have no class names", NO_CLASSES)
    listed = tuple(part.strip() for part in classes.split(",") if part.strip())
    is_list = len(listed) > 1 or not (classes in subset_names() or Path(classes).is_file())
    return listed if is_list else subset(classes)


def check_options(
    captions: Path | None, templates: Sequence[str], text_encoder: str | None, *, has_bank: bool = False
) -> None:
    """Check the options about captions before torch is imported.

    Raises: UsageError for a file, templates or an encoder that cannot be used, or not together.
    """
    given = captions is not None or bool(templates)
    if captions is not None and templates:
        why = "the one names a file of captions, the other makes captions of class names"
        raise UsageError("--captions and --template exclude each other", why, "leave out one of them")
    check_templates(templates)
    if captions is not None:
        read(captions)
    if text_encoder is not None:
        if captions is not None and captions.suffix.lower() == feature_file.SUFFIX:
            raise UsageError("no use for --text-encoder", f"'{captions}' has features already", "leave it out")
        check_encoder(text_encoder)
    if has_bank and given:
        raise UsageError("no use for --bank", "classes are added to models of classes, not of captions", "leave it out")


def needed_encoder(
    model: str, captions: str | Path | None, templates: Sequence[str], text_encoder: str | None
) -> str | None:
    """The text encoder that has to be on this machine, as far as it is known before the model is loaded.

    Args:
        model: its name or file. captions, templates: of which at most one is given. text_encoder: None for the one of
            the model's training.
    """
    encoded = captions is not None and Path(captions).suffix.lower() == feature_file.SUFFIX
    if encoded or (captions is None and not templates):
        return None
    card = caption_card(model)
    return text_encoder or (None if card is None else card.text_encoder)


def check_encoder(encoder: str) -> None:
    """Raises: UsageError unless this is the name of a text encoder, or a folder."""
    if not Path(encoder).is_dir():
        if Path(encoder).exists() or "/" in encoder:
            raise UsageError(f"'{encoder}' is not a folder", "a text encoder is a folder of several files", "name it")
        text_encoder_card(encoder)


def check_templates(templates: Sequence[str]) -> None:
    """Raises: UsageError for a template that does not have "{}" exactly once, or is there twice."""
    for template in templates:
        if template.count(PLACE) != 1:
            why = f"a template has {PLACE} once, for the class name; this one has it {template.count(PLACE)} times"
            raise UsageError(f"cannot use the template '{template}'", why, 'write --template "a photo of a {}"')
    if twice := [each for each in dict.fromkeys(templates) if templates.count(each) > 1]:
        raise UsageError(f"the template '{twice[0]}' is there twice", fix="name it once")


def _grouped(
    source: str, names: Sequence[str], texts: Sequence[str], *, features: Path | None = None, digest: str = ""
) -> Captions:
    """Captions whose names are candidates in the order of their first occurrence."""
    ids = tuple(dict.fromkeys(names))
    number = {name: i for i, name in enumerate(ids)}
    candidate = tuple(number[name] for name in names)
    digest = digest or _digest(ids, texts, candidate)
    return Captions(source, ids, ids, tuple(texts), candidate, features=features, digest=digest)


def _digest(ids: Sequence[str], texts: Sequence[str], candidate: Sequence[int]) -> str:
    content = json.dumps([list(ids), list(texts), list(candidate)])
    return hashlib.sha256(content.encode()).hexdigest()
