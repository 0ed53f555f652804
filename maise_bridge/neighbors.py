"""Periodic neighbour lists of a batch of structures: bonds, stored once, and the triangles they form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from ase import Atoms

from maise_bridge import kernels

_MOST_CANDIDATES = 10_000_000  # distances a direct search may compute before vesin's cell list takes over


@dataclass(frozen=True, eq=False)
class Topology:
    """Which atoms are bonded, each bond once: from the lower to the higher of two atom images.

    Images are ordered by lattice translation, then by number. Bonds are sorted by `centre`, then by the image that they
    lead to. Atoms of all structures are numbered through, structure after structure.

    Attributes
    ----------
    structure : ndarray, shape (n_atoms,)
        Number of the structure an atom belongs to.
    centre, neighbour : ndarray, shape (n_bonds,)
        Atoms i and j of each bond.
    shift : ndarray, shape (n_bonds, 3)
        Lattice translation of j in units of the cell vectors, integers.
    """

    structure: np.ndarray
    centre: np.ndarray
    neighbour: np.ndarray
    shift: np.ndarray

    @cached_property
    def triangles(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Triangles of bonds ij, ik and jk: `starts` (n_bonds + 1,) of those of each ij, their `ik` and `jk`."""
        first, keys, offsets = self._order
        starts = np.empty(len(self.centre) + 1, dtype=np.int64)
        room = 16 + int(0.4 * len(keys) ** 2 / len(self.structure))  # a bit more than crystals usually have
        while True:
            second, third = np.empty((2, room), dtype=np.int32)
            n_found = kernels.find_triangles(first, self.neighbour, keys, offsets, second, third, starts)
            if n_found <= room:
                return starts, second[:n_found].copy(), third[:n_found].copy()
            room = n_found

    @cached_property
    def _order(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First bond of each atom (n_atoms + 1,); keys and offsets (n_bonds,) for :func:`kernels.find_triangles`."""
        n_atoms = len(self.structure)
        first = np.searchsorted(self.centre, np.arange(n_atoms + 1))
        offsets = _translation_keys(self.shift) * n_atoms
        return first, offsets + self.neighbour, offsets

    @cached_property
    def both_ways(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centre, neighbour and shift (as floats) of every bond in both directions, sorted by centre."""
        centre = np.concatenate([self.centre, self.neighbour])
        order = np.argsort(centre, kind="stable")
        neighbour = np.concatenate([self.neighbour, self.centre])[order]
        return centre[order], neighbour, np.concatenate([self.shift, -self.shift])[order].astype(float)


@dataclass(frozen=True, eq=False)
class NeighborList:
    """Bonds i -> j + shift of some structures shorter than a cutoff, images of i itself included.

    The attributes `centre`, `neighbour`, `shift` and `vectors` list every bond in both directions, sorted by centre.

    Attributes
    ----------
    topology : Topology
        The bonds, each once.
    positions : ndarray, shape (n_atoms, 3)
        Å.
    cells : ndarray, shape (n_structures, 3, 3)
        Å.
    cutoff : float
        Longest bond searched for; Å.
    """

    topology: Topology
    positions: np.ndarray
    cells: np.ndarray
    cutoff: float

    @property
    def n_atoms(self) -> int:
        """Atoms in the whole batch."""
        return len(self.positions)

    @property
    def structure(self) -> np.ndarray:
        """Number of the structure an atom belongs to, (n_atoms,)."""
        return self.topology.structure

    @property
    def centre(self) -> np.ndarray:
        """Atom i of each bond, (n_bonds,)."""
        return self.topology.both_ways[0]

    @property
    def neighbour(self) -> np.ndarray:
        """Atom j of each bond, (n_bonds,)."""
        return self.topology.both_ways[1]

    @property
    def shift(self) -> np.ndarray:
        """Lattice translation of j in units of the cell vectors (whole numbers, as floats), (n_bonds, 3)."""
        return self.topology.both_ways[2]

    @cached_property
    def vectors(self) -> np.ndarray:
        """x_j + shift @ cell - x_i, (n_bonds, 3); Å."""
        centre, neighbour, shift = self.topology.both_ways
        vectors = self.positions.take(neighbour, axis=0)
        vectors -= self.positions.take(centre, axis=0)
        vectors += np.einsum("bi,bij->bj", shift, self.cells[self.structure[centre]])
        return vectors

    @cached_property
    def measured(self) -> tuple[np.ndarray, np.ndarray]:
        """Vectors (n, 3) and squared lengths (n,) of the n bonds of `topology`; Å, Å²."""
        bonds = self.topology
        vectors, squares = np.empty((len(bonds.centre), 3)), np.empty(len(bonds.centre))
        kernels.bond_vectors(
            self.positions, self.cells, bonds.structure, bonds.centre, bonds.neighbour, bonds.shift, vectors, squares
        )
        return vectors, squares

    def moved(self, positions: np.ndarray, cells: np.ndarray) -> NeighborList:
        """Return the same bonds for new positions (n_atoms, 3) and cells (n_structures, 3, 3)."""
        return replace(self, positions=positions, cells=cells)


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
        If a structure is empty, a position or cell is not finite, or a periodic cell vector is missing.
    """
    cells = np.array([_checked_cell(atoms, f"structure {number}") for number, atoms in enumerate(structures)])
    positions, given_cells = geometry(structures)
    sizes = np.array([len(atoms) for atoms in structures])
    first = np.concatenate([[0], np.cumsum(sizes)])
    structure = np.repeat(np.arange(len(sizes)), sizes)
    reach = _reach(structures, positions, cells, first, cutoff)
    large = sizes.astype(float) ** 2 * np.prod(2.0 * reach + 1, axis=1) > _MOST_CANDIDATES
    reach[large] = -1  # no image at all
    parts = [_direct_search(positions, first, cells, reach, cutoff)]
    parts += [_cell_search(structures[s], cells[s], first[s], cutoff) for s in np.flatnonzero(large).tolist()]
    centre, neighbour, shift = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    if large.any():
        order = np.argsort(centre, kind="stable")
        centre, neighbour, shift = centre[order], neighbour[order], shift[order]
    return NeighborList(Topology(structure, centre, neighbour, shift), positions, given_cells, cutoff)


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


def _checked_cell(atoms: Atoms, label: str) -> np.ndarray:
    """Cell of a structure, with vectors that span space where it is not periodic."""
    cell, pbc = atoms.cell.array, atoms.pbc
    if len(atoms) == 0:
        raise ValueError(f"{label} has no atoms")
    if not (np.isfinite(atoms.positions).all() and np.isfinite(cell).all()):
        raise ValueError(f"{label} ({atoms.get_chemical_formula()}) has a position or cell that is not finite")
    if not pbc.any():
        return np.eye(3)
    lengths = np.linalg.norm(cell, axis=1)
    if np.any(pbc & (lengths < 1e-8)):
        raise ValueError(f"{label} is periodic along a cell vector of length zero; set the cell or pbc=False")
    if not pbc.all():
        _, _, axes = np.linalg.svd(cell[pbc])
        cell = cell.copy()
        cell[~pbc] = axes[pbc.sum() :]
    if abs(np.linalg.det(cell)) < 1e-6 * np.prod(np.linalg.norm(cell, axis=1)):
        raise ValueError(f"{label} has a flat cell (volume {abs(np.linalg.det(cell)):.3g} Å³)")
    return cell


def _reach(
    structures: Sequence[Atoms], positions: np.ndarray, cells: np.ndarray, first: np.ndarray, cutoff: float
) -> np.ndarray:
    """Largest lattice translations that a bond can have, (n_structures, 3)."""
    inverse = np.linalg.inv(cells)
    scaled = np.einsum("ni,nij->nj", positions, np.repeat(inverse, np.diff(first), axis=0))
    spread = np.maximum.reduceat(scaled, first[:-1]) - np.minimum.reduceat(scaled, first[:-1])
    extent = cutoff * np.linalg.norm(inverse, axis=1)  # of the cutoff sphere, in cell vectors
    pbc = np.array([atoms.pbc for atoms in structures])
    return np.where(pbc, np.floor(extent + spread), 0).astype(np.int64)


def _direct_search(
    positions: np.ndarray, first: np.ndarray, cells: np.ndarray, reach: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre, neighbour and shift of the bonds of small structures."""
    room = 0
    while True:
        centre, neighbour = np.empty((2, room), dtype=np.int64)
        shift = np.empty((room, 3), dtype=np.int64)
        n_found = kernels.find_bonds(positions, first, cells, reach, cutoff * cutoff, centre, neighbour, shift)
        if n_found == room:
            return centre, neighbour, shift
        room = n_found


def _cell_search(
    atoms: Atoms, cell: np.ndarray, first: int, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre, neighbour and shift of the bonds of one large structure."""
    import vesin  # here, because it loads torch when torch is installed

    finder = vesin.NeighborList(cutoff=cutoff, full_list=True)
    found = finder.compute(points=atoms.positions, box=cell, periodic=atoms.pbc, quantities="ijS")
    centre, neighbour, shift = (np.asarray(array).astype(np.int64) for array in found)
    keys = _translation_keys(shift)
    upper = (keys > 0) | ((keys == 0) & (neighbour > centre))
    centre, neighbour, shift, keys = centre[upper], neighbour[upper], shift[upper], keys[upper]
    order = np.lexsort((neighbour, keys, centre))
    return first + centre[order], first + neighbour[order], shift[order]


def _translation_keys(shift: np.ndarray) -> np.ndarray:
    """Numbers (n,) in the lexical order of translations (n, 3), which add up as the translations do."""
    base = 4 * int(np.abs(shift).max(initial=0)) + 3
    return (shift[:, 0] * base + shift[:, 1]) * base + shift[:, 2]
