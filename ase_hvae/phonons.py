"""Harmonic phonons of one crystal by finite displacements: is it a minimum of the energy?

The only importer of phonopy.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, CalculationFailed
from ase.geometry import minkowski_reduce
from phonopy import Phonopy
from phonopy.structure.atoms import PhonopyAtoms

from ase_hvae.errors import PhononError
from ase_hvae.structures import check_structure
from ase_hvae.symmetry import rotations, symmetrize

logger = logging.getLogger(__name__)

MAX_SUPERCELL_ATOMS = 2000


@dataclass(frozen=True, eq=False)
class PhononResult:
    """Phonon frequencies on a mesh, and the verdict.

    Attributes
    ----------
    frequencies : np.ndarray
        THz, imaginary ones negative, ``(n_qpoints, 3 n_atoms)``, ascending at each point.
    qpoints : np.ndarray
        Irreducible mesh points in units of the reciprocal vectors of ``atoms``, ``(n_qpoints, 3)``; the first is Gamma.
    weights : np.ndarray
        How many mesh points each stands for, integers, ``(n_qpoints,)``.
    min_frequency : float
        Lowest frequency, THz.
    max_frequency : float
        Highest frequency, THz.
    stable : bool
        Whether ``min_frequency`` is above minus the tolerance.
    atoms : Atoms
        Idealised primitive cell that the frequencies belong to.
    supercell_matrix : np.ndarray
        Integer rows: supercell vectors in units of the vectors of ``atoms``, ``(3, 3)``.
    n_supercell_atoms, n_displacements : int
        Atoms in the supercell and force calculations of displaced supercells.
    residual_force : float
        Largest force norm before displacement, eV/Å.
    """

    frequencies: np.ndarray
    qpoints: np.ndarray
    weights: np.ndarray
    min_frequency: float
    max_frequency: float
    stable: bool
    atoms: Atoms
    supercell_matrix: np.ndarray
    n_supercell_atoms: int
    n_displacements: int
    residual_force: float


def compute(
    atoms: Atoms,
    calc: BaseCalculator,
    *,
    min_length: float = 10.0,
    displacement: float = 0.01,
    mesh_length: float = 60.0,
    tolerance: float = 0.3,
    symprec: float = 0.01,
    max_force: float = 0.1,
    supercell_matrix: np.ndarray | None = None,
) -> PhononResult:
    """Phonon frequencies of a relaxed crystal on a Gamma-centred mesh.

    The crystal is idealised to its primitive cell first. Forces of the undisplaced supercell are subtracted, and force
    constants obey the acoustic sum rule and the space group exactly (symfc).

    Parameters
    ----------
    atoms : Atoms
        Relaxed periodic crystal; not modified.
    calc : Calculator
        Any ASE calculator with forces; the one that relaxed the crystal.
    min_length : float
        Smallest distance between an atom and its images in the supercell, Å.
    displacement : float
        Displacement of one atom at a time, Å.
    mesh_length : float
        Density of the mesh: about ``mesh_length / |a|`` points along each reciprocal vector, Å.
    tolerance : float
        A crystal is stable if no frequency lies below minus this, THz. Force errors of 1e-4 eV/Å at the default
        displacement are errors of 0.01 eV/Å² in the force constants, which alone make 0.3 THz for the mass of silicon.
    symprec : float
        Tolerance of the space-group search, Å.
    max_force : float
        Largest force on an atom for which the crystal counts as relaxed, eV/Å.
    supercell_matrix : np.ndarray, optional
        Integer rows, ``(3, 3)``, in units of the idealised primitive cell, instead of :func:`choose_supercell`.

    Returns
    -------
    PhononResult
        Frequencies, supercell and the verdict ``stable``.

    Raises
    ------
    PhononError
        If the crystal is not relaxed, the supercell would be too large or force constants cannot be computed.
    CalculationFailed
        If the calculator fails or returns non-finite forces.

    References
    ----------
    Togo, J. Phys. Soc. Jpn. 92, 012001 (2023); Seko and Togo, Phys. Rev. B 110, 214302 (2024).
    """
    options = {"min_length": min_length, "displacement": displacement, "mesh_length": mesh_length}
    for name, value in options.items():
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}; it must be a positive length in Å")
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}; it must not be negative (THz)")
    check_structure(atoms, label="structure for phonons")
    crystal = symmetrize(atoms, symprec=symprec).atoms
    if supercell_matrix is None:
        supercell_matrix = choose_supercell(crystal, min_length)
    phonon = _displace(crystal, np.asarray(supercell_matrix, dtype=int), displacement)
    residual_force = _collect_forces(phonon, calc, max_force)
    mesh = _solve(phonon, mesh_length)
    frequencies = np.array(mesh.frequencies)
    if not np.isfinite(frequencies).all():
        raise PhononError(f"phonon frequencies of {atoms.symbols} are not finite")
    lowest = float(frequencies.min())
    return PhononResult(
        frequencies=frequencies,
        qpoints=np.array(mesh.qpoints),
        weights=np.array(mesh.weights),
        min_frequency=lowest,
        max_frequency=float(frequencies.max()),
        stable=lowest > -tolerance,
        atoms=crystal,
        supercell_matrix=np.array(supercell_matrix),
        n_supercell_atoms=len(phonon.supercell),
        n_displacements=len(phonon.displacements),
        residual_force=residual_force,
    )


def choose_supercell(atoms: Atoms, min_length: float, *, symprec: float = 1e-3) -> np.ndarray:
    """Smallest supercell that keeps the crystal's point group and its images at a distance.

    Every sublattice is tried, in order of size (Hermite normal forms): it must map onto itself under the rotations of
    the crystal, so that no symmetry is lost, and hold no lattice vector shorter than ``min_length``. Among those of one
    size the most compact wins.

    Parameters
    ----------
    atoms : Atoms
        Primitive cell.
    min_length : float
        Shortest vector allowed in the lattice of the supercell, Å.

    Returns
    -------
    np.ndarray
        Integer rows in units of the vectors of ``atoms``, ``(3, 3)``, reduced and right-handed.

    Raises
    ------
    PhononError
        If a supercell of MAX_SUPERCELL_ATOMS atoms is too small.
    """
    reduced, operation = minkowski_reduce(atoms.cell[:])
    # Sublattices are rows h of integers in the reduced basis; a rotation R of the given basis maps h to h turn.
    turns = [operation @ r.T @ np.linalg.inv(operation) for r in rotations(atoms, symprec=symprec)]
    turns = [turn for turn in turns if not np.allclose(np.abs(turn), np.eye(3))]
    short = _short_vectors(reduced, min_length)
    smallest = max(1, int(min_length**3 / (np.sqrt(2) * atoms.cell.volume)))  # no lattice packs denser than fcc
    for size in range(smallest, max(MAX_SUPERCELL_ATOMS // len(atoms), 1) + 1):
        forms = _hermite_forms(size)
        for turn in turns:
            forms = forms[_integral(forms @ turn @ np.linalg.inv(forms)).all(axis=(1, 2))]
        held = np.any(_integral(short @ np.linalg.inv(forms)).all(axis=2), axis=1)  # holds a short vector
        forms = forms[~held]
        if len(forms):
            return _most_compact(forms, reduced) @ operation
    raise PhononError(
        f"a supercell of {atoms.symbols} with images {min_length:g} Å apart needs more than "
        f"{MAX_SUPERCELL_ATOMS} atoms; lower min_length"
    )


def _displace(crystal: Atoms, supercell_matrix: np.ndarray, displacement: float) -> Phonopy:
    """Phonopy with its displaced supercells; its matrices act on column vectors."""
    unitcell = PhonopyAtoms(
        symbols=list(crystal.symbols), cell=crystal.cell[:], scaled_positions=crystal.get_scaled_positions()
    )
    if supercell_matrix.shape != (3, 3) or np.linalg.det(supercell_matrix) < 0.5:
        raise ValueError(f"supercell_matrix must hold three right-handed integer rows, not {supercell_matrix.tolist()}")
    with _logged_warnings():
        phonon = Phonopy(unitcell, supercell_matrix=supercell_matrix.T, primitive_matrix="P")
        phonon.generate_displacements(distance=displacement)
    return phonon


def _collect_forces(phonon: Phonopy, calc: BaseCalculator, max_force: float) -> float:
    """Give the forces of all displaced supercells to phonopy; returns the largest force before displacement."""
    residual = _forces(phonon.supercell, calc)
    residual_force = float(np.linalg.norm(residual, axis=1).max())
    if residual_force > max_force:
        raise PhononError(
            f"crystal is not relaxed: largest force {residual_force:.3g} eV/Å, limit {max_force:g}; relax it first"
        )
    phonon.forces = [_forces(cell, calc) - residual for cell in phonon.supercells_with_displacements or ()]
    return residual_force


def _forces(cell: PhonopyAtoms, calc: BaseCalculator) -> np.ndarray:
    """Forces on one supercell, eV/Å, ``(n_atoms, 3)``."""
    atoms = Atoms(cell.symbols, scaled_positions=cell.scaled_positions, cell=cell.cell, pbc=True, calculator=calc)
    forces = np.array(atoms.get_forces())
    if not np.isfinite(forces).all():
        raise CalculationFailed(f"calculator returned non-finite forces for the supercell {atoms.symbols}")
    return forces


def _solve(phonon: Phonopy, mesh_length: float) -> Any:
    """Force constants and frequencies on the mesh; whatever the libraries raise becomes a PhononError."""
    try:
        with _logged_warnings():
            phonon.produce_force_constants(fc_calculator="symfc", calculate_full_force_constants=False)
            return phonon.run_mesh(mesh_length, is_gamma_center=True)
    except (RuntimeError, ValueError, np.linalg.LinAlgError) as error:
        raise PhononError(f"no force constants for {phonon.unitcell.formula}: {error}") from error


def _short_vectors(cell: np.ndarray, length: float) -> np.ndarray:
    """Nonzero lattice vectors shorter than ``length``, one of each pair +-v, as integer rows."""
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    limits = np.floor(length / heights).astype(int)
    grid = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in limits), indexing="ij"), axis=-1).reshape(-1, 3)
    grid = grid[len(grid) // 2 + 1 :]
    return grid[np.linalg.norm(grid @ cell, axis=1) < length]


def _hermite_forms(size: int) -> np.ndarray:
    """All sublattices of index ``size``: upper triangular integer rows, ``(n, 3, 3)``."""
    forms = []
    for a in _divisors(size):
        for b in _divisors(size // a):
            c = size // (a * b)
            x, y, z = (values.ravel() for values in np.meshgrid(np.arange(b), np.arange(c), np.arange(c)))
            block = np.zeros((len(x), 3, 3))
            block[:, 0, 0], block[:, 1, 1], block[:, 2, 2] = a, b, c
            block[:, 0, 1], block[:, 0, 2], block[:, 1, 2] = x, y, z
            forms.append(block)
    return np.concatenate(forms)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _integral(values: np.ndarray) -> np.ndarray:
    """Which values are integers; they are fractions with denominators up to the size of a supercell."""
    return np.abs(values - np.round(values)) < 1e-6


def _most_compact(forms: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """The sublattice with the smallest sum of squared reduced vectors, as right-handed reduced integer rows."""
    best, best_score = np.eye(3, dtype=int), np.inf
    for form in forms:
        reduced, operation = minkowski_reduce(form @ cell)
        score = float((reduced**2).sum())
        if score < best_score - 1e-6:
            rows = np.round(operation @ form).astype(int)
            best, best_score = rows, score
    return best if np.linalg.det(best @ cell) > 0 else -best


@contextmanager
def _logged_warnings() -> Iterator[None]:
    """Send phonopy's warnings (a generalized mesh, a supercell of lower symmetry) to the log; results stay valid."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        logger.info("phonopy: %s", " ".join(str(warning.message).split()))
