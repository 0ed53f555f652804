"""Command line of maise_bridge, a module per command."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from maise_bridge.cli.interrupts import INTERRUPTED

COMMANDS = ("info", "evaluate", "relax", "convert", "train", "label", "sample")
DESCRIPTION = "Describe, use, convert and train MAISE potentials."
_BROKEN_PIPE = 141  # as a shell reports SIGPIPE

__all__ = ["COMMANDS", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m maise_bridge``.

    Returns
    -------
    int
        Exit status: 0, 1 if a structure failed, 2 for bad input (said in one line on standard error), 130 if
        interrupted.
    """
    from ase.calculators.calculator import CalculatorError

    options = _parser().parse_args(arguments)
    level = logging.INFO if options.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        print("error: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except (ValueError, OSError, CalculatorError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line, as for any other bad input."""

    def error(self, message: str) -> NoReturn:
        """End with exit status 2 and one line."""
        self.exit(2, f"error: {' '.join(message.split())}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m maise_bridge", description=DESCRIPTION)
    parser.add_argument("-v", "--verbose", action="store_true", help="log what happens")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for name in COMMANDS:
        module = import_module(f"maise_bridge.cli.{name}")
        short = (module.__doc__ or "").partition(": ")[2].partition("\n")[0]
        command = commands.add_parser(name, help=short.rstrip("."), description=short)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser
