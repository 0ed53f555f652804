"""Periodic neighbour lists of a batch of structures: bonds, stored once, and the triangles they form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from ase import Atoms

from maise_bridge import kernels
from maise_bridge.topology import Topology, offsets, translation_keys

_MOST_CANDIDATES = 10_000_000  # distances a direct search may compute before vesin's cell list takes over


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
    return _search(structures, range(len(structures)), cutoff)


def _search(structures: Sequence[Atoms], names: Iterable[int], cutoff: float) -> NeighborList:
    """Find neighbours; errors call the structures by the numbers in `names`."""
    cells = np.array([_checked_cell(atoms, f"structure {name}") for name, atoms in zip(names, structures, strict=True)])
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


@dataclass(frozen=True, eq=False)
class _Entry:
    """A structure as it was when its bonds were searched, and the object itself to know it again."""

    atoms: Atoms
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    topology: Topology

    def could_be(self, atoms: Atoms) -> bool:
        """Whether the structure has as many atoms and the same periodicity."""
        return len(self.positions) == len(atoms) and np.array_equal(self.pbc, atoms.pbc)


class NeighborListCache:
    """Neighbour lists that are searched anew only for structures whose atoms or cells have moved too far.

    A structure is known again as the same object, or else by its place in the batch; so the others in the batch may
    come and go. A list made with `cutoff` + `skin` is valid as long as no pair that is now within the cutoff can have
    been outside of it. With F the deformation of the cell and u the largest displacement that does not follow the cell,
    a pair at distance d had at most sigma_max(F^-1) (d + 2 u).

    Parameters
    ----------
    cutoff, skin : float
        Å.

    Attributes
    ----------
    n_searches : int
        Structures searched so far.
    """

    def __init__(self, cutoff: float, skin: float = 0.4) -> None:
        self.cutoff, self.skin = cutoff, skin
        self.n_searches = 0
        self._entries: list[_Entry] = []
        self._topology: Topology | None = None

    def get(self, structures: Sequence[Atoms]) -> NeighborList:
        """Return a list that holds every bond within `cutoff`, and some longer ones."""
        positions, cells = geometry(structures)
        first = offsets([len(atoms) for atoms in structures])
        entries = self._follow(structures)
        numbers = np.flatnonzero(self._stale(entries, positions, cells, first)).tolist()
        if numbers:
            chosen = [structures[number] for number in numbers]
            found = _search(chosen, numbers, self.cutoff + self.skin).topology.split()
            self.n_searches += len(numbers)
            for number, atoms, topology in zip(numbers, chosen, found, strict=True):
                place = slice(first[number], first[number] + len(atoms))
                entries[number] = _Entry(atoms, positions[place], cells[number], atoms.pbc.copy(), topology)
        current = [entry for entry in entries if entry is not None]
        if self._topology is None or list(map(id, current)) != list(map(id, self._entries)):
            self._topology = Topology.join([entry.topology for entry in current])
        self._entries = current
        return NeighborList(self._topology, positions, cells, self.cutoff + self.skin)

    def _follow(self, structures: Sequence[Atoms]) -> list[_Entry | None]:
        """What is remembered of each structure."""
        known = {id(entry.atoms): entry for entry in self._entries}
        entries = [known.get(id(atoms)) for atoms in structures]
        for number, (atoms, entry) in enumerate(zip(structures, entries, strict=True)):
            if entry is None and number < len(self._entries):
                entries[number] = entry = self._entries[number]
            if entry is not None and not entry.could_be(atoms):
                entries[number] = None
        return entries

    def _stale(
        self, entries: Sequence[_Entry | None], positions: np.ndarray, cells: np.ndarray, first: np.ndarray
    ) -> np.ndarray:
        """Which structures must be searched, (n_structures,)."""
        sizes = np.diff(first, append=len(positions))
        stale = np.array([entry is None for entry in entries]) | (sizes == 0)
        if stale.all():
            return stale
        known = [entry for entry, new in zip(entries, stale.tolist(), strict=True) if entry is not None and not new]
        owner = np.repeat(np.arange(len(known)), sizes[~stale])
        positions, cells = positions[np.repeat(~stale, sizes)], cells[~stale]
        before, cells_before = np.concatenate([entry.positions for entry in known]), np.array([e.cell for e in known])
        deformations, comparable = _deformations(cells_before, cells)
        displacements = positions - np.einsum("ni,nij->nj", before, deformations[owner])
        starts = offsets(sizes[~stale].tolist())
        largest = np.sqrt(np.maximum.reduceat((displacements * displacements).sum(1), starts))
        stretch = 1.0 / np.linalg.svd(deformations, compute_uv=False).min(axis=1)
        # a comparison with NaN is false, and the search says what is wrong
        stale[~stale] = ~(comparable & (stretch * (self.cutoff + 2.0 * largest) <= self.cutoff + self.skin))
        return stale


def _deformations(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matrices D with before @ D = after (n, 3, 3), the identity where there is none; and where there is one, (n,)."""
    same = (before == after).all(axis=(1, 2))
    regular = np.isfinite(after).all(axis=(1, 2))
    regular[regular] = (np.abs(np.linalg.det(after[regular])) > 1e-6) & (np.abs(np.linalg.det(before[regular])) > 1e-6)
    changed = regular & ~same
    out = np.tile(np.eye(3), (len(before), 1, 1))
    out[changed] = np.linalg.solve(before[changed], after[changed])
    return out, same | changed


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
    keys = translation_keys(shift)
    upper = (keys > 0) | ((keys == 0) & (neighbour > centre))
    centre, neighbour, shift, keys = centre[upper], neighbour[upper], shift[upper], keys[upper]
    order = np.lexsort((neighbour, keys, centre))
    return first + centre[order], first + neighbour[order], shift[order]
