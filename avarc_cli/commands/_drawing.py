"""Options of how pictures are drawn: restrictions, published settings, and an image of which a part is painted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avarc_cli.commands import _completion as complete
from avarc_cli.commands import _options as opt
from avarc_cli.errors import UsageError
from avarc_cli.settings import check_file, check_sampling

if TYPE_CHECKING:
    from avarc_cli.data.painting import Painting
    from avarc_cli.loaded import LoadedModel
    from avarc_cli.sampling import Sampling
    from avarc_cli.sampling.presets import Preset

OF_A_PRESET = {"guidance", "top_k", "top_p", "more_smooth"}


@dataclass(frozen=True, kw_only=True)
class DrawingOptions:
    """How to draw."""

    guidance: Annotated[
        float | None,
        typer.Option(
            "--guidance",
            help="Strength of classifier-free guidance; 0 draws from p(x | class). Default: the model's own.",
        ),
    ] = None
    top_k: Annotated[int, typer.Option("--top-k", help="Draw only from the N likeliest codes; 0 for all.")] = 0
    top_p: Annotated[
        float, typer.Option("--top-p", help="Draw only from the likeliest codes with this probability; 0 for all.")
    ] = 0.0
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="paper: draw and round as for the published FID of --model; or name the model that its file has.",
            autocompletion=complete.presets,
        ),
    ] = None
    more_smooth: Annotated[
        bool,
        typer.Option("--more-smooth", help="Of a VAR: mix codes. Smoother pictures, but unsuitable for FID."),
    ] = False
    seed: opt.SeedOpt = 0
    image: Annotated[
        Path | None, typer.Option("--image", help="Paint a part of this image, --mask, and keep the others' tokens.")
    ] = None
    mask: Annotated[
        str | None,
        typer.Option(
            "--mask",
            help="What to paint: a box x0,y0,x1,y1 in pixels, outside:x0,y0,x1,y1, or a picture that is white there.",
        ),
    ] = None
    preprocess: opt.PreprocessOpt = None

    def __post_init__(self) -> None:
        """Raises: UsageError."""
        check_sampling(self.guidance, self.top_k, self.top_p)
        if (self.image is None) != (self.mask is None):
            there, missing = ("--image", "--mask") if self.mask is None else ("--mask", "--image")
            why = "a part of an image is painted, and the mask says which"
            raise UsageError(f"{there} needs {missing}", why, f"add {missing}, or leave out {there}")
        if self.preprocess is not None and self.image is None:
            raise UsageError("--preprocess needs --image", "it says how an image becomes square", "leave it out")
        check_file(self.image, "--image")

    def read(self, context: typer.Context, model: str) -> tuple[Preset | None, Painting | None]:
        """What these options name, of the model that --model names; before torch is imported.

        Raises: UsageError.
        """
        from avarc_cli.data.painting import Painting
        from avarc_cli.data.preprocess import check_option
        from avarc_cli.sampling.presets import find

        check_option(self.preprocess)
        preset = None
        if self.preset is not None:
            opt.check_not_given(context, OF_A_PRESET, "with --preset", "it decides how pictures are drawn")
            preset = find(self.preset, model)
        return preset, None if self.image is None or self.mask is None else Painting.read(self.image, self.mask)

    def inputs(self) -> list[Path]:
        """Files that are read, and must not be replaced."""
        return [path for path in (self.image, self.mask and Path(self.mask)) if path]

    def sampling(self, model: LoadedModel, preset: Preset | None, painting: Painting | None) -> Sampling:
        """As what `read` gave, for this model. Raises: UsageError for what it cannot do."""
        from avarc_cli.sampling import Sampling
        from avarc_cli.sampling.painting import known_tokens

        known = None if painting is None else known_tokens(model, painting, self.preprocess)
        if preset is not None:
            return Sampling.with_preset(preset, self.seed, known=known)
        return Sampling(
            guidance=self.guidance,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed,
            known=known,
            more_smooth=self.more_smooth,
        )
