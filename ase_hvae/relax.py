"""Relax positions and cell of one crystal through any ASE calculator."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, CalculationFailed
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import FrechetCellFilter, UnitCellFilter
from ase.optimize import FIRE, LBFGS
from ase.optimize.optimize import Optimizer
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress

from ase_hvae.errors import RelaxationError, StructureError
from ase_hvae.structures import check_structure

logger = logging.getLogger(__name__)

OPTIMIZERS: Mapping[str, type[Optimizer]] = {"FIRE": FIRE, "LBFGS": LBFGS}


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
    optimizer: str = "FIRE",
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
        ``"FIRE"`` (robust) or ``"LBFGS"`` (fewer steps near a minimum).
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
    )
    logger.debug("relaxed %s in %d steps, fmax %.2g eV/Å", relaxed.symbols, result.n_steps, result.fmax)
    return result


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
