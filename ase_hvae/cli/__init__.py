"""Command line of ase_hvae, a module per command, in the pattern of ASE's own command line."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

_BROKEN_PIPE = 141  # exit status, as a shell reports SIGPIPE
COMMANDS = [
    ("generate", "ase_hvae.cli.generate"),
    ("train", "ase_hvae.cli.train"),
    ("phonons", "ase_hvae.cli.phonons"),
    ("rerank", "ase_hvae.cli.rerank"),
    ("info", "ase_hvae.cli.info"),
]


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of ``ase-hvae`` and ``python -m ase_hvae``."""
    # Before numpy and torch are loaded: cells are small, and threads would only wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from ase.cli.main import main as ase_main

    from ase_hvae import __version__

    ase_main(
        prog="ase-hvae",
        description="New crystals from known ones.",
        version=__version__,
        commands=COMMANDS,
        args=None if args is None else list(args),
    )


def run_command(command: str, function: Callable[[], None], *, traceback: bool = False) -> None:
    """Run a command with its log on standard error; expected errors end it with one line and exit code 2."""
    from ase.calculators.calculator import CalculatorError

    from ase_hvae.errors import AseHvaeError

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("ase_hvae")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        function()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_BROKEN_PIPE)
    except KeyboardInterrupt:
        print(
            f"ase-hvae {command}: interrupted; a run goes on with --resume, a rerank with the same line",
            file=sys.stderr,
        )
        sys.exit(130)
    except (AseHvaeError, CalculatorError) as error:
        if traceback:
            raise
        fail(command, error)
    finally:
        logger.removeHandler(handler)


def one_line_errors(parser: argparse.ArgumentParser, command: str) -> None:
    """Let a wrong flag end the command as any other bad input does."""
    parser.error = functools.partial(fail, command)  # type: ignore[method-assign]


def whole_number(minimum: int) -> Callable[[str], int]:
    """Type of a flag whose value is a whole number of at least `minimum`."""

    def convert(text: str) -> int:
        """Return the number, or refuse the text."""
        if not text.lstrip("+-").isdigit() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {minimum}")
        return int(text)

    return convert


def fail(command: str, reason: object) -> NoReturn:
    """Print one line on standard error and exit with code 2."""
    print(f"ase-hvae {command}: error: {' '.join(str(reason).split())}", file=sys.stderr)
    sys.exit(2)
