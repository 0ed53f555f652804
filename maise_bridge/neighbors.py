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


class NeighborListCache:
    """Neighbour lists that are searched anew only when atoms or cells have moved too far.

    A list made with `cutoff` + `skin` is valid as long as no pair that is now within the cutoff can have been
    outside of it. With F the deformation of the cell and u the largest displacement that does not follow the cell,
    a pair at distance d had at most sigma_max(F^-1) (d + 2 u).

    Parameters
    ----------
    cutoff, skin : float
        Å.
    """

    def __init__(self, cutoff: float, skin: float = 0.4) -> None:
        self.cutoff, self.skin = cutoff, skin
        self.n_searches = 0
        self._list: NeighborList | None = None
        self._pbc = np.empty((0, 3), dtype=bool)
        self._positions = self._cells = np.empty(0)

    def get(self, structures: Sequence[Atoms]) -> NeighborList:
        """Return a list that holds every bond within `cutoff`, and some longer ones."""
        positions, cells = geometry(structures)
        pbc = np.array([atoms.pbc for atoms in structures])
        if self._list is not None and self._valid(structures, positions, cells, pbc):
            return self._list.moved(positions, cells)
        self._list = neighbor_list(structures, self.cutoff + self.skin)
        self._positions, self._cells, self._pbc = positions, cells, pbc
        self.n_searches += 1
        return self._list

    def _valid(self, structures: Sequence[Atoms], positions: np.ndarray, cells: np.ndarray, pbc: np.ndarray) -> bool:
        assert self._list is not None
        structure = np.repeat(np.arange(len(structures)), [len(atoms) for atoms in structures])
        if not (np.array_equal(pbc, self._pbc) and np.array_equal(structure, self._list.structure)):
            return False
        if not (np.isfinite(positions).all() and np.isfinite(cells).all()):
            return False  # the search says what is wrong
        if np.array_equal(cells, self._cells):
            displacement, stretch = positions - self._positions, 1.0
        else:
            if np.any(np.abs(np.linalg.det(cells)) < 1e-6) or np.any(np.abs(np.linalg.det(self._cells)) < 1e-6):
                return False
            deformation = np.linalg.solve(self._cells, cells)
            followed = np.einsum("ni,nij->nj", self._positions, deformation[structure])
            displacement = positions - followed
            stretch = float(1.0 / np.linalg.svd(deformation, compute_uv=False).min())
        largest = float(np.sqrt((displacement * displacement).sum(1).max()))
        return stretch * (self.cutoff + 2.0 * largest) <= self.cutoff + self.skin


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
