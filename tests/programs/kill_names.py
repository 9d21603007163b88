"""Kill a process at each system call of registering a name; fails where a name is lost.

Usage: kill_names, with AVARC_HOME an empty folder. Exit status 77 where processes cannot be traced. It does not import
torch, so that forks are cheap.
"""

import sys

from killing import NOT_TRACED, killed_at_call

from avarc_cli.layout import TokenLayout
from avarc_cli.zoo import registered
from avarc_cli.zoo.cards import LocalFile, TokenizerCard


def card(name: str, weight_set: str | None = None) -> TokenizerCard:
    """A tokenizer whose file need not be there."""
    return TokenizerCard(
        name=name,
        family="vqvae",
        image_size=64,
        layout=TokenLayout.multi_scale((1, 2, 4)),
        params=None,
        license="MIT",
        source="here",
        weights=LocalFile(registered.file().parent / f"{name}.pth", weight_set),
        preprocess="fit",
    )


def main() -> int:
    registered.add(card("old"))
    outcomes = set()
    for call in range(1, 400):
        ended = killed_at_call(call, lambda: registered.add(card("new")))
        if ended is None:
            return NOT_TRACED
        names = tuple(registered.load().names)
        assert names in {("old",), ("old", "new")}, (call, names)
        outcomes.add(names)
        if "new" in names:
            registered.remove("new")  # at once: the lock ended with its process
        if ended:
            break
    assert len(outcomes) == 2 and ended
    assert not list(registered.file().parent.glob("*.tmp"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
