"""Run avarc command lines, which come as JSON on stdin, in one process; end with the code of the first that fails."""

import json
import sys

from avarc_cli.cli import main

if __name__ == "__main__":
    sys.exit(next(filter(None, map(main, json.load(sys.stdin))), 0))
