"""What files state about a model beside its tensors, in the order in which they are believed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from avarc_cli.errors import CheckpointError
from avarc_cli.layout import TokenLayout


@dataclass(frozen=True)
class ConfigSources:
    """Configuration values from several places; the first place that states a value wins."""

    sources: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    """(where it is stated, its values) in order of precedence. Values are JSON's, or text in safetensors metadata."""
    used: dict[str, tuple[Any, str]] = field(default_factory=dict, compare=False)
    """What `find` has returned so far, by name."""

    def find(self, *names: str) -> tuple[Any, str] | None:
        """The value of the first of these names that a place states, and that place; None where none does.

        A name with dots is that of a value in an object inside another.
        """
        for where, values in self.sources:
            for name in names:
                if (value := _look_up(values, name)) is not None:
                    self.used[name] = value, where
                    return self.used[name]
        return None

    def whole_number(self, *names: str) -> int | None:
        """A positive whole number. Raises: CheckpointError for any other value, naming the place."""
        found = self.find(*names)
        if found is None:
            return None
        numbers = _positive_numbers([found[0]])
        if numbers is None:
            raise _unreadable(names[0], *found)
        return numbers[0]

    def layout(self, *names: str) -> TokenLayout | None:
        """A token layout, stated as "layout" in its JSON form, or under one of `names` as the sides of scales.

        Sides are a list, or text with commas. Raises: CheckpointError for any other value, naming the place.
        """
        found = self.find(*names, "layout")
        if found is None:
            return None
        value = found[0].split(",") if isinstance(found[0], str) else found[0]
        try:
            if isinstance(value, Mapping):
                return TokenLayout.from_dict(value)
            sides = _positive_numbers(value) if isinstance(value, (list, tuple)) else None
            if sides:
                return TokenLayout.multi_scale(sides)
        except (KeyError, TypeError, ValueError):
            pass
        raise _unreadable([*names, "layout"][0], *found)


def _look_up(values: Mapping[str, Any], name: str) -> Any:
    """The value of this name, None where there is none. "${...}" in published files stands for another entry."""
    value: Any = values
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return None if isinstance(value, str) and value.startswith("${") else value


def check_shape(
    stated: ConfigSources, of_tensors: Mapping[str, int], layout: TokenLayout, source: str, *, inside: str = ""
) -> None:
    """Check the shape that was read off a checkpoint's tensors against what files state.

    Args:
        of_tensors: numbers by the names under which files state them, as they are in the tensors.
        inside: an object that may hold these names too, such as "model.generator.".
        layout: of the tokens, as the tensors have it.
        source: the checkpoint, for messages.
    Raises: CheckpointError naming all contradictions.
    """
    contradictions = [
        f"{name} is {value} there, and {number} in the tensors"
        for name, number in of_tensors.items()
        if (value := stated.whole_number(name, f"{inside}{name}")) not in (None, number)
    ]
    other = stated.layout()
    if other is not None and other != layout:
        contradictions.append(f"the layout is {other} there, and {layout} in the tensors")
    if contradictions:
        raise CheckpointError(
            f"{source} contradicts its configuration",
            "; ".join(contradictions),
            "correct the configuration, or pass the file that it belongs to",
        )


def square_sides(layout: TokenLayout, source: str, title: str) -> tuple[int, ...]:
    """The sides of a layout's scales. Raises: CheckpointError naming the network unless they are square grids."""
    try:
        sides = layout.sides
    except ValueError:
        sides = ()
    if not sides:
        raise CheckpointError(f"{source} cannot give a {layout}", f"a {title} has square scales", "correct the layout")
    return sides


def square_side(stated: ConfigSources, downsampling: int, source: str, title: str, *names: str) -> int:
    """Rows of tokens of an image, for a convolutional tokenizer of one grid, whose tensors do not tell it.

    It is stated as the side of the images, "image_size" or one of `names`, in pixels, or as the layout of the tokens.
    Raises: CheckpointError naming the network when neither is stated, or it does not fit the downsampling.
    """
    pixels = stated.whole_number("image_size", *names)
    if pixels is not None and pixels % downsampling:
        raise CheckpointError(
            f"{source} cannot read images of {pixels} pixels",
            f"a token covers {downsampling} x {downsampling} of them",
            f"name a multiple of {downsampling} with --image-size",
        )
    if pixels is not None:
        return pixels // downsampling
    layout = stated.layout()
    if layout is None:
        raise CheckpointError(
            f"the image size of {source} is unknown",
            f"a {title} reads images of any multiple of {downsampling} pixels",
            "add --image-size 256, or the size that the generator was trained on",
        )
    if len(layout.grids) != 1 or layout.grids[0][0] != layout.grids[0][1]:
        raise CheckpointError(
            f"{source} cannot give {layout}", f"the tokens of a {title} fill one square grid", "correct the layout"
        )
    return layout.grids[0][0]


def _positive_numbers(values: list[Any] | tuple[Any, ...]) -> tuple[int, ...] | None:
    """The values as whole numbers; None when one is not a positive whole number."""
    texts = [str(value).strip() for value in values if not isinstance(value, bool)]
    good = len(texts) == len(values) and all(text.isascii() and text.isdecimal() and int(text) > 0 for text in texts)
    return tuple(int(text) for text in texts) if good else None


def _unreadable(name: str, value: Any, where: str) -> CheckpointError:
    return CheckpointError(
        f"'{name}' in {where} cannot be read",
        f"it is {str(value)[:60]!r}; expected are positive whole numbers",
        "correct it, or state the value with --model-config or --tokenizer-config",
    )
