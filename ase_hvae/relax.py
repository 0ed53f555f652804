"""Relax positions and cells of crystals through any ASE calculator, many at once where it can."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, CalculationFailed, CalculatorError
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import FrechetCellFilter, UnitCellFilter
from ase.optimize import BFGS, FIRE, LBFGS
from ase.optimize.optimize import Optimizer
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress

from ase_hvae.errors import AseHvaeError, RelaxationError, StructureError
from ase_hvae.structures import check_structure

logger = logging.getLogger(__name__)

OPTIMIZERS: Mapping[str, type[Optimizer]] = {"BFGS": BFGS, "FIRE": FIRE, "LBFGS": LBFGS}
BATCH_OPTIMIZERS = ("BFGS", "FIRE")  # that calculators with a `batch_relax` have


@dataclass(frozen=True)
class RelaxLimits:
    """Bounds that a relaxation must not leave; beyond them the potential, not the crystal, is at work.

    Attributes
    ----------
    volume_factor : float
        Volume may grow or shrink by at most this factor.
    length_factor : float
        No cell vector may grow by more than this factor.
    min_distance : float
        Smallest distance between two atoms, Å.
    """

    volume_factor: float = 3.0
    length_factor: float = 4.0
    min_distance: float = 0.5


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


class CellFilter(FrechetCellFilter):
    """ASE's FrechetCellFilter without its cost: positions in the undeformed cell and log F, for deformation F.

    ASE calls scipy for one matrix logarithm and nine Frechet derivatives a step: 7 ms on an idle core, a second where
    scipy's BLAS threads compete for cores. Here the logarithm is the state, and the nine derivatives are one adjoint.
    """

    def __init__(self, atoms: Atoms, scalar_pressure: float = 0.0) -> None:
        super().__init__(atoms, scalar_pressure=scalar_pressure)
        self._log_deformation = np.zeros((3, 3))

    def get_positions(self) -> np.ndarray:
        """Undeformed positions and scaled log F, ``(n_atoms + 3, 3)``."""
        positions = UnitCellFilter.get_positions(self)
        positions[-3:] = self._log_deformation * self.exp_cell_factor
        return positions

    def set_positions(self, new: np.ndarray, **kwargs: bool) -> None:  # type: ignore[override]
        """Set positions and cell from undeformed positions and scaled log F."""
        self._log_deformation = new[-3:] / self.exp_cell_factor
        deformed = np.concatenate([new[:-3], self.cell_factor * _expm(self._log_deformation)])
        UnitCellFilter.set_positions(self, deformed, **kwargs)

    def get_forces(self, **kwargs: bool) -> np.ndarray:
        """Minus the gradient of the enthalpy by what :meth:`get_positions` returns."""
        stress = voigt_6_to_full_3x3_stress(self.atoms.get_stress(**kwargs)) + self.scalar_pressure * np.eye(3)
        deformation = _expm(self._log_deformation)
        virial = -self.atoms.cell.volume * stress
        block = np.zeros((6, 6))
        block[:3, :3] = block[3:, 3:] = self._log_deformation.T
        block[:3, 3:] = virial @ np.linalg.inv(deformation.T)
        self.stress = full_3x3_to_voigt_6_stress(stress)
        return np.concatenate(
            [self.atoms.get_forces(**kwargs) @ deformation, _expm(block)[:3, 3:] / self.exp_cell_factor]
        )


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
        Periodic crystal; not modified. Constraints are kept.
    calc : Calculator
        Any ASE calculator with energy, forces and stress.
    fmax : float
        Largest force norm, over atoms and cell rows, at convergence, eV/Å. The cell rows of ASE's Frechet filter are
        virials per atom: 0.01 eV/Å means 0.0005 eV/Å³ (0.08 GPa) at 20 Å³ per atom.
    max_steps : int
        Step limit; not converging within it is no error.
    optimizer : str
        ASE's ``"FIRE"``, ``"BFGS"`` or ``"LBFGS"``.
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
        If the input is not a crystal.

    References
    ----------
    Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006).
    """
    limits = limits or RelaxLimits()
    _check_options(fmax, max_steps, optimizer, scalar_pressure)
    check_structure(atoms, label="structure to relax", min_distance=limits.min_distance)
    work = atoms.copy()
    work.calc = calc
    energy_initial = _evaluate(work)[0]
    filtered = CellFilter(work, scalar_pressure=scalar_pressure)
    dynamics = OPTIMIZERS[optimizer](filtered, logfile=None)  # type: ignore[arg-type]
    for _ in dynamics.irun(fmax=fmax, steps=max_steps):
        _check_limits(work, atoms, limits, dynamics.nsteps)
        _evaluate(work)
    energy, forces, stress = _evaluate(work)
    relaxed = work.copy()
    relaxed.calc = SinglePointCalculator(relaxed, energy=energy, forces=forces, stress=stress)
    final_fmax = float(np.linalg.norm(filtered.get_forces(), axis=1).max())
    result = RelaxResult(
        atoms=relaxed,
        energy=energy,
        energy_initial=energy_initial,
        enthalpy=energy + scalar_pressure * relaxed.cell.volume,
        forces=forces,
        stress=stress,
        fmax=final_fmax,
        converged=final_fmax < fmax,
        n_steps=dynamics.nsteps,
        extrapolation=_extrapolation(work),
    )
    logger.debug("relaxed %s in %d steps, fmax %.2g eV/Å", relaxed.symbols, result.n_steps, result.fmax)
    return result


def relaxes_together(calc: BaseCalculator, optimizer: str) -> bool:
    """Whether :func:`relax_many` hands all crystals to the calculator at once."""
    return hasattr(calc, "batch_relax") and optimizer in BATCH_OPTIMIZERS


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
    """Relax crystals independently of one another; what fails is a result too, and comes without a traceback.

    A calculator that has a method `batch_relax`, as :class:`maise_bridge.MaiseCalculator`, relaxes all of them at once
    by its own FIRE or BFGS; others take one after the other through :func:`relax`.

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
    options: dict[str, Any] = {
        "fmax": fmax,
        "max_steps": max_steps,
        "optimizer": optimizer,
        "scalar_pressure": scalar_pressure,
    }
    if not relaxes_together(calc, optimizer):
        for number, atoms in enumerate(structures):
            try:
                yield number, relax(atoms, calc, limits=limits, **options)
            except (AseHvaeError, CalculatorError) as error:
                yield number, error
        return
    numbers = []
    for number, atoms in enumerate(structures):
        try:
            check_structure(atoms, label="structure to relax", min_distance=limits.min_distance)
        except StructureError as error:
            yield number, error
        else:
            numbers.append(number)
    together: Any = calc
    for end in together.batch_relax([structures[number] for number in numbers], bounds=limits, **options):
        number = numbers[end.index]
        yield number, _result(end, scalar_pressure) if end.failure is None else _left_bounds(structures[number], end)


def _result(end: Any, scalar_pressure: float) -> RelaxResult:
    """Result of a batched relaxation that stayed within its bounds."""
    evaluation = end.evaluation
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
        extrapolation=float(evaluation.extrapolation.max()),
    )


def _left_bounds(atoms: Atoms, end: Any) -> RelaxationError:
    return RelaxationError(f"relaxation of {atoms.symbols} left its bounds: {end.failure}")


def _extrapolation(atoms: Atoms) -> float | None:
    """Largest excursion from the training data of the calculator, if it reports that."""
    values = getattr(atoms.calc, "results", {}).get("extrapolation")
    return None if values is None else float(np.max(values))


def _check_options(fmax: float, max_steps: int, optimizer: str, scalar_pressure: float) -> None:
    if not (np.isfinite(fmax) and fmax > 0):
        raise ValueError(f"fmax is {fmax}; it must be a positive force in eV/Å")
    if max_steps < 0:
        raise ValueError(f"max_steps is {max_steps}; it must not be negative")
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer is {optimizer!r}; choose one of {', '.join(OPTIMIZERS)}")
    if not np.isfinite(scalar_pressure):
        raise ValueError(f"scalar_pressure is {scalar_pressure}; it must be finite, in eV/Å³")


def _expm(matrix: np.ndarray) -> np.ndarray:
    """Matrix exponential of a small matrix: Taylor series of a scaled-down matrix, squared up again."""
    norm = np.abs(matrix).sum(axis=1).max()
    n_squarings = max(0, int(np.ceil(np.log2(norm / 0.25)))) if norm > 0 else 0
    scaled = matrix / 2.0**n_squarings
    term = result = np.eye(len(matrix))
    for order in range(1, 13):  # 0.25^13 / 13! = 2e-18
        term = term @ scaled / order
        result = result + term
    for _ in range(n_squarings):
        result = result @ result
    return result


def _evaluate(atoms: Atoms) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy, forces and stress, refused unless finite; ASE calculators answer repeated questions from their cache."""
    energy = float(atoms.get_potential_energy())
    forces = np.array(atoms.get_forces())
    stress = np.array(atoms.get_stress(voigt=True))
    for name, value in (("energy", energy), ("forces", forces), ("stress", stress)):
        if not np.isfinite(value).all():
            raise CalculationFailed(f"calculator returned a non-finite {name} for {atoms.symbols}")
    return energy, forces, stress


def _check_limits(atoms: Atoms, initial: Atoms, limits: RelaxLimits, n_steps: int) -> None:
    """Stop a relaxation that has left physical bounds."""
    where = f"relaxation of {initial.symbols} left its bounds after {n_steps} steps:"
    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell).all()):
        raise RelaxationError(f"{where} positions or cell are not finite")
    ratio = atoms.cell.volume / initial.cell.volume
    if not 1 / limits.volume_factor <= ratio <= limits.volume_factor:
        raise RelaxationError(f"{where} the volume changed by a factor {ratio:.3g}, limit {limits.volume_factor:g}")
    stretch = float((atoms.cell.lengths() / initial.cell.lengths()).max())
    if stretch > limits.length_factor:
        raise RelaxationError(f"{where} a cell vector grew by a factor {stretch:.3g}, limit {limits.length_factor:g}")
    try:
        check_structure(atoms, min_distance=limits.min_distance)
    except StructureError as error:
        raise RelaxationError(f"{where} {error}") from error
