"""Harmonic phonons of one crystal by finite displacements: is it a minimum of the energy?"""

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
from phonopy import Phonopy
from phonopy.structure.atoms import PhonopyAtoms

from ase_hvae.errors import PhononError
from ase_hvae.phonons.supercell import choose_supercell
from ase_hvae.structures import check_structure
from ase_hvae.symmetry import symmetrize

logger = logging.getLogger(__name__)


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
    phonon : Phonopy
        Solved on the mesh, for modes, bands, thermal properties and files of phonopy.
    tolerance : float
        That of the verdict, THz.
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
    phonon: Phonopy
    tolerance: float


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
        phonon=phonon,
        tolerance=tolerance,
    )


def _displace(crystal: Atoms, supercell_matrix: np.ndarray, displacement: float) -> Phonopy:
    """Phonopy with its displaced supercells; its matrices act on column vectors."""
    unitcell = PhonopyAtoms(
        symbols=list(crystal.symbols), cell=crystal.cell[:], scaled_positions=crystal.get_scaled_positions()
    )
    if supercell_matrix.shape != (3, 3) or np.linalg.det(supercell_matrix) < 0.5:
        raise ValueError(f"supercell_matrix must hold three right-handed integer rows, not {supercell_matrix.tolist()}")
    with logged_warnings():
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
        with logged_warnings():
            phonon.produce_force_constants(fc_calculator="symfc", calculate_full_force_constants=False)
            return phonon.run_mesh(mesh_length, is_gamma_center=True)
    except (RuntimeError, ValueError, np.linalg.LinAlgError) as error:
        raise PhononError(f"no force constants for {phonon.unitcell.formula}: {error}") from error


@contextmanager
def logged_warnings() -> Iterator[None]:
    """Send phonopy's warnings (a generalized mesh, a supercell of lower symmetry) to the log; results stay valid."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        logger.info("phonopy: %s", " ".join(str(warning.message).split()))
