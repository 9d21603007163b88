"""Ask for the weights of a model or tokenizer, as a command that needs them does. Usage: ensure_weights NAME"""

import sys

from avarc_cli.commands._weights import ensure

if __name__ == "__main__":
    ensure(sys.argv[1], yes=False)
