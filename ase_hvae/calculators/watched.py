"""Foreign calculators under watch: whatever goes wrong in them becomes ASE's CalculationFailed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, CalculationFailed, PropertyNotImplementedError

_GETTERS: dict[str, Callable[[Atoms], Any]] = {
    "energy": lambda atoms: atoms.get_potential_energy(),
    "free_energy": lambda atoms: atoms.get_potential_energy(force_consistent=True),
    "forces": lambda atoms: atoms.get_forces(),
    "stress": lambda atoms: atoms.get_stress(voigt=True),
}
NEEDED = ("energy", "forces", "stress")


class WatchedCalculator(BaseCalculator):
    """A calculator of another package; its failures of any kind are `CalculationFailed`, its results are finite.

    Programs fail in many ways: exit codes, files cut off, parsers that meet an unexpected line. A run must be able to
    note the cause and go on with the next crystal, so all of them get one type.

    Parameters
    ----------
    name : str
        Name in messages.
    make : callable
        Makes the inner calculator. It is called again after a failure, so that nothing half-read survives.
    directory : Path, optional
        Folder in which the program runs; made before a calculation.
    """

    implemented_properties = list(_GETTERS)  # noqa: RUF012

    def __init__(self, name: str, make: Callable[[], Any], directory: Path | None = None) -> None:
        super().__init__()
        self._name = name
        self._make = make
        self.directory = directory
        self.inner: Any = None

    def _get_name(self) -> str:
        return self._name

    def calculate(self, atoms: Atoms, properties: Sequence[str], system_changes: Sequence[str]) -> None:
        """Fill `results` by the inner calculator; called by ASE.

        Raises
        ------
        CalculationFailed
            If the inner calculator raises anything, or returns no or a non-finite value.
        """
        try:
            if system_changes or self.inner is None:
                self.results = {}
                self.prepare()
            work = atoms.copy()
            work.calc = self.inner
            found = {name: _GETTERS[name](work) for name in properties}
            self.verify()
            extra = {name: value for name, value in self.inner.results.items() if value is not None}
            self.results = {**self.results, **extra, **found}
            self._check_finite()
        except PropertyNotImplementedError:
            raise
        except Exception as error:  # of a foreign program, whose errors have no common type
            message = self._describe(error)
            self.inner, self.atoms, self.results = None, None, {}
            raise CalculationFailed(message) from error

    def prepare(self) -> None:
        """Get ready for another structure: make the inner calculator and its folder where they are missing."""
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
        if self.inner is None:
            self.inner = self._make()

    def verify(self) -> None:
        """Raise an error if the calculation, though it returned numbers, did not end well."""

    def explain(self) -> str:
        """What the program said at its end; empty if nothing."""
        return ""

    def _describe(self, error: Exception) -> str:
        kind = "" if isinstance(error, CalculationFailed) else f"{type(error).__name__}: "
        text, said = " ".join(str(error).split()), self.explain()
        where = "" if self.directory is None or str(self.directory) in text else f" (run in {self.directory})"
        return f"{self._name} failed: {kind}{text}{f'; it said: {said}' if said else ''}{where}"

    def _check_finite(self) -> None:
        for name in _GETTERS:
            value = self.results.get(name, 0.0)
            if value is None or not np.isfinite(value).all():
                raise CalculationFailed(f"the {name} is {'missing' if value is None else 'not finite'}")


def last_lines(file: Path, n_lines: int = 3) -> str:
    """Last lines of a text file that are not blank, in one line; empty if there is no such file."""
    if not file.is_file():
        return ""
    lines = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-n_lines:])
