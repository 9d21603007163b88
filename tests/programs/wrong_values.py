"""Run command lines, which come as JSON on stdin; print as JSON each exit code, and whether torch was imported by then.

The commands' own output goes to stderr.
"""

import contextlib
import json
import sys

from avarc_cli.cli import main

ended = []
for words in json.load(sys.stdin):
    with contextlib.redirect_stdout(sys.stderr):
        code = main(words)
    ended.append([code, "torch" in sys.modules])
print(json.dumps(ended))
