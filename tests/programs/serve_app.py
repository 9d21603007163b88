"""The app, with classes that are learned in a second or two; the arguments are those of `avarc app`."""

import sys

from avarc_cli.cli import main
from avarc_cli.incremental import examples, fit, offsets

examples.MIN_EXAMPLES = 32
fit.STEPS["lora"] = 12
offsets.SAMPLED = 2

if __name__ == "__main__":
    sys.exit(main(["app", *sys.argv[1:]]))
