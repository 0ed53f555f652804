"""A crystal with what comparisons need of it: distances, bonds, primitive cell; and the cheap invariants among them."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import covalent_radii

from ase_hvae.compare.topology import BOND_WINDOW, shell_sizes, widest_gap
from ase_hvae.errors import StructureError, SymmetryError
from ase_hvae.structures import check_structure, neighbor_pairs
from ase_hvae.symmetry import primitive

N_SHELLS = 7
# Neighbours of every atom whose distances make the fingerprint: 12 + 6 + 24 of fcc, 4 + 12 + 12 + 6 + 12 of diamond.
N_NEIGHBORS = 42
# Atoms of a larger cell may miss a lattice translation by this much (Å) when cells of different size are compared; bond
# topology keeps true superstructures apart.
LOOSE_TOLERANCE = 0.3

CoordinationSequences = tuple[tuple[str, tuple[int, ...], Fraction], ...]


def fingerprint(atoms: Atoms, *, n_neighbors: int = N_NEIGHBORS) -> np.ndarray:
    """Average minimum distances: mean distance of the k-th neighbour, for each element.

    The same for every cell, rotation and mirror image. It is continuous: if no atom moves by more than x, no entry
    changes by more than 2 x. Different crystals may share it.

    Parameters
    ----------
    atoms : Atoms
        Periodic crystal, any cell.
    n_neighbors : int
        Largest k.

    Returns
    -------
    np.ndarray
        In units of the cube root of the volume per atom, ``(n_elements, n_neighbors)``, elements in the order of
        their numbers.

    References
    ----------
    Widdowson et al., MATCH Commun. Math. Comput. Chem. 87, 529 (2022).
    """
    length = volume_per_atom(atoms) ** (1 / 3)
    cutoff = length * (2.0 * n_neighbors * 3 / (4 * np.pi)) ** (1 / 3)  # a ball that holds twice as many on average
    while True:
        first, _, _, distances = neighbor_pairs(atoms, cutoff)
        counts = np.bincount(first, minlength=len(atoms))
        if counts.min() >= n_neighbors:
            break
        cutoff *= 1.2  # crystals with voids
    ordered = distances[np.lexsort((distances, first))]
    starts = np.cumsum(counts) - counts
    nearest = ordered[starts[:, None] + np.arange(n_neighbors)] / length
    return np.array([nearest[atoms.numbers == number].mean(axis=0) for number in np.unique(atoms.numbers)])


def bond_cutoff(*crystals: Atoms) -> tuple[float, float]:
    """Where bonds end: the middle of the widest gap between the neighbour distances of one or more crystals.

    Distances are reduced: divided by the sum of covalent radii and by the shortest reduced distance of the crystals,
    after each crystal is scaled to one volume per atom.

    Returns
    -------
    cutoff, gap : float
        Both in shortest reduced distances; a narrow gap means that bonds are not well defined.
    """
    distances = np.sort(np.concatenate([PreparedCrystal(atoms).reduced_distances for atoms in crystals]))
    return widest_gap(distances / distances[0])


def coordination_sequences(
    atoms: Atoms, *, cutoff: float | None = None, n_shells: int = N_SHELLS
) -> CoordinationSequences:
    """Bond topology: how many k-th neighbours along bonds each kind of atom has.

    Parameters
    ----------
    atoms : Atoms
        Periodic crystal, any cell.
    cutoff : float, optional
        Longest bond as a multiple of the shortest one (for several elements after division by the sums of covalent
        radii); by default the widest gap in the distances decides, see :func:`bond_cutoff`.
    n_shells : int
        Longest path, in bonds.

    Returns
    -------
    tuple of (str, tuple of int, Fraction)
        Element, counts of 1st to ``n_shells``-th neighbours and share of atoms that have them; sorted. The same for
        every choice of cell. Diamond: ``(("Si", (4, 12, 24, 42, 64, 92, 124), 1),)``.

    References
    ----------
    O'Keeffe, Z. Kristallogr. 210, 905 (1995).
    """
    prepared = PreparedCrystal(atoms)
    if cutoff is None:
        distances = np.sort(prepared.reduced_distances)
        cutoff = widest_gap(distances / distances[0])[0]
    return prepared.sequences(cutoff * prepared.reduced_distances.min(), n_shells)


def volume_per_atom(atoms: Atoms) -> float:
    """Volume per atom, Å³."""
    return float(atoms.cell.volume / len(atoms))


class PreparedCrystal:
    """A crystal with what comparisons need of it, computed once and only when asked for.

    Parameters
    ----------
    atoms : Atoms
        Periodic crystal; refused unless finite, right-handed and without coinciding atoms.
    symprec : float
        Tolerance for finding the primitive cell, Å.
    """

    def __init__(self, atoms: Atoms, symprec: float = 0.1) -> None:
        check_structure(atoms, label="structure to compare", min_distance=0.1)
        self.given = atoms
        self.symprec = symprec
        self.volume = volume_per_atom(atoms)
        counts = Counter(atoms.symbols)
        self.composition = {symbol: Fraction(n, len(atoms)) for symbol, n in counts.items()}
        self._sequences: dict[tuple[float, int], CoordinationSequences] = {}

    @cached_property
    def fingerprint(self) -> np.ndarray:
        """Average minimum distances in one row, ``(n_elements N_NEIGHBORS,)``."""
        return fingerprint(self.given).ravel()

    @cached_property
    def atoms(self) -> Atoms:
        """Primitive cell; the cell as given where spglib fails."""
        try:
            return primitive(self.given, symprec=self.symprec)
        except (SymmetryError, StructureError):
            return self.given

    @cached_property
    def structure(self) -> Any:
        """pymatgen's Structure of the Niggli-reduced primitive cell."""
        from pymatgen.core import Lattice, Structure

        atoms = self.atoms
        structure = Structure(Lattice(atoms.cell[:]), list(atoms.symbols), atoms.get_scaled_positions())
        return structure.get_reduced_structure(reduction_algo="niggli")

    @cached_property
    def loose_structure(self) -> Any:
        """``structure`` reduced once more, where atoms may miss a lattice translation by LOOSE_TOLERANCE."""
        smaller = self.structure.get_primitive_structure(tolerance=LOOSE_TOLERANCE)
        return smaller.get_reduced_structure(reduction_algo="niggli")

    @cached_property
    def neighbors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Pairs closer than BOND_WINDOW shortest distances: first, second, shifts and reduced distances."""
        atoms = self.atoms
        radii = covalent_radii[atoms.numbers]
        length = self.volume ** (1 / 3)
        bound = 1.001 * 2 ** (1 / 6) * length  # no packing of spheres is denser than fcc
        first, second, _, distances = neighbor_pairs(atoms, bound)
        shortest = (distances / (radii[first] + radii[second])).min()
        cutoff = BOND_WINDOW * shortest * 2 * radii.max()
        first, second, shifts, distances = neighbor_pairs(atoms, cutoff)
        reduced = distances / (radii[first] + radii[second]) / length
        near = reduced <= BOND_WINDOW * reduced.min()
        return first[near], second[near], shifts[near], reduced[near]

    @property
    def reduced_distances(self) -> np.ndarray:
        """Distances over sums of covalent radii, at unit volume per atom, ``(n_pairs,)``."""
        return self.neighbors[3]

    def sequences(self, longest: float, n_shells: int = N_SHELLS) -> CoordinationSequences:
        """Coordination sequences with bonds up to a reduced distance."""
        first, second, shifts, reduced = self.neighbors
        bonded = reduced <= longest
        key = (int(bonded.sum()), n_shells)  # bonds are nested: their number names the set
        if key not in self._sequences:
            counts = shell_sizes(len(self.atoms), first[bonded], second[bonded], shifts[bonded], n_shells)
            kinds = Counter(zip(self.atoms.symbols, map(tuple, counts.tolist()), strict=True))
            self._sequences[key] = tuple(
                sorted((symbol, row, Fraction(n, len(self.atoms))) for (symbol, row), n in kinds.items())
            )
        return self._sequences[key]


def content(atoms: Atoms) -> tuple[bytes, bytes, bytes, bool]:
    """What makes a structure: numbers, positions, cell and whether it is periodic; hashable and ordered."""
    numbers, *rows = (
        np.ascontiguousarray(array).tobytes() for array in (atoms.numbers, atoms.positions, atoms.cell[:])
    )
    return numbers, rows[0], rows[1], bool(atoms.pbc.all())


def remember(atoms: Atoms, symprec: float) -> PreparedCrystal:
    """The same prepared crystal for the same content: known crystals are asked for again and again."""
    return _remembered(content(atoms), symprec)


@lru_cache(maxsize=256)
def _remembered(key: tuple[bytes, bytes, bytes, bool], symprec: float) -> PreparedCrystal:
    numbers, positions, cell, periodic = key
    rows = np.frombuffer(positions).reshape(-1, 3)
    atoms = Atoms(np.frombuffer(numbers, dtype=int), rows, cell=np.frombuffer(cell).reshape(3, 3), pbc=periodic)
    return PreparedCrystal(atoms, symprec)
