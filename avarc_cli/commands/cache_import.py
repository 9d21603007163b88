"""avarc cache import: the tokens of other programs to a token cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avarc_cli import console
from avarc_cli.commands import _completion as complete
from avarc_cli.commands import _option_groups as groups
from avarc_cli.commands import _options as opt
from avarc_cli.settings import check_exists
from avarc_cli.words import counted

SourceArg = Annotated[
    Path,
    typer.Argument(
        metavar="SOURCE",
        help="LlamaGen's folder of codes (labels beside it) or the one that holds both, RandAR's folder of codes, JSON "
        "lines as 1d-tokenizer writes them (.jsonl), or arrays of all images (.npy, .npz).",
    ),
]
MakerOpt = Annotated[
    str,
    opt.model_option(
        "--tokenizer",
        help="Name or file of the tokenizer that made the tokens; it does not run.",
        autocompletion=complete.tokenizers,
    ),
]
ViewsOpt = Annotated[
    int | None,
    typer.Option("--views", min=1, help="Of JSON lines: this many consecutive lines are views of one image."),
]
LabelsOfOpt = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        autocompletion=complete.datasets,
        help="The labels are the class numbers of imagenet-train, -val, -v2, -a, -r or -sketch. Default: classes are "
        "called after their numbers.",
    ),
]
NamesOpt = Annotated[
    str | None,
    typer.Option(
        "--class-names",
        help="What the labels count: a file with one name a line, or the folder of the images, whose sub-folders are "
        "the classes in sorted order.",
    ),
]


def import_tokens(
    source: SourceArg,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The token cache to write (HDF5).")],
    views: ViewsOpt = None,
    dataset: LabelsOfOpt = None,
    class_names: NamesOpt = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a cache of another request.")] = False,
    as_json: opt.JsonOpt = False,
    tokenizer: MakerOpt,
    tokenizer_config: opt.TokenizerConfigOpt = None,
    tokenizer_weight_set: opt.TokenizerWeightSetOpt = None,
    image_size: opt.ImageSizeOpt = None,
    patch_nums: opt.PatchNumsOpt = None,
    yes: opt.YesOpt = False,
) -> None:
    """Import tokens that another program made into a token cache.

    All tokens are checked before anything is written; the first file or line that is wrong is named. If it is
    interrupted or killed, run it again to continue. Several views of an image stay in their order.

    Example: avarc cache import codes/imagenet256_codes --tokenizer llamagen-vq16-256 --out train.h5
    """
    from avarc_cli import outputs
    from avarc_cli.data.class_names import read_class_names
    from avarc_cli.data.known import NO_DATASET, get_dataset
    from avarc_cli.errors import UsageError
    from avarc_cli.tokens.interchange.source import check_source

    check_source(source)
    outputs.check_output(out, outputs.CACHE, overwrite=True, inputs=[source])  # of a cache, the library decides
    if dataset is not None and class_names is not None:
        raise UsageError("--dataset and --class-names exclude each other", "both say what the labels count")
    if dataset not in (None, NO_DATASET):
        get_dataset(str(dataset))
    check_exists(class_names, "--class-names")
    names = None if class_names is None else read_class_names(Path(class_names))
    layout = opt.parse_scales(patch_nums)
    maker = groups.WeightsOptions(
        model=tokenizer,
        tokenizer_config=tokenizer_config,
        tokenizer_weight_set=tokenizer_weight_set,
        image_size=image_size,
        device="cpu",
        yes=yes,
    )
    spec = maker.fetch(tokenizer_only=True)
    from avarc_cli.loading import load_tokenizer  # imports torch: only now, after all that may be wrong
    from avarc_cli.tokens.interchange.importing import import_codes

    reader = load_tokenizer(spec, layout=layout)
    opt.note_inferred(reader)
    done = import_codes(
        source,
        reader,
        out,
        views=views,
        dataset=dataset,
        class_names=names,
        overwrite=overwrite,
        progress=console.progress,
        say=console.note,
    )
    said = "was complete already" if done.already_done else counted(done.images, "image")
    console.result({"cache": out, "images": done.images}, console.path_and(out, said), brief=str(out))
