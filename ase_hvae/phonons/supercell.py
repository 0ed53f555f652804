"""Sublattices of a crystal: the supercell for its force constants, and that of one of its modes."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.geometry import minkowski_reduce

from ase_hvae.errors import PhononError
from ase_hvae.symmetry import rotations

MAX_SUPERCELL_ATOMS = 2000


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
        forms = hermite_forms(size)
        for turn in turns:
            forms = forms[integral(forms @ turn @ np.linalg.inv(forms)).all(axis=(1, 2))]
        held = np.any(integral(short @ np.linalg.inv(forms)).all(axis=2), axis=1)  # holds a short vector
        forms = forms[~held]
        if len(forms):
            return most_compact(forms, reduced) @ operation
    raise PhononError(
        f"a supercell of {atoms.symbols} with images {min_length:g} Å apart needs more than "
        f"{MAX_SUPERCELL_ATOMS} atoms; lower min_length"
    )


def commensurate_supercell(atoms: Atoms, qpoint: np.ndarray, size: int) -> np.ndarray:
    """Most compact supercell of ``size`` cells in which a wave of rational wave vector repeats.

    Parameters
    ----------
    atoms : Atoms
        Primitive cell.
    qpoint : np.ndarray
        In units of the reciprocal vectors of ``atoms``, ``(3,)``.
    size : int
        Least common denominator of ``qpoint``; then there is one sublattice only.

    Returns
    -------
    np.ndarray
        Integer rows in units of the vectors of ``atoms``, ``(3, 3)``, reduced and right-handed.
    """
    forms = hermite_forms(size)
    held = forms[integral(forms @ qpoint).all(axis=1)]
    if len(held) == 0:
        raise ValueError(f"wave vector {qpoint} does not repeat in {size} cells")
    return most_compact(held, atoms.cell[:])


def _short_vectors(cell: np.ndarray, length: float) -> np.ndarray:
    """Nonzero lattice vectors shorter than ``length``, one of each pair +-v, as integer rows."""
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    limits = np.floor(length / heights).astype(int)
    grid = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in limits), indexing="ij"), axis=-1).reshape(-1, 3)
    grid = grid[len(grid) // 2 + 1 :]
    return grid[np.linalg.norm(grid @ cell, axis=1) < length]


def hermite_forms(size: int) -> np.ndarray:
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


def integral(values: np.ndarray) -> np.ndarray:
    """Which values are integers; they are fractions with denominators up to the size of a supercell."""
    return np.abs(values - np.round(values)) < 1e-6


def most_compact(forms: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """The sublattice with the smallest sum of squared reduced vectors, as right-handed reduced integer rows."""
    best, best_score = np.eye(3, dtype=int), np.inf
    for form in forms:
        reduced, operation = minkowski_reduce(form @ cell)
        score = float((reduced**2).sum())
        if score < best_score - 1e-6:
            rows = np.round(operation @ form).astype(int)
            best, best_score = rows, score
    return best if np.linalg.det(best @ cell) > 0 else -best
