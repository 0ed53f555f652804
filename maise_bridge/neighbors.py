"""Periodic neighbour lists of a batch of structures, in one flat table of bonds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import vesin
from ase import Atoms

_MOST_CANDIDATES = 300_000  # distances a direct search may compute before vesin's cell list takes over


@dataclass(frozen=True, eq=False)
class NeighborList:
    """Every bond i -> j + shift shorter than the cutoff, both directions, images of i itself included.

    Bonds are sorted by `centre`; atoms of all structures are numbered through, structure after structure.

    Attributes
    ----------
    structure : ndarray, shape (n_atoms,)
        Number of the structure an atom belongs to.
    centre, neighbour : ndarray, shape (n_bonds,)
        Atoms i and j of each bond.
    shift : ndarray, shape (n_bonds, 3)
        Lattice translation of j in units of the cell vectors (whole numbers, as floats).
    vectors : ndarray, shape (n_bonds, 3)
        x_j + shift @ cell - x_i; Å.
    cutoff : float
        Longest bond searched for; Å.
    """

    structure: np.ndarray
    centre: np.ndarray
    neighbour: np.ndarray
    shift: np.ndarray
    vectors: np.ndarray
    cutoff: float

    @property
    def n_atoms(self) -> int:
        """Atoms in the whole batch."""
        return len(self.structure)

    def moved(self, positions: np.ndarray, cells: np.ndarray) -> NeighborList:
        """Return the same bonds with the vectors of new positions (n_atoms, 3) and cells (n_structures, 3, 3)."""
        return replace(self, vectors=self._vectors(positions, cells))

    def _vectors(self, positions: np.ndarray, cells: np.ndarray) -> np.ndarray:
        vectors = positions.take(self.neighbour, axis=0)
        vectors -= positions.take(self.centre, axis=0)
        if len(cells) == 1:
            vectors += self.shift @ cells[0]
        else:
            vectors += np.einsum("bi,bij->bj", self.shift, cells[self.structure[self.centre]])
        return vectors


def neighbor_list(structures: Sequence[Atoms], cutoff: float) -> NeighborList:
    """Find all neighbours of all atoms of some structures.

    Parameters
    ----------
    structures : sequence of Atoms
        Any mixture of periodic, partly periodic and isolated structures.
    cutoff : float
        Å; may exceed the cell.

    Returns
    -------
    NeighborList

    Raises
    ------
    ValueError
        If a position or cell is not finite, or a periodic cell vector is missing.
    """
    sizes = [len(atoms) for atoms in structures]
    parts = [_bonds(atoms, cutoff, f"structure {number}") for number, atoms in enumerate(structures)]
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    bonds = NeighborList(
        structure=np.repeat(np.arange(len(sizes)), sizes),
        centre=np.concatenate([part[0] + offset for part, offset in zip(parts, offsets, strict=True)]),
        neighbour=np.concatenate([part[1] + offset for part, offset in zip(parts, offsets, strict=True)]),
        shift=np.concatenate([part[2] for part in parts]),
        vectors=np.empty((0, 3)),
        cutoff=cutoff,
    )
    return bonds.moved(*geometry(structures))


def geometry(structures: Sequence[Atoms]) -> tuple[np.ndarray, np.ndarray]:
    """Return positions (n_atoms, 3) and cells (n_structures, 3, 3) of a batch; Å."""
    positions = np.concatenate([atoms.positions for atoms in structures])
    return positions, np.array([atoms.cell.array for atoms in structures])


def _bonds(atoms: Atoms, cutoff: float, label: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    cell, pbc = atoms.cell.array, atoms.pbc
    if len(atoms) == 0:
        raise ValueError(f"{label} has no atoms")
    if not (np.isfinite(atoms.positions).all() and np.isfinite(cell).all()):
        raise ValueError(f"{label} ({atoms.get_chemical_formula()}) has a position or cell that is not finite")
    cell = _completed(cell, pbc, label)
    inverse = np.linalg.inv(cell)
    scaled = atoms.positions @ inverse
    extent = cutoff * np.linalg.norm(inverse, axis=0)  # of the cutoff sphere, in cell vectors
    reach = np.where(pbc, np.floor(extent + np.ptp(scaled, axis=0)), 0).astype(int)
    candidates = len(atoms) ** 2 * float(np.prod(2.0 * reach + 1))
    if candidates <= _MOST_CANDIDATES:
        return _direct_search(atoms.positions, cell, reach, cutoff)
    found = vesin.NeighborList(cutoff=cutoff, full_list=True).compute(
        points=atoms.positions, box=cell, periodic=pbc, quantities="ijS"
    )
    order = np.argsort(found[0], kind="stable")
    return found[0].astype(np.int64)[order], found[1].astype(np.int64)[order], found[2].astype(float)[order]


def _completed(cell: np.ndarray, pbc: np.ndarray, label: str) -> np.ndarray:
    """Replace cell vectors of directions without periodicity, so that they span space."""
    lengths = np.linalg.norm(cell, axis=1)
    if np.any(pbc & (lengths < 1e-8)):
        raise ValueError(f"{label} is periodic along a cell vector of length zero; set the cell or pbc=False")
    if not pbc.any():
        return np.eye(3)
    if not pbc.all():
        _, _, axes = np.linalg.svd(cell[pbc])
        cell = cell.copy()
        cell[~pbc] = axes[pbc.sum() :]
    if abs(np.linalg.det(cell)) < 1e-6 * np.prod(np.linalg.norm(cell, axis=1)):
        raise ValueError(f"{label} has a flat cell (volume {abs(np.linalg.det(cell)):.3g} Å³)")
    return cell


def _direct_search(
    positions: np.ndarray, cell: np.ndarray, reach: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    axes = [np.arange(-n, n + 1.0) for n in reach]
    shifts = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    images = (positions[:, None, :] + shifts @ cell).reshape(-1, 3)  # atom-major
    squares = np.zeros((len(positions), len(images)))
    for axis in range(3):
        difference = images[:, axis] - positions[:, axis, None]
        squares += np.multiply(difference, difference, out=difference)
    near = squares < cutoff * cutoff
    itself = np.arange(len(positions))
    near[itself, itself * len(shifts) + len(shifts) // 2] = False
    found = np.flatnonzero(near)
    centre, image = found // len(images), found % len(images)
    return centre, image // len(shifts), shifts[image % len(shifts)]
