"""Crystals recognized by their distances, in any cell, orientation and order of atoms."""

from __future__ import annotations

from bisect import bisect_left, insort
from operator import itemgetter

import numpy as np
from ase import Atoms

from maise_bridge.neighbors import neighbor_list

RANGE = 6.0  # Å, of fingerprints
_SMEARING = 0.1  # Å
_Key = tuple[int, int]


class Fingerprints:
    """Crystals seen so far, each with a number.

    Parameters
    ----------
    tolerance : float
        Largest difference between fingerprints of one crystal, relative to their largest value. Of displacements of
        all kinds the smallest effect is of second order, as for an atom that leaves a centre of inversion.
    """

    def __init__(self, tolerance: float = 2e-4) -> None:
        self.tolerance = tolerance
        self._seen: dict[str, list[tuple[float, int, np.ndarray]]] = {}
        self._n_seen = 0

    def __len__(self) -> int:
        return self._n_seen

    def add(self, atoms: Atoms) -> bool:
        """Remember a crystal; False if it was seen before."""
        n_before = len(self)
        return self.number(atoms) == n_before

    def number(self, atoms: Atoms) -> int:
        """Return the number of a crystal: that of the same one if it was seen, or the next one, from 0."""
        seen = self._seen.setdefault(reduced_formula(atoms), [])
        vector = _fingerprint(atoms)
        density, largest = float(vector[0]), float(vector.max())
        margin = 2 * self.tolerance * largest  # more than the vectors of one crystal can differ by
        for other_density, number, other in seen[bisect_left(seen, density - margin, key=itemgetter(0)) :]:
            if other_density > density + margin:
                break
            if np.abs(vector - other).max() < self.tolerance * max(largest, other.max()):
                return number
        insort(seen, (density, self._n_seen, vector), key=itemgetter(0))
        self._n_seen += 1
        return self._n_seen - 1


def reduced_formula(atoms: Atoms) -> str:
    """Reduced formula, the same for any order of the atoms."""
    return atoms.symbols.formula.reduce()[0].format("metal")


def pair_distances(atoms: Atoms, cutoff: float) -> dict[_Key, np.ndarray]:
    """Distances up to a cutoff (Å) by atomic numbers, smaller first, each pair of atoms once."""
    neighbors = neighbor_list([atoms], cutoff)
    lengths = np.sqrt(neighbors.measured[1])
    bonds = neighbors.topology
    pairs = np.sort(atoms.numbers[np.stack([bonds.centre, bonds.neighbour], axis=1)], axis=1)
    within = lengths < cutoff
    kinds = [tuple(kind) for kind in np.unique(pairs[within], axis=0).tolist()]
    return {(kind[0], kind[1]): lengths[within & (pairs == kind).all(axis=1)] for kind in kinds}


def _fingerprint(atoms: Atoms) -> np.ndarray:
    """Density, and smeared counts of distances per atom for all pairs of species; smooth in the positions."""
    grid = np.arange(0.0, RANGE, _SMEARING)
    kinds = np.unique(atoms.numbers)
    distances = pair_distances(atoms, RANGE)
    rows = [np.full(1, len(atoms) / atoms.get_volume())]
    for first in kinds:
        for second in kinds[kinds >= first]:
            lengths = distances.get((int(first), int(second)), np.empty(0))
            weights = 0.5 * (1.0 + np.cos(np.pi * lengths / RANGE)) / len(atoms)
            rows.append(weights @ np.exp(-0.5 * ((lengths[:, None] - grid) / _SMEARING) ** 2))
    return np.concatenate(rows)
