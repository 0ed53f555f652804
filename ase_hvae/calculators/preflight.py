"""What is missing on this machine, said before anything runs."""

from __future__ import annotations

import difflib
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.calculators.calculator import CalculatorSetupError


def missing_command(command: str) -> str | None:
    """Why a command cannot start, or None if its first word is an executable.

    What a launcher such as ``mpirun`` starts is not looked into.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        return f"command {command!r} cannot be parsed: {error}"
    while words and re.match(r"\w+=", words[0]):  # NAME=value before the program
        words.pop(0)
    if not words:
        return f"command {command!r} names no program"
    if "/" in words[0] and not Path(words[0]).is_absolute():
        return f"command {command!r} is relative, but it runs in a folder of its own; write {Path(words[0]).resolve()}"
    if shutil.which(words[0]) is None:
        return f"command {command!r}: there is no executable {words[0]!r}"
    if words[0] == sys.executable and words[1:] and words[1][0] != "-" and not Path(words[1]).is_file():
        return f"command {command!r}: there is no script {words[1]!r}"
    return None


def check_keys(section: str, table: Mapping[str, Any], known: Iterable[str], refused: Mapping[str, str]) -> None:
    """Refuse options that the calculator does not have, or that `refused` names with the reason.

    Raises
    ------
    CalculatorSetupError
        With the option and, for a likely misprint, the option that was meant.
    """
    names = sorted(set(known))
    for key in table:
        if key in refused:
            raise CalculatorSetupError(f"{key} in [{section}] is refused: {refused[key]}")
        if key not in names:
            close = difflib.get_close_matches(key.lower(), names, n=1)
            remedy = f"; did you mean {close[0]!r}?" if close else ""
            raise CalculatorSetupError(f"unknown option {key!r} in [{section}]{remedy}")


def check_positive(section: str, table: Mapping[str, Any], *names: str) -> None:
    """Refuse options that are no positive numbers, where they are given."""
    for name in names:
        value = table.get(name, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise CalculatorSetupError(f"{name} = {value!r} in [{section}] must be a positive number")


def probe_crystal(species: Sequence[str]) -> Atoms:
    """A crystal with one atom of each species, on which inputs are tried out; never computed."""
    positions = [(3.0 * number, 0.0, 0.0) for number in range(len(species))]
    return Atoms(species, positions=positions, cell=[3.0 * len(species), 3.0, 3.0], pbc=True)
