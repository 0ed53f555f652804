"""Elastic tensor by central differences of the stress over six strains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import BaseCalculator, CalculatorError, PropertyNotImplementedError
from ase.optimize import BFGS

from ase_hvae.elasticity.tensor import (
    VOIGT_NAMES,
    VOIGT_PAIRS,
    Moduli,
    debye_temperature,
    energy_tensor,
    moduli,
    stability,
    strain_matrix,
    symmetrize_tensor,
)
from ase_hvae.errors import ElasticityError
from ase_hvae.structures import check_structure
from ase_hvae.symmetry import cartesian_rotations

# Ions that move further than this (Å) in a strained cell have left the crystal for another one.
MAX_DISPLACEMENT = 0.5


@dataclass(frozen=True, eq=False)
class ElasticResult:
    """Elastic tensor of a crystal, and the verdict.

    Attributes
    ----------
    tensor : np.ndarray
        Derivatives of the stress by strain, eV/Å³, Voigt order xx yy zz yz xz xy, ``(6, 6)``, in the Cartesian axes
        of the crystal as given; symmetric, with its point group. At zero pressure the elastic constants.
    unsymmetrized : np.ndarray
        The same as measured, eV/Å³, ``(6, 6)``; column j is the stress by strain j.
    residual : float
        Largest difference between the two, eV/Å³: errors of calculator, strain and relaxation.
    energy_tensor : np.ndarray
        Second derivatives of the energy by the Lagrangian strain over the volume, eV/Å³, ``(6, 6)``; differs from
        ``tensor`` under pressure only.
    eigenvalues : np.ndarray
        Of ``tensor`` in Kelvin's orthonormal components, ascending, eV/Å³, ``(6,)``; they do not depend on the axes.
        For a cubic crystal C11 - C12 twice, C11 + 2 C12 and 2 C44 three times.
    soft_strain : np.ndarray
        Unit strain of the lowest eigenvalue, ``(3, 3)``.
    stable : bool
        Whether all eigenvalues are above ``tolerance``: Born's criteria for any crystal system.
    violation : str
        Which eigenvalues fail; empty if the crystal is stable.
    moduli : Moduli or None
        Polycrystalline averages; None for an unstable crystal, whose compliance means nothing.
    debye_temperature : float or None
        From the Hill averages, K; None for an unstable crystal.
    pressure : float
        Of the crystal as given, eV/Å³.
    relaxed_ions : bool
        Whether ions were relaxed in the strained cells.
    n_evaluations : int
        Calls of the calculator for new positions or cells.
    """

    tensor: np.ndarray
    unsymmetrized: np.ndarray
    residual: float
    energy_tensor: np.ndarray
    eigenvalues: np.ndarray
    soft_strain: np.ndarray
    stable: bool
    violation: str
    moduli: Moduli | None
    debye_temperature: float | None
    pressure: float
    relaxed_ions: bool
    n_evaluations: int


def compute(
    atoms: Atoms,
    calc: BaseCalculator,
    *,
    strains: Sequence[float] = (0.005,),
    relax_ions: bool = True,
    fmax: float = 1e-4,
    max_steps: int = 500,
    tolerance: float = 0.005,
    symprec: float = 0.01,
    max_force: float = 0.1,
    max_deviator: float = 0.005,
) -> ElasticResult:
    """Elastic tensor of a relaxed crystal by central differences of the stress.

    Parameters
    ----------
    atoms : Atoms
        Relaxed periodic crystal, at zero or hydrostatic pressure; not modified. Its primitive cell is the cheapest.
    calc : Calculator
        Any ASE calculator with forces and stress; the one that relaxed the crystal.
    strains : sequence of float
        Magnitudes of the strains. One leaves an error of its square; each further one removes a power of two more
        (Richardson) at the price of twelve calculations.
    relax_ions : bool
        Relax positions in the strained cells (what an experiment measures) instead of straining them with the cell.
        From a saddle point (a soft phonon at Gamma) ions fall to either side, and an eigenvalue may be large and
        negative: the verdict is right, the number is not a stiffness.
    fmax : float
        Largest force when ions are relaxed, eV/Å. A force f left over makes an error of the order of f / strain over
        an area of 10 Å² in the tensor: 0.002 eV/Å³ (0.3 GPa) for the defaults.
    max_steps : int
        Limit of the optimizer (ASE's BFGS) for one strain.
    tolerance : float
        A crystal is stable if no eigenvalue lies below this, eV/Å³ (0.8 GPa by default): a positive number, because
        what is soft within the numerical error is not known to be stable.
    symprec : float
        Tolerance of the point-group search, Å.
    max_force : float
        Largest force on an atom for which the crystal counts as relaxed, eV/Å.
    max_deviator : float
        Largest deviation of the stress from a hydrostatic one for which the crystal counts as relaxed, eV/Å³; the
        tensor is in error by as much.

    Returns
    -------
    ElasticResult
        Tensor, moduli and the verdict ``stable``.

    Raises
    ------
    ElasticityError
        If the crystal is not relaxed, ions do not relax or leave the crystal, or the calculator fails, has no stress
        or returns a non-finite force or stress; names the strain.
    StructureError, SymmetryError
        If the input is not a crystal.

    References
    ----------
    Wallace, Phys. Rev. 162, 776 (1967); Mouhat and Coudert, Phys. Rev. B 90, 224104 (2014).
    """
    magnitudes = _check_options(strains, fmax, max_steps, tolerance)
    check_structure(atoms, label="structure for the elastic tensor")
    strained = _StrainedCrystal(atoms, calc, fmax, max_steps if relax_ions else None)
    stress = strained.relaxed_stress(max_force)
    pressure = -float(stress[:3].mean())
    deviator = float(np.abs(stress + pressure * (np.arange(6) < 3)).max())
    if deviator > max_deviator:
        raise ElasticityError(
            f"crystal is not relaxed: its stress differs from a hydrostatic one by {deviator:.3g} eV/Å³, "
            f"limit {max_deviator:g}; relax its cell first"
        )
    measured = _slopes(strained, magnitudes)
    tensor = symmetrize_tensor(measured, cartesian_rotations(atoms, symprec=symprec))
    eigenvalues, soft_strain = stability(tensor)
    stable = bool(eigenvalues[0] > tolerance)
    averages = moduli(tensor) if stable else None
    return ElasticResult(
        tensor=tensor,
        unsymmetrized=measured,
        residual=float(np.abs(measured - tensor).max()),
        energy_tensor=energy_tensor(tensor, pressure),
        eigenvalues=eigenvalues,
        soft_strain=soft_strain,
        stable=stable,
        violation="" if stable else _violation(eigenvalues, soft_strain, tolerance),
        moduli=averages,
        debye_temperature=None if averages is None else debye_temperature(atoms, averages),
        pressure=pressure,
        relaxed_ions=relax_ions,
        n_evaluations=strained.n_evaluations,
    )


class _StrainedCrystal:
    """Stress of a crystal in strained cells; ions relaxed if there are steps for it."""

    def __init__(self, atoms: Atoms, calc: BaseCalculator, fmax: float, max_steps: int | None) -> None:
        self.atoms = atoms.copy()
        self.atoms.set_constraint()
        self.calc, self.fmax, self.max_steps = calc, fmax, max_steps
        self.n_evaluations = 0

    def relaxed_stress(self, max_force: float) -> np.ndarray:
        """Stress without strain, eV/Å³, ``(6,)``, after forces that are small enough were relaxed."""
        work = self.atoms.copy()
        work.calc = self.calc
        largest = float(np.linalg.norm(self._evaluate("forces", work, "unstrained"), axis=1).max())
        if largest > max_force:
            raise ElasticityError(
                f"crystal is not relaxed: largest force {largest:.3g} eV/Å, limit {max_force:g}; relax it first"
            )
        stress = self._relax(work, "unstrained")
        self.atoms.positions = work.positions
        return stress

    def stress(self, component: int, magnitude: float) -> np.ndarray:
        """Stress at one Voigt strain, eV/Å³, ``(6,)``."""
        strain = np.zeros(6)
        strain[component] = magnitude
        work = self.atoms.copy()
        work.set_cell(work.cell[:] @ (np.eye(3) + strain_matrix(strain)), scale_atoms=True)
        work.calc = self.calc
        return self._relax(work, f"strain {VOIGT_NAMES[component]} {magnitude:+g}")

    def _relax(self, work: Atoms, where: str) -> np.ndarray:
        """Stress after ``work`` was relaxed in its cell."""
        self.n_evaluations += 1
        if self.max_steps is not None:
            start = work.positions.copy()
            optimizer = BFGS(work, logfile=None)
            n_steps = 0
            while np.linalg.norm(self._evaluate("forces", work, where), axis=1).max() >= self.fmax:
                if n_steps == self.max_steps:
                    raise ElasticityError(
                        f"{where}: ions not relaxed to {self.fmax:g} eV/Å in {self.max_steps} steps; raise max_steps"
                    )
                optimizer.step()
                n_steps += 1
                displacement = float(np.linalg.norm(work.positions - start, axis=1).max())
                if not displacement <= MAX_DISPLACEMENT:
                    raise ElasticityError(
                        f"{where}: an ion moved by {displacement:.3g} Å, limit {MAX_DISPLACEMENT:g}: the crystal is "
                        "no minimum for its ions; clamp them or follow its soft phonon"
                    )
            self.n_evaluations += n_steps
        return self._evaluate("stress", work, where)

    def _evaluate(self, name: str, work: Atoms, where: str) -> np.ndarray:
        """Forces or stress; whatever the calculator does wrong becomes an ElasticityError."""
        try:
            value = np.array(work.get_forces() if name == "forces" else work.get_stress(voigt=True))
        except PropertyNotImplementedError as error:
            raise ElasticityError(f"calculator {type(self.calc).__name__} has no {name}; choose another") from error
        except CalculatorError as error:
            raise ElasticityError(f"{where}: calculator failed: {' '.join(str(error).split())}") from error
        if not np.isfinite(value).all():
            raise ElasticityError(f"{where}: calculator returned a non-finite {name} for {work.symbols}")
        return value


def _slopes(strained: _StrainedCrystal, magnitudes: np.ndarray) -> np.ndarray:
    """Derivatives of the stress by each Voigt strain, eV/Å³, ``(6, 6)``.

    Half the difference of the stresses at +h and -h is an odd polynomial in h; as many of its terms are found as there
    are magnitudes, and the first one is the slope.
    """
    powers = magnitudes[:, None] ** (2 * np.arange(len(magnitudes)) + 1)
    columns = []
    for component in range(6):
        odd = [(strained.stress(component, h) - strained.stress(component, -h)) / 2 for h in magnitudes]
        columns.append(np.linalg.solve(powers, np.array(odd))[0])
    return np.array(columns).T


def _violation(eigenvalues: np.ndarray, soft_strain: np.ndarray, tolerance: float) -> str:
    """Which eigenvalues fail Born's criteria, and by which strain the crystal gives way."""
    bad = ", ".join(f"{value / units.GPa:.3g}" for value in eigenvalues[eigenvalues <= tolerance])
    strain = soft_strain[*VOIGT_PAIRS] / soft_strain.flat[np.argmax(np.abs(soft_strain))]
    terms = ", ".join(f"{name} {x:+.2f}" for name, x in zip(VOIGT_NAMES, strain, strict=True) if abs(x) > 0.005)
    n_bad = int((eigenvalues <= tolerance).sum())
    return (
        f"{n_bad} of 6 elastic eigenvalues not above {tolerance / units.GPa:.2g} GPa: {bad} GPa; softest strain {terms}"
    )


def _check_options(strains: Sequence[float], fmax: float, max_steps: int, tolerance: float) -> np.ndarray:
    """Magnitudes as an array; refused options raise ValueError."""
    magnitudes = np.array(sorted(strains), dtype=float)
    if len(magnitudes) == 0 or not (np.isfinite(magnitudes).all() and np.all((magnitudes > 0) & (magnitudes <= 0.05))):
        raise ValueError(f"strains are {list(strains)}; they must lie above 0 and at most 0.05")
    if np.any(np.diff(magnitudes) < 0.1 * magnitudes[1:]):
        raise ValueError(f"strains {list(strains)} are too close to one another; they must differ by a tenth or more")
    if not (np.isfinite(fmax) and fmax > 0):
        raise ValueError(f"fmax is {fmax}; it must be a positive force in eV/Å")
    if max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}; at least one step is needed")
    if not (np.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"tolerance is {tolerance}; it must be finite and not negative, in eV/Å³")
    return magnitudes
