"""Run one avarc command, then print the loaded top-level modules as JSON."""

import json
import sys

from avarc_cli.cli import main as avarc

if __name__ == "__main__":
    assert avarc(["-q", *sys.argv[1:]]) == 0
    print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
