"""avarc doctor: what this machine has, what avarc uses on it, and what is slow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from avarc_cli import console
from avarc_cli.commands import _completion as complete
from avarc_cli.commands import _options as opt
from avarc_cli.commands._options import JsonOpt
from avarc_cli.errors import UsageError
from avarc_cli.settings import check_file

if TYPE_CHECKING:
    from avarc_cli.environment import Device
    from avarc_cli.scoring.rounding_noise import RoundingNoise

GIB = 2**30


def doctor(
    model: Annotated[
        str | None,
        opt.model_option(
            "--model",
            "-m",
            help="Also show this model's rounding in the precision that a cascade begins with.",
            autocompletion=complete.models,
        ),
    ] = None,
    tokenizer: opt.TokenizerOpt = None,
    tokens: Annotated[
        Path | None, opt.model_option("--tokens", help="Measure it on the first images of this token cache.")
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Show what this machine has, and what avarc uses on it.

    Lists versions, devices, defaults and optional packages, and what makes this machine slower than it could be. With
    --model, also the rounding noise that a cascade of precisions goes by (docs/cascade.md).

    Example: avarc doctor --model digits --tokens digits.h5
    """
    if model is None and (tokens is not None or tokenizer is not None):
        raise UsageError("whose rounding is to be measured?", "no model was named", "add --model")
    check_file(tokens, "--tokens")
    noise = None if model is None else _noise(model, tokenizer, tokens)
    from avarc_cli import environment, product_library

    versions, machine = environment.versions(), environment.machine()
    devices, extras = environment.devices(), environment.extras()
    choices = (*environment.choices(), product_library.choice())
    findings = environment.findings()
    installs = [f"to get {e.package}: {e.install}" for e in extras if not e.version]
    slow = [(f.what, f.why, f.fix) for f in findings]
    noise_data, shown_noise = noise or ({}, [])
    console.result(
        {
            "versions": versions,
            "machine": machine,
            "devices": devices,
            "choices": choices,
            "findings": findings,
            "extras": extras,
            **noise_data,
        },
        console.stack(
            console.fields("Versions", versions),
            console.fields("Machine", machine | {"memory": _gib(machine["memory"])}),
            console.table("Devices", ("--device", "what", "memory"), [_device_row(device) for device in devices]),
            console.table("Used by default", ("", "default", "why"), [(c.what, c.picked, c.why) for c in choices]),
            *([console.table("What is slow here", ("", "why", "what helps"), slow)] if slow else []),
            console.table(
                "Optional packages",
                ("package", "installed", "brings"),
                [(e.package, e.version or "no", e.brings) for e in extras],
            ),
            *(["\n".join(installs)] if installs else []),
            *shown_noise,
        ),
        brief=devices[0].name,
    )


def _noise(model: str, tokenizer: str | None, tokens: Path | None) -> tuple[dict[str, Any], list[Any]]:
    """The rounding noise of a model in the precision that a cascade begins with, as data and to be shown."""
    from avarc_cli.classifier import load_classifier
    from avarc_cli.loading import ModelSpec
    from avarc_cli.tokens.cache import read

    classifier = load_classifier(ModelSpec(model, tokenizer, precision="cascade"))
    if tokens is None:
        noise = classifier.known_noise()
    else:
        cache = read(tokens)
        cache.check(classifier.model.tokenizer)
        noise = classifier.measure_noise(cache, classifier.request(cache.header), console.note)
    name, precision = classifier.model.name, classifier.model.precision.partition("+")[0]
    data = {"rounding": {"model": name, "precision": precision, "noise": None if noise is None else noise.to_dict()}}
    return data, [console.fields(f"Rounding of {name} in {precision}", _noise_fields(noise))]


def _noise_fields(noise: RoundingNoise | None) -> dict[str, str]:
    if noise is None:
        return {"noise": "not measured on this machine; add --tokens CACHE"}
    return {
        "measured on": f"{noise.images} images x {noise.classes} classes",
        "of a difference": ", ".join(f"{sd:.2g}" for sd in noise.segments) + " nats, by segments scored",
    }


def _device_row(device: Device) -> tuple[str, str, str]:
    return device.name, device.description, _gib(device.memory)


def _gib(memory: str | int | None) -> str:
    return f"{memory / GIB:.1f} GiB" if isinstance(memory, int) else "unknown"
