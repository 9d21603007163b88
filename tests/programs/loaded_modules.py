"""Import avarc, show the help of each command in the arguments, then print the loaded top-level modules as JSON.

A command is one argument: "cache info". Without arguments only the package is imported, not the command line.
"""

import json
import sys

import avarc_cli  # noqa: F401


def main(commands: list[str]) -> None:
    for command in commands:
        from avarc_cli.cli import main as avarc

        assert avarc([*command.split(), "--help"]) == 0, command
    print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))


if __name__ == "__main__":
    main(sys.argv[1:])
