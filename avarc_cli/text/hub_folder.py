"""Text encoders in the layout of `transformers`: a folder with config.json, tokenizer.json and weights."""

from __future__ import annotations

import hashlib
from importlib import import_module
from pathlib import Path
from typing import Any

from avarc_cli import strict_json
from avarc_cli.errors import AvarcError, CheckpointError, UsageError, first_line, lacks_memory, shorten_list
from avarc_cli.zoo import local_files, weights_index

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
WEIGHTS = ("*.safetensors", "*.bin")  # as transformers: the first kind that there is
EXTRA = "avarc[text]"


def need(*modules: str) -> None:
    """Raises: UsageError naming the extra, unless these modules are installed."""
    for name in modules:
        try:
            import_module(name)
        except ImportError as problem:
            why = f"{name} is not installed" if isinstance(problem, ModuleNotFoundError) else str(problem)
            raise UsageError("encoding captions needs more packages", why, f"pip install '{EXTRA}'") from None


def read_config(folder: Path) -> dict[str, Any]:
    """Raises: CheckpointError naming what is missing or damaged."""
    try:
        return strict_json.parse_object((folder / CONFIG).read_bytes())
    except (OSError, ValueError) as problem:
        what = f"'{folder}' is not a folder of a text encoder"
        raise CheckpointError(
            what, f"{CONFIG}: {first_line(problem)}", "name a folder as transformers saves it"
        ) from None


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer, without padding and truncation. Raises: CheckpointError."""
    need("tokenizers")
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str((folder / TOKENIZER).read_text("utf-8"))
    except Exception as problem:  # noqa: BLE001  # the library raises plain exceptions
        what = f"'{folder}' has no tokenizer that can be read"
        raise CheckpointError(
            what, f"{TOKENIZER}: {first_line(problem)}", "download or copy the folder again"
        ) from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def token_id(tokenizer: Any, token: str, folder: Path) -> int:
    """The id of a token that the encoder cannot do without. Raises: CheckpointError."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise CheckpointError(f"'{folder}' has the tokenizer of another encoder", f"its vocabulary lacks {token}")
    return int(found)


def load_weights(kind: Any, folder: Path, **options: Any) -> Any:
    """A network of transformers with the weights of a folder, in float32, for inference.

    Args:
        kind: its class. options: for `from_pretrained`.
    Raises: CheckpointError for weights that are damaged, or lack something.
    """
    import torch
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it reports the weights of the other half of the model, which is not loaded
    logging.disable_progress_bar()
    try:
        network, info = kind.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True, **options
        )
    except AvarcError:
        raise
    except Exception as problem:  # noqa: BLE001  # each format has its own exceptions
        what = f"the text encoder in '{folder}' cannot be loaded"
        if lacks_memory(problem):
            raise AvarcError(what, f"memory ran out: {first_line(problem)}", "free some, and try again") from None
        raise CheckpointError(what, first_line(problem), "download or copy the folder again") from None
    finally:
        logging.set_verbosity(verbosity)
    missing = sorted([*info["missing_keys"], *(str(each) for each in info.get("mismatched_keys", ()))])
    if missing:
        raise CheckpointError(f"the text encoder in '{folder}' is not complete", f"it lacks {shorten_list(missing)}")
    return network.eval().requires_grad_(False)


def sha256_of(folder: Path) -> str:
    """The digest of all that features depend on: weights, configuration and vocabulary. Raises: CheckpointError."""
    kinds = (sorted(folder.glob(pattern)) for pattern in WEIGHTS)
    weights = next((found for found in kinds if found), None)
    if weights is None:
        raise CheckpointError(f"'{folder}' holds no weights", f"no {' or '.join(WEIGHTS)}")
    digest = hashlib.sha256()
    vocabulary = [folder / TOKENIZER] if (folder / TOKENIZER).is_file() else []
    for file in (folder / CONFIG, *vocabulary, *weights):
        known = local_files.blob_sha256(file)  # of a file in the Hugging Face cache
        digest.update(f"{file.name} {known or weights_index.remember(file)}\n".encode())
    return digest.hexdigest()
