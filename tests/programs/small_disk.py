"""Run avarc where writing a file beyond BYTES fails, in the place where a full disk would fail it.

Usage: small_disk BYTES WORD ...
"""

import resource
import signal
import sys

from avarc_cli.cli import main as avarc


def main(limit: int, words: list[str]) -> int:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # otherwise the signal ends the process
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return avarc(words)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
