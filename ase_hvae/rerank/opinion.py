"""What a calculator says of one crystal: the part of a rerank that runs in worker processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase import Atoms, units
from ase.calculators.calculator import BaseCalculator, CalculatorError
from ase.calculators.singlepoint import SinglePointCalculator

from ase_hvae.calculators import CalculatorRecord, get_calculator
from ase_hvae.calculators.relaxation import CalculatorPotential
from ase_hvae.config import RelaxConfig
from ase_hvae.errors import AseHvaeError
from ase_hvae.relax import relax
from ase_hvae.rerank.store import Reranked
from ase_hvae.structures import check_structure


@dataclass(frozen=True, eq=False)
class Opinion:
    """What one calculator found from one crystal.

    Attributes
    ----------
    single_point, relaxed : Atoms or None
        The crystal as it was given and its minimum, each with a calculator that holds energy (eV), forces (eV/Å) and
        stress (eV/Å³); None where it failed or was not asked for.
    n_steps : int
        Optimizer steps.
    failure : str or None
        Why something is missing.
    """

    single_point: Atoms | None = None
    relaxed: Atoms | None = None
    n_steps: int = 0
    failure: str | None = None


@dataclass(frozen=True, eq=False)
class Evaluator:
    """A calculator with the options of its relaxations."""

    calc: BaseCalculator
    options: RelaxConfig
    single_point: bool

    @classmethod
    def open(
        cls,
        name: str,
        species: tuple[str, ...],
        model: str,
        settings: Mapping[str, Mapping[str, Any]],
        directory: Path,
        options: RelaxConfig,
        single_point: bool,
    ) -> tuple[Evaluator, CalculatorRecord]:
        """Make the calculator, as each worker process does; arguments as for `get_calculator`."""
        calc, record = get_calculator(name, species=species, model=model, settings=settings, directory=directory)
        return cls(calc, options, single_point), record

    def evaluate_row(self, row: Reranked) -> Opinion:
        """As :meth:`evaluate`, of the crystal that a row begins with."""
        return self.evaluate(row.start)

    def evaluate(self, atoms: Atoms) -> Opinion:
        """Single point and, unless only that is wanted, the minimum that the crystal relaxes to.

        A failure of the calculator or of the relaxation is a result too.
        """
        start = None
        try:
            start = self._single_point(atoms)
            if self.single_point:
                return Opinion(start)
            result = relax(
                atoms,
                self.calc,
                fmax=self.options.fmax,
                max_steps=self.options.max_steps,
                optimizer=self.options.optimizer,
                scalar_pressure=self.options.pressure * units.GPa,
            )
        except (AseHvaeError, CalculatorError) as error:
            return Opinion(start, failure=" ".join(str(error).split()))
        if not result.converged:
            limit = f"{self.options.fmax} eV/Å in {self.options.max_steps} steps"
            return Opinion(start, n_steps=result.n_steps, failure=f"not converged to {limit}; raise max_steps")
        return Opinion(start, result.atoms, result.n_steps)

    def _single_point(self, atoms: Atoms) -> Atoms:
        """Copy with energy, forces and stress; refused unless they are finite."""
        check_structure(atoms, label="structure to evaluate")
        (found,) = CalculatorPotential(self.calc, cutoff=0.0).evaluate([atoms])
        done = atoms.copy()
        done.calc = SinglePointCalculator(done, energy=found.energy, forces=found.forces, stress=found.stress)
        return done


def open_evaluator(make: Callable[[], tuple[Evaluator, CalculatorRecord]]) -> Evaluator:
    """What `make` gives, without the record, as a worker process needs it."""
    return make()[0]
