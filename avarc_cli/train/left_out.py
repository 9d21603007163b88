"""The images of a training that could not be read."""

from __future__ import annotations

from dataclasses import dataclass, field

from avarc_cli.layers import collectives
from avarc_cli.progress import Notify, no_message

SAID = 10  # of them


@dataclass(frozen=True)
class LeftOut:
    """What is noticed about them, once for each."""

    say: Notify = no_message
    """Called with a message for each of the first."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why, by name."""

    def add(self, name: str, why: str) -> None:
        """An image that this process could not read."""
        if name not in self.reasons:
            self.reasons[name] = why
            if len(self.reasons) <= SAID:
                self.say(f"left out {name}: {why}")

    def gather(self) -> None:
        """Add what other processes noticed; all of them call it."""
        for reasons in collectives.from_all(self.reasons):
            for name, why in sorted(reasons.items()):
                self.add(name, why)
