"""Relax positions and cells of crystals through any ASE calculator, many at once where it can."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, CalculatorError

from ase_hvae.calculators.relaxation import Bounds as RelaxLimits
from ase_hvae.calculators.relaxation import no_constraints, relaxations
from ase_hvae.errors import AseHvaeError, RelaxationError, StructureError
from ase_hvae.structures import check_structure

if TYPE_CHECKING:  # compiled code is loaded where something is relaxed
    from ase_hvae.calculators.relaxation import Relaxed

OPTIMIZERS = ("BFGS", "FIRE")


@dataclass(frozen=True, eq=False)
class RelaxResult:
    """A relaxed crystal.

    Attributes
    ----------
    atoms : Atoms
        Relaxed copy; a ``SinglePointCalculator`` holds its energy, forces and stress.
    energy, energy_initial : float
        Potential energy after and before, eV per cell.
    enthalpy : float
        Energy plus pressure times volume, eV per cell.
    forces : np.ndarray
        eV/Å, ``(n_atoms, 3)``.
    stress : np.ndarray
        eV/Å³, Voigt order, tension positive, ``(6,)``.
    fmax : float
        Largest force norm over atoms and cell rows at the end, eV/Å.
    converged : bool
        Whether ``fmax`` is below the limit.
    n_steps : int
        Optimizer steps; one energy, force and stress evaluation each, and one before the first.
    extrapolation : float or None
        How far the worst atom lies outside the calculator's training data, in units of an input's range, where the
        calculator says it.
    """

    atoms: Atoms
    energy: float
    energy_initial: float
    enthalpy: float
    forces: np.ndarray
    stress: np.ndarray
    fmax: float
    converged: bool
    n_steps: int
    extrapolation: float | None = None


def relax(
    atoms: Atoms,
    calc: BaseCalculator,
    *,
    fmax: float = 0.01,
    max_steps: int = 500,
    optimizer: str = "BFGS",
    scalar_pressure: float = 0.0,
    limits: RelaxLimits | None = None,
) -> RelaxResult:
    """Relax positions and cell to a local minimum of the enthalpy.

    Parameters
    ----------
    atoms : Atoms
        Periodic crystal without constraints; not modified.
    calc : Calculator
        Any ASE calculator with energy, forces and stress.
    fmax : float
        Largest force norm, over atoms and cell rows, at convergence, eV/Å. The cell rows of ASE's Frechet filter are
        virials per atom: 0.01 eV/Å means 0.0005 eV/Å³ (0.08 GPa) at 20 Å³ per atom.
    max_steps : int
        Step limit; not converging within it is no error.
    optimizer : str
        ``"BFGS"``, which takes back a step that raises the enthalpy, or ``"FIRE"``, which takes the steps of ASE's FIRE
        on FrechetCellFilter; see :func:`maise_bridge.batch_relax.batch_relax`. Each step costs one calculation.
    scalar_pressure : float
        Hydrostatic pressure, eV/Å³.
    limits : RelaxLimits, optional
        Bounds on volume, cell lengths and distances.

    Returns
    -------
    RelaxResult
        Relaxed copy, energies, forces, stress and ``converged``.

    Raises
    ------
    CalculationFailed
        If the calculator fails or returns a non-finite energy, force or stress.
    RelaxationError
        If the crystal collapses, evaporates or leaves another bound.
    StructureError
        If the input is not a crystal, or has constraints.

    References
    ----------
    Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006).
    """
    ((_, found),) = relax_many(
        [atoms],
        calc,
        fmax=fmax,
        max_steps=max_steps,
        optimizer=optimizer,
        scalar_pressure=scalar_pressure,
        limits=limits,
    )
    if isinstance(found, Exception):
        raise found
    return found


def relax_many(
    structures: Sequence[Atoms],
    calc: BaseCalculator,
    *,
    fmax: float = 0.01,
    max_steps: int = 500,
    optimizer: str = "BFGS",
    scalar_pressure: float = 0.0,
    limits: RelaxLimits | None = None,
) -> Iterator[tuple[int, RelaxResult | AseHvaeError | CalculatorError]]:
    """Relax crystals independently of one another; what fails is a result too.

    A calculator that has a method `batch_relax`, as :class:`maise_bridge.MaiseCalculator`, relaxes all of them at once;
    others take one after the other, by the same steps.

    Parameters
    ----------
    structures : sequence of Atoms
        Periodic crystals; not modified.
    calc, fmax, max_steps, optimizer, scalar_pressure, limits
        As for :func:`relax`.

    Yields
    ------
    tuple of int and RelaxResult or error
        Place in the sequence and what came of it, in the order in which they are ready.

    Raises
    ------
    ValueError
        If an option makes no sense.
    """
    limits = limits or RelaxLimits()
    _check_options(fmax, max_steps, optimizer, scalar_pressure)
    numbers = []
    for number, atoms in enumerate(structures):
        try:
            _check_crystal(atoms, limits)
        except StructureError as error:
            yield number, error
        else:
            numbers.append(number)
    for place, end in relaxations(
        [structures[number] for number in numbers],
        calc,
        bounds=limits,
        fmax=fmax,
        max_steps=max_steps,
        optimizer=optimizer,
        scalar_pressure=scalar_pressure,
    ):
        number = numbers[place]
        yield number, end if isinstance(end, CalculatorError) else _result(structures[number], end, scalar_pressure)


def _result(atoms: Atoms, end: Relaxed, scalar_pressure: float) -> RelaxResult | RelaxationError:
    """What came of a relaxation of `atoms`."""
    if end.failure is not None:
        return RelaxationError(f"relaxation of {atoms.symbols} left its bounds: {end.failure}")
    evaluation = end.evaluation
    assert evaluation.stress is not None  # of a crystal
    return RelaxResult(
        atoms=end.atoms,
        energy=evaluation.energy,
        energy_initial=end.energy_initial,
        enthalpy=evaluation.energy + scalar_pressure * end.atoms.cell.volume,
        forces=evaluation.forces,
        stress=evaluation.stress,
        fmax=end.fmax,
        converged=end.converged,
        n_steps=end.n_steps,
        extrapolation=None if evaluation.extrapolation is None else float(evaluation.extrapolation.max()),
    )


def _check_crystal(atoms: Atoms, limits: RelaxLimits) -> None:
    check_structure(atoms, label="structure to relax", min_distance=limits.min_distance)
    if atoms.constraints:
        raise StructureError(f"structure to relax {no_constraints(atoms)}")


def _check_options(fmax: float, max_steps: int, optimizer: str, scalar_pressure: float) -> None:
    if not (np.isfinite(fmax) and fmax > 0):
        raise ValueError(f"fmax is {fmax}; it must be a positive force in eV/Å")
    if max_steps < 0:
        raise ValueError(f"max_steps is {max_steps}; it must not be negative")
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer is {optimizer!r}; choose one of {', '.join(OPTIMIZERS)}")
    if not np.isfinite(scalar_pressure):
        raise ValueError(f"scalar_pressure is {scalar_pressure}; it must be finite, in eV/Å³")
