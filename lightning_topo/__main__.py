"""The command line: ``python -m lightning_topo find-lr --config config.yaml``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lightning_topo.finder.command_line import add_find_lr


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a subcommand; what it does not know is handed on to LightningCLI."""
    parser = argparse.ArgumentParser(prog="python -m lightning_topo", description="Tools of lightning_topo.")
    add_find_lr(parser.add_subparsers(required=True, metavar="COMMAND"))
    options, rest = parser.parse_known_args(arguments)
    try:
        options.run(options, rest)
    except (ImportError, ValueError, TypeError, AttributeError) as error:
        sys.exit(f"python -m lightning_topo: {error}")


if __name__ == "__main__":
    main()
