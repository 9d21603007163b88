"""avarc doctor: what this machine has, what avarc uses on it, and what is slow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avarc_cli import console
from avarc_cli.commands._options import JsonOpt

if TYPE_CHECKING:
    from avarc_cli.environment import Device

GIB = 2**30


def doctor(as_json: JsonOpt = False) -> None:
    """Show what this machine has, and what avarc uses on it.

    Lists versions, devices, defaults and optional packages, and what makes this machine slower than it could be.

    Example: avarc doctor --json
    """
    from avarc_cli import environment

    versions, machine = environment.versions(), environment.machine()
    devices, choices, extras = environment.devices(), environment.choices(), environment.extras()
    findings = environment.findings()
    installs = [f"to get {e.package}: {e.install}" for e in extras if not e.version]
    console.result(
        {
            "versions": versions,
            "machine": machine,
            "devices": devices,
            "choices": choices,
            "findings": findings,
            "extras": extras,
        },
        console.stack(
            console.fields("Versions", versions),
            console.fields("Machine", machine | {"memory": _gib(machine["memory"])}),
            console.table("Devices", ("--device", "what", "memory"), [_device_row(device) for device in devices]),
            console.table("Used by default", ("", "default", "why"), [(c.what, c.picked, c.why) for c in choices]),
            console.table("What is slow here", ("", "why", "what helps"), [(f.what, f.why, f.fix) for f in findings]),
            console.table(
                "Optional packages",
                ("package", "installed", "brings"),
                [(e.package, e.version or "no", e.brings) for e in extras],
            ),
            *(["\n".join(installs)] if installs else []),
        ),
        brief=devices[0].name,
    )


def _device_row(device: Device) -> tuple[str, str, str]:
    return device.name, device.description, _gib(device.memory)


def _gib(memory: str | int | None) -> str:
    return f"{memory / GIB:.1f} GiB" if isinstance(memory, int) else "unknown"
