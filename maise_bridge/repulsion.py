"""Short-range pair repulsion that MAISE adds to every neural network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase.data import atomic_numbers

PREFACTOR = 100.0  # eV, MAISE's default (UREP)
_RADII = {
    "Li": 1.040,
    "Be": 0.773,
    "B": 0.584,
    "C": 0.499,
    "Na": 1.266,
    "Mg": 1.114,
    "K": 1.610,
    "Ca": 1.366,
    "Sc": 1.123,
    "Cu": 0.895,
    "Pd": 0.979,
    "Ag": 1.030,
    "Pt": 0.984,
}


def core_radius(symbol: str) -> float:
    """Radius of the repulsive core of an element; Å. Two atoms repel when closer than the sum of their radii."""
    if symbol not in atomic_numbers:
        raise ValueError(f"{symbol!r} is no chemical element")
    return _RADII.get(symbol, 1.0)


def core_ranges(species: Sequence[str]) -> np.ndarray:
    """Distance below which each pair of species repels, (n_species, n_species); Å."""
    radii = np.array([core_radius(symbol) for symbol in species])
    return radii[:, None] + radii


def pair_repulsion(lengths: np.ndarray, ranges: np.ndarray, prefactor: float) -> tuple[np.ndarray, np.ndarray]:
    """Energy of one end of each bond, U/2 (1 + cos(pi r/R)) R/r below R, and its derivative by r.

    Parameters
    ----------
    lengths, ranges : ndarray, shape (n_bonds,)
        r and R; Å.
    prefactor : float
        U; eV.

    Returns
    -------
    energy, slope : ndarray, shape (n_bonds,)
        eV and eV/Å.
    """
    angle = np.pi * lengths / ranges
    ratio = ranges / lengths
    inside = (lengths < ranges) * prefactor
    envelope = 0.5 * (1.0 + np.cos(angle))
    slope = -(0.5 * np.pi * np.sin(angle) + envelope * ratio) / lengths
    return envelope * ratio * inside, slope * inside
