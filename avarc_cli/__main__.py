"""`python -m avarc_cli` is `avarc`."""

from __future__ import annotations

import sys

from avarc_cli.cli import main

if __name__ == "__main__":
    sys.exit(main())
