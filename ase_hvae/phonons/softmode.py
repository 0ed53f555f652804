"""The softest mode of an unstable crystal, and the crystal displaced along it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import lcm

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, CalculationFailed
from phonopy.harmonic.dynmat_to_fc import get_commensurate_points

from ase_hvae.errors import PhononError
from ase_hvae.phonons.harmonic import PhononResult
from ase_hvae.phonons.supercell import commensurate_supercell

LARGEST_DENOMINATOR = 4  # of wave vectors tried besides those of the phonon supercell
LENGTHS = (
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.3,
    0.4,
    0.6,
    0.8,
)  # largest displacements of an atom tried in the line search, Å


@dataclass(frozen=True, eq=False)
class SoftMode:
    """A mode with an imaginary frequency as a standing wave in the smallest supercell that holds it.

    Attributes
    ----------
    qpoint : np.ndarray
        In units of the reciprocal vectors of the primitive cell, ``(3,)``.
    frequency : float
        THz, negative.
    supercell_matrix : np.ndarray
        Integer rows in units of the primitive cell, ``(3, 3)``.
    atoms : Atoms
        The supercell, not displaced.
    displacements : np.ndarray
        Å per Å amu^(1/2) of the normal coordinate Q: the sum of mass times displacement squared is one, and the energy
        of the supercell is (2 pi frequency)² Q² / 2 for small Q; ``(n_atoms, 3)``.
    """

    qpoint: np.ndarray
    frequency: float
    supercell_matrix: np.ndarray
    atoms: Atoms
    displacements: np.ndarray


def softest_mode(result: PhononResult, *, max_atoms: int = 32) -> SoftMode:
    """The mode of lowest frequency among those that repeat in a supercell of few atoms.

    Wave vectors are those of the phonon supercell, where frequencies are not interpolated, and all with denominators of
    at most 4. Of equal frequencies the smallest supercell wins.

    Parameters
    ----------
    result : PhononResult
        Phonons of an unstable crystal.
    max_atoms : int
        Most atoms in the supercell of the mode.

    Raises
    ------
    PhononError
        If no mode within the limit is softer than the tolerance of the phonons.
    """
    if max_atoms < 1:
        raise ValueError(f"max_atoms is {max_atoms}; it must be at least 1")
    sizes = _wave_vectors(result, max_atoms // len(result.atoms))
    found = []
    for qpoint, size in sizes.items():
        frequency = float(result.phonon.run_qpoints([[float(x) for x in qpoint]]).frequencies[0][0])
        found.append((round(frequency, 4), size, qpoint))
    lowest, size, chosen = min(found, default=(0.0, 1, ()))
    if lowest >= -result.tolerance:
        raise PhononError(
            f"no mode of {result.atoms.symbols} below {-result.tolerance:g} THz repeats in {max_atoms} atoms (lowest "
            f"{lowest:.2f} THz, on the mesh {result.min_frequency:.2f} THz); raise max_atoms"
        )
    return _standing_wave(result, np.array([float(x) for x in chosen]), size)


def displace(mode: SoftMode, calc: BaseCalculator, *, rng: np.random.Generator, rattle: float = 0.01) -> Atoms:
    """The crystal moved along a soft mode to where its energy is lowest, ready for relaxation.

    The energy is computed to both sides at a few lengths from 0.01 to 0.8 Å, until it rises. Small random
    displacements break the symmetry that is left, so that a relaxation can leave a saddle.

    Parameters
    ----------
    mode : SoftMode
        From :func:`softest_mode`.
    calc : Calculator
        The one that the phonons come from.
    rng : np.random.Generator
        Of the random displacements.
    rattle : float
        Their standard deviation, Å.

    Returns
    -------
    Atoms
        The displaced supercell.

    Raises
    ------
    PhononError
        If the energy does not fall along the mode.
    CalculationFailed
        If the calculator fails or an energy is not finite.
    """
    if not (np.isfinite(rattle) and rattle >= 0):
        raise ValueError(f"rattle is {rattle}; it must be finite and not negative, in Å")
    direction = mode.displacements / np.linalg.norm(mode.displacements, axis=1).max()
    start = _energy(mode.atoms, calc)
    lowest, length = min(_descend(mode.atoms, direction, calc, start, sign) for sign in (1.0, -1.0))
    if lowest >= start:
        raise PhononError(
            f"the energy of {mode.atoms.symbols} does not fall within {LENGTHS[0]:g} Å along its mode of "
            f"{mode.frequency:.2f} THz; compute phonons with a larger min_length"
        )
    return _moved(mode.atoms, length * direction + rng.normal(scale=rattle, size=direction.shape))


def _descend(
    atoms: Atoms, direction: np.ndarray, calc: BaseCalculator, start: float, sign: float
) -> tuple[float, float]:
    """Lowest energy and its signed length before the energy rises to one side, eV and Å."""
    lowest, best = start, 0.0
    for length in LENGTHS:
        energy = _energy(_moved(atoms, sign * length * direction), calc)
        if energy >= lowest:
            break
        lowest, best = energy, sign * length
    return lowest, best


def _wave_vectors(result: PhononResult, max_size: int) -> dict[tuple[Fraction, ...], int]:
    """Wave vectors in [0, 1) with their denominators, which are the cells that they repeat in."""
    n_cells = result.n_supercell_atoms // len(result.atoms)
    exact = get_commensurate_points(result.supercell_matrix.T)
    points = {tuple(Fraction(round(x * n_cells), n_cells) % 1 for x in point) for point in exact}
    for denominator in range(1, LARGEST_DENOMINATOR + 1):
        steps = [Fraction(numerator, denominator) for numerator in range(denominator)]
        points.update(product(steps, repeat=3))
    sizes = {point: lcm(*(x.denominator for x in point)) for point in points}
    return {point: size for point, size in sorted(sizes.items()) if size <= max_size}


def _standing_wave(result: PhononResult, qpoint: np.ndarray, size: int) -> SoftMode:
    """The lowest mode at a wave vector; its largest component is real."""
    matrix = commensurate_supercell(result.atoms, qpoint, size)
    wave = result.phonon.run_modulations(matrix.T, [[qpoint, 0, 1.0, 0.0]])
    supercell = wave.supercell
    atoms = Atoms(supercell.symbols, scaled_positions=supercell.scaled_positions, cell=supercell.cell, pbc=True)
    displacements = np.array(wave.modulations[0].real)
    displacements /= np.sqrt((supercell.masses[:, None] * displacements**2).sum())
    return SoftMode(qpoint, float(wave.frequencies[0]), matrix, atoms, displacements)


def _moved(atoms: Atoms, displacements: np.ndarray) -> Atoms:
    moved = atoms.copy()
    moved.positions += displacements
    return moved


def _energy(atoms: Atoms, calc: BaseCalculator) -> float:
    work = atoms.copy()
    work.calc = calc
    energy = float(work.get_potential_energy())
    if not np.isfinite(energy):
        raise CalculationFailed(f"calculator returned a non-finite energy for {atoms.symbols}")
    return energy
