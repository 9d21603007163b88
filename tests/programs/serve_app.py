"""The app with quick fits: arguments are those of `avarc app`. Encoding as many variants as usual takes half a minute."""

import sys

from avarc_cli.cli import main
from avarc_cli.incremental import examples, fit

examples.MIN_EXAMPLES = 32
fit.STEPS["lora"] = 30

if __name__ == "__main__":
    sys.exit(main(["app", *sys.argv[1:]]))
