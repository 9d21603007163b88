"""The registry of model families: generators and tokenizers by name, or recognized by a checkpoint's tensors.

A family is named as "module:OBJECT" and imported when it is first needed, and torch with it. Other packages register
theirs through the entry point group `avarc.families`: the entry point's name is the family's name, and its object is a
`family.GeneratorFamily` or a `family.TokenizerFamily`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from avarc_cli.errors import AvarcError, CheckpointError, UsageError
from avarc_cli.words import counted

if TYPE_CHECKING:
    from torch import Tensor

    from avarc_cli.family import GeneratorFamily, TokenizerFamily

GROUP = "avarc.families"
DEFAULT_FAMILY = "var"  # of a shape without a family's name
_Family = TypeVar("_Family", "GeneratorFamily", "TokenizerFamily")


class Registry(Generic[_Family]):
    """The families of one kind."""

    def __init__(self, kind: str, what: str, own: Mapping[str, str]) -> None:
        """kind: their base class, "module:CLASS". what: a noun for messages. own: avarc's, name -> "module:OBJECT"."""
        self.kind, self.what, self.own = kind, what, own

    def names(self) -> tuple[str, ...]:
        """Every registered name, avarc's own first. Raises: as `all`."""
        return tuple(self.all())

    def get(self, name: str) -> _Family:
        """The family of that name. Raises: UsageError listing what there is; as `all`."""
        if name in self.own:
            return self._own(name)
        if name not in self.all():
            raise UsageError(
                f"there is no {self.what} family '{name}'",
                f"there are {', '.join(self.names())}",
                "upgrade avarc, or install the package that provides the family",
            )
        return self.all()[name]

    def all(self) -> dict[str, _Family]:
        """Name -> family, other packages' included.

        Raises: AvarcError for a family of another package that cannot be imported, or whose name is taken.
        """
        families = {name: self._own(name) for name in self.own}
        kind = _imported(self.kind)
        for entry in _entries():
            family = _load(entry)
            if not isinstance(family, kind):
                continue
            if entry.name in families:
                raise AvarcError(
                    f"two packages register the {self.what} family '{entry.name}'",
                    f"one is {entry.value}",
                    "uninstall one of them",
                )
            families[entry.name] = cast("_Family", family)
        return families

    def recognize(self, tensors: Mapping[str, Tensor], stated: str | None, source: str) -> _Family:
        """The family of a checkpoint.

        Args:
            tensors: under the network's own keys. stated: the family that the file or the user names, if any.
            source: the checkpoint, for messages.
        Raises: CheckpointError when a stated family is unknown, and when no family, or more than one, has these
            tensors; it lists what every family misses. Of two families one of which has all the tensors of the
            other and more, the one with more is meant.
        """
        families = self.all()
        if stated is not None:
            if stated in families:
                return families[stated]
            raise CheckpointError(
                f"{source} holds a {self.what} of the unknown family '{stated}'",
                f"known are {', '.join(families)}",
                "upgrade avarc, install the package that provides the family, or pass another file",
            )
        missing = {name: missing_tensors(family, tensors) for name, family in families.items()}
        fitting = [families[name] for name, keys in missing.items() if not keys]
        found = [a for a in fitting if not any(set(a.signature) < set(b.signature) for b in fitting)]
        if len(found) == 1:
            return found[0]
        if found:
            raise CheckpointError(
                f"{source} fits several {self.what} families",
                f"its tensors are those of {' and of '.join(family.title for family in found)}",
                'name the family in a file {"family": "..."} given with --model-config or --tokenizer-config',
            )
        tried = "; ".join(f"it misses {', '.join(keys)} of a {families[name].title}" for name, keys in missing.items())
        raise CheckpointError(
            f"{source} is not a {self.what} that avarc knows",
            f"{tried}; it has {counted(len(tensors), 'tensor')}, like {', '.join(sorted(tensors)[:4])}",
            f"pass a {self.what}'s checkpoint here (avarc models lists what each model needs)",
        )

    def _own(self, name: str) -> _Family:
        return cast("_Family", _imported(self.own[name]))


def missing_tensors(family: GeneratorFamily | TokenizerFamily, tensors: Mapping[str, Tensor]) -> list[str]:
    """Keys of the family's signature that a checkpoint does not have."""
    return [key for key in family.signature if key not in tensors]


def family_of_shape(shape: str) -> tuple[str, str]:
    """The generator family of a shape for `avarc bench`, and the shape in the family's own words.

    Args:
        shape: the words after the family's name and a dash ("llamagen-l"); without a name, of a VAR ("d16"). Where
            several names fit, as in "llamagen-t2i-xl", it is the longest.
    """
    registered = {*SHAPES, *(entry.name for entry in _entries())}
    name = max((name for name in registered if shape.startswith(f"{name}-")), key=len, default=None)
    return (DEFAULT_FAMILY, shape) if name is None else (name, shape[len(name) + 1 :])


def check_shape(shape: str, scales: Sequence[int] | None) -> None:
    """Check a shape before torch is imported; another package's family checks its own when it is benchmarked.

    Args:
        shape: as in `family_of_shape`. scales: sides of the scales, None for the family's default.
    Raises: UsageError.
    """
    family, words = family_of_shape(shape)
    if family in SHAPES:
        _imported(SHAPES[family])(words, scales)


def _imported(name: str) -> Any:
    """The object that "module:OBJECT" names."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


@cache
def _entries() -> EntryPoints:
    """What other packages register. Cached, because each search opens the metadata of every installed package."""
    return entry_points(group=GROUP)


@cache
def _load(entry: EntryPoint) -> object:
    try:
        return entry.load()
    except Exception as error:  # another package's import may raise anything
        raise AvarcError(
            f"the model family '{entry.name}' cannot be loaded",
            f"importing {entry.value} raised {type(error).__name__}: {error}",
            "repair or uninstall the package that registers it",
        ) from error


GENERATORS: Registry[GeneratorFamily] = Registry(
    "avarc_cli.family:GeneratorFamily",
    "generator",
    {
        "var": "avarc_cli.models.var.family:FAMILY",
        "llamagen": "avarc_cli.models.llamagen.family:FAMILY",
        "llamagen-t2i": "avarc_cli.models.llamagen_t2i.family:FAMILY",
        "randar": "avarc_cli.models.randar.family:FAMILY",
        "rar": "avarc_cli.models.rar.family:FAMILY",
        "maskgit": "avarc_cli.models.maskgit.family:UVIT",
        "maskgit-bert": "avarc_cli.models.maskgit.family:BERT",
        "maskgen": "avarc_cli.models.maskgen.family:VQ",
        "maskgen-kl": "avarc_cli.models.maskgen.family:KL",
    },
)
TOKENIZERS: Registry[TokenizerFamily] = Registry(
    "avarc_cli.family:TokenizerFamily",
    "tokenizer",
    {
        "vqvae": "avarc_cli.tokenizers.vqvae.family:FAMILY",
        "llamagen-vq": "avarc_cli.tokenizers.llamagen_vq.family:FAMILY",
        "maskgit-vqgan": "avarc_cli.tokenizers.maskgit_vqgan.family:FAMILY",
        "titok": "avarc_cli.tokenizers.titok.family:FAMILY",
        "tatitok": "avarc_cli.tokenizers.tatitok.family:FAMILY",
    },
)
SHAPES = {
    "var": "avarc_cli.models.var.shapes:parse",
    "llamagen": "avarc_cli.models.llamagen.shapes:parse",
    "llamagen-t2i": "avarc_cli.models.llamagen_t2i.shapes:parse",
    "randar": "avarc_cli.models.randar.shapes:parse",
    "rar": "avarc_cli.models.rar.shapes:parse",
    "maskgit": "avarc_cli.models.maskgit.shapes:parse",
    "maskgen": "avarc_cli.models.maskgen.shapes:parse",
}
"""Family -> what reads its shapes, a module without torch."""
