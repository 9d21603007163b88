"""The options about captions, the candidates of models of captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from avarc_cli.commands import _options as opt
from avarc_cli.commands._groups import NO_OPTION
from avarc_cli.errors import UsageError
from avarc_cli.settings import check_aesthetic_score

if TYPE_CHECKING:
    from avarc_cli.data.labels import LabelSpace

_Self = TypeVar("_Self", bound="CaptionOptions")


@dataclass(frozen=True, kw_only=True)
class CaptionOptions:
    """Which captions compete, and what encodes them."""

    captions: opt.CaptionsOpt = None
    templates: opt.TemplatesOpt = None
    template_names: tuple[str, ...] = field(default=(), metadata={NO_OPTION: True})
    text_encoder: opt.TextEncoderOpt = None
    aesthetic_score: opt.AestheticScoreOpt = None

    @property
    def gives_captions(self) -> bool:
        """Whether there are captions."""
        return self.captions is not None or bool(self.templates)

    def check_captions(self, *, has_bank: bool) -> None:
        """Raises: UsageError for what is wrong before torch is imported."""
        if self.gives_captions or self.text_encoder is not None:
            from avarc_cli.text.captions import check_options

            check_options(self.captions, self.templates or (), self.text_encoder, has_bank=has_bank)
        check_aesthetic_score(self.aesthetic_score)

    def naming(self: _Self, class_names: Sequence[str], classes: str | None = None, named: str | None = None) -> _Self:
        """These options with the names that go into templates.

        Args:
            class_names: of the images' classes, if they have some. classes: the value of --classes, which may name
                them in their place. named: the value of --class-names, which comes first.
        Raises: UsageError where there are none.
        """
        from avarc_cli.text.captions import template_names

        if not self.templates:
            return self
        return replace(self, template_names=template_names(named, class_names, classes))

    def saying(self: _Self, words: Sequence[str], model: str) -> _Self:
        """These options with words as the captions of a model of captions that was given none, or in its templates.

        Args:
            model: the value of --model.
        Raises: UsageError where there are no words, and they are needed.
        """
        from avarc_cli.text.captions import ALONE
        from avarc_cli.zoo.cards import caption_card

        if self.captions is not None or not (self.templates or caption_card(model)):
            return self
        if not words:
            why, fix = "it draws what the arguments say", 'write captions, as in "a red bird", or add --captions FILE'
            raise UsageError(f"which captions is {model} to draw?", why, fix)
        return replace(self, templates=self.templates or [ALONE], template_names=tuple(dict.fromkeys(words)))

    def caption_space(self) -> LabelSpace:
        """The captions as classes."""
        from avarc_cli.text.captions import choose

        return choose(self.captions, self.templates or (), self.template_names).label_space

    def needed_encoder(self, model: str) -> str | None:
        """The text encoder that has to be on this machine, as far as it is known before the model is loaded."""
        from avarc_cli.text.captions import needed_encoder

        return needed_encoder(model, self.captions, self.templates or (), self.text_encoder)

    def caption_fields(self) -> dict[str, Any]:
        """The fields of `loading.ModelSpec` about captions."""
        return {
            "captions": self.captions,
            "templates": tuple(self.templates or ()),
            "template_names": self.template_names,
            "text_encoder": self.text_encoder,
            "aesthetic_score": self.aesthetic_score,
        }
