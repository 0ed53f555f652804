"""Compare crystals: by RDF (similar?) and by bond topology and geometry (the same crystal?).

RDFs are not injective and StructureMatcher at its usual tolerances merges crystals whose atoms lie close but are bonded
differently (bc8, r8, bt8). So two crystals are called the same only if composition, volume per atom, number of atoms in
the primitive cell, coordination sequences and then geometry agree, in this order of cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import covalent_radii

from ase_hvae.errors import StructureError, SymmetryError
from ase_hvae.structures import check_structure, neighbor_pairs
from ase_hvae.symmetry import primitive

# Bonds end in the widest gap between neighbour distances up to this multiple of the shortest one. Tetrahedral second
# neighbours lie at 1.63, those of fcc at 1.41.
BOND_WINDOW = 1.8
# A gap narrower than this (in shortest distances) does not separate bonds from non-bonds safely.
MIN_BOND_GAP = 0.04
N_SHELLS = 7
# Atoms of a larger cell may miss a lattice translation by this much (Å) when cells of different size are compared; bond
# topology keeps true superstructures apart.
LOOSE_TOLERANCE = 0.3

CoordinationSequences = tuple[tuple[str, tuple[int, ...], Fraction], ...]


def pearson_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of two RDFs on the same grid, between -1 and 1; channels of several species are joined.

    Raises
    ------
    ValueError
        If the shapes differ, a value is not finite or an RDF is constant.
    """
    first, second = _standardised(a), _standardised(b)
    if first.shape != second.shape:
        raise ValueError(f"RDFs have {first.size} and {second.size} values; compare them on the same grid")
    return float(np.clip(first @ second, -1.0, 1.0))


def null_correlation(rdfs: Sequence[np.ndarray] | np.ndarray) -> float:
    """Mean Pearson correlation over all pairs of different crystals: what a correlation must exceed to mean anything.

    Parameters
    ----------
    rdfs : array
        RDFs of different crystals under the same settings, ``(n_crystals, ...)``, at least two.
    """
    rows = np.array([_standardised(rdf) for rdf in rdfs])
    if len(rows) < 2:
        raise ValueError(f"a null correlation needs at least two RDFs, not {len(rows)}")
    n = len(rows)
    return float(((rows @ rows.T).sum() - n) / (n * (n - 1)))


def nearest(rdf: np.ndarray, rdfs: Sequence[np.ndarray] | np.ndarray) -> tuple[int, float]:
    """Index of the RDF most correlated with ``rdf``, and that Pearson correlation."""
    if len(rdfs) == 0:
        raise ValueError("no RDFs to choose the nearest from")
    correlations = [pearson_correlation(rdf, other) for other in rdfs]
    best = int(np.argmax(correlations))
    return best, correlations[best]


def bond_cutoff(*crystals: Atoms) -> tuple[float, float]:
    """Where bonds end: the middle of the widest gap between the neighbour distances of one or more crystals.

    Distances are reduced: divided by the sum of covalent radii and by the shortest reduced distance of the crystals,
    after each crystal is scaled to one volume per atom.

    Returns
    -------
    cutoff, gap : float
        Both in shortest reduced distances; a narrow gap means that bonds are not well defined.
    """
    distances = np.sort(np.concatenate([_Prepared(atoms).reduced_distances for atoms in crystals]))
    return _widest_gap(distances / distances[0])


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
    prepared = _Prepared(atoms)
    if cutoff is None:
        distances = np.sort(prepared.reduced_distances)
        cutoff = _widest_gap(distances / distances[0])[0]
    return prepared.sequences(cutoff * prepared.reduced_distances.min(), n_shells)


def same_crystal(
    a: Atoms,
    b: Atoms,
    *,
    volume_tolerance: float = 0.2,
    ltol: float = 0.2,
    stol: float = 0.2,
    angle_tol: float = 5.0,
    symprec: float = 0.1,
) -> bool:
    """Whether two structures are one crystal, whatever the cells; mirror images count as the same.

    Parameters
    ----------
    a, b : Atoms
        Periodic crystals, any cells.
    volume_tolerance : float
        Largest relative difference of the volumes per atom.
    ltol, stol, angle_tol : float
        Tolerances of pymatgen's StructureMatcher: lengths (relative), sites (in units of the cube root of the volume
        per atom) and angles (degrees). Where bonds are not well defined ``stol`` is divided by four.
    symprec : float
        Tolerance for finding the primitive cell, Å.

    Returns
    -------
    bool
        True if composition, volume, primitive cell, bond topology and geometry agree.
    """
    matcher = _Matcher(volume_tolerance, ltol, stol, angle_tol)
    return matcher.same(_Prepared(a, symprec), _Prepared(b, symprec))


def match_known(atoms: Atoms, known: Sequence[Atoms], **tolerances: float) -> int | None:
    """Index of the known crystal that ``atoms`` is, or None; ``tolerances`` are those of :func:`same_crystal`."""
    symprec = tolerances.pop("symprec", 0.1)
    matcher = _Matcher(**tolerances)
    candidate = _Prepared(atoms, symprec)
    by_volume = sorted(range(len(known)), key=lambda i: abs(np.log(_volume(known[i]) / candidate.volume)))
    for index in by_volume:
        if matcher.same(candidate, _remember(known[index], symprec)):
            return index
    return None


def find_duplicates(
    crystals: Sequence[Atoms],
    energies_per_atom: Sequence[float] | np.ndarray,
    *,
    energy_tolerance: float = 0.02,
    volume_tolerance: float = 0.05,
    **tolerances: float,
) -> list[int | None]:
    """For each crystal the index of the one of lower energy that it repeats, or None for those to keep.

    Parameters
    ----------
    crystals : sequence of Atoms
        Relaxed crystals.
    energies_per_atom : sequence of float
        eV/atom, one for each crystal, by one calculator.
    energy_tolerance : float
        Only crystals closer in energy than this are compared, eV/atom.
    volume_tolerance : float
        Only crystals closer in volume per atom than this are compared, relative.
    **tolerances
        Those of :func:`same_crystal`.

    Returns
    -------
    list of int or None
        ``result[i]`` is the kept crystal that i repeats: of lower energy, at equal energy the earlier one.
    """
    energies = np.asarray(energies_per_atom, dtype=float)
    if energies.shape != (len(crystals),):
        raise ValueError(f"{len(crystals)} crystals need as many energies, not an array of shape {energies.shape}")
    if not np.isfinite(energies).all():
        raise ValueError(f"energy of crystal {int(np.flatnonzero(~np.isfinite(energies))[0])} is not finite")
    symprec = tolerances.pop("symprec", 0.1)
    matcher = _Matcher(volume_tolerance=volume_tolerance, **tolerances)
    duplicate_of: list[int | None] = [None] * len(crystals)
    kept: list[tuple[int, _Prepared]] = []
    for index in np.argsort(energies, kind="stable"):
        candidate = _Prepared(crystals[index], symprec)
        near = [pair for pair in kept if energies[index] - energies[pair[0]] <= energy_tolerance]
        duplicate_of[index] = next((other for other, prepared in near if matcher.same(candidate, prepared)), None)
        if duplicate_of[index] is None:
            kept.append((int(index), candidate))
    return duplicate_of


class _Prepared:
    """A crystal with what comparisons need of it, computed once and only when asked for."""

    def __init__(self, atoms: Atoms, symprec: float = 0.1) -> None:
        check_structure(atoms, label="structure to compare", min_distance=0.1)
        self.given = atoms
        self.symprec = symprec
        self.volume = _volume(atoms)
        counts = Counter(atoms.symbols)
        self.composition = {symbol: Fraction(n, len(atoms)) for symbol, n in counts.items()}
        self._sequences: dict[tuple[float, int], CoordinationSequences] = {}

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
            counts = _shell_sizes(len(self.atoms), first[bonded], second[bonded], shifts[bonded], n_shells)
            kinds = Counter(zip(self.atoms.symbols, map(tuple, counts.tolist()), strict=True))
            self._sequences[key] = tuple(
                sorted((symbol, row, Fraction(n, len(self.atoms))) for (symbol, row), n in kinds.items())
            )
        return self._sequences[key]


def _remember(atoms: Atoms, symprec: float) -> _Prepared:
    """The same prepared crystal for the same content: known crystals are asked for again and again."""
    arrays = (atoms.numbers, atoms.positions, atoms.cell[:])
    return _remembered(*(np.ascontiguousarray(array).tobytes() for array in arrays), bool(atoms.pbc.all()), symprec)


@lru_cache(maxsize=256)
def _remembered(numbers: bytes, positions: bytes, cell: bytes, periodic: bool, symprec: float) -> _Prepared:
    rows = np.frombuffer(positions).reshape(-1, 3)
    atoms = Atoms(np.frombuffer(numbers, dtype=int), rows, cell=np.frombuffer(cell).reshape(3, 3), pbc=periodic)
    return _Prepared(atoms, symprec)


@dataclass(frozen=True)
class _Matcher:
    """The decision of :func:`same_crystal` with its tolerances."""

    volume_tolerance: float = 0.2
    ltol: float = 0.2
    stol: float = 0.2
    angle_tol: float = 5.0

    def same(self, a: _Prepared, b: _Prepared) -> bool:
        if a.composition != b.composition or abs(a.volume / b.volume - 1) > self.volume_tolerance:
            return False
        distances = np.sort(np.concatenate([a.reduced_distances, b.reduced_distances]))
        cutoff, gap = _widest_gap(distances / distances[0])
        if gap < MIN_BOND_GAP:
            return self._fit(a, b, self.stol / 4)
        longest = cutoff * distances[0]
        same_bonds = all(
            a.sequences(longest, n) == b.sequences(longest, n) for n in (1, 3, N_SHELLS)
        )  # cheap ones first
        return same_bonds and self._fit(a, b, self.stol)

    def _fit(self, a: _Prepared, b: _Prepared, stol: float) -> bool:
        """Geometry of the primitive cells, mirror images included."""
        from pymatgen.core import Structure
        from pymatgen.core.structure_matcher import StructureMatcher

        first, second = a.structure, b.structure
        if len(first) != len(second):
            first, second = a.loose_structure, b.loose_structure
        if len(first) != len(second):
            return False
        matcher = StructureMatcher(ltol=self.ltol, stol=stol, angle_tol=self.angle_tol, primitive_cell=False)
        if matcher.fit(first, second, skip_structure_reduction=True):
            return True
        mirrored = Structure(second.lattice, second.species, -second.frac_coords)
        return bool(matcher.fit(first, mirrored, skip_structure_reduction=True))


def _volume(atoms: Atoms) -> float:
    """Volume per atom, Å³."""
    return float(atoms.cell.volume / len(atoms))


def _standardised(rdf: np.ndarray) -> np.ndarray:
    """RDF as one row of zero mean and unit norm."""
    row = np.asarray(rdf, dtype=float).ravel()
    if not np.isfinite(row).all():
        raise ValueError("an RDF has non-finite values")
    row = row - row.mean()
    norm = np.linalg.norm(row)
    if norm == 0:
        raise ValueError("an RDF is constant; its correlation is not defined")
    return row / norm


def _widest_gap(ratios: np.ndarray) -> tuple[float, float]:
    """Middle and width of the widest gap of sorted ratios to the shortest distance, up to BOND_WINDOW."""
    ratios = np.append(ratios[ratios < BOND_WINDOW], BOND_WINDOW)
    gaps = np.diff(ratios)
    widest = int(np.argmax(gaps))
    return float(ratios[widest] + gaps[widest] / 2), float(gaps[widest])


def _shell_sizes(n_atoms: int, first: np.ndarray, second: np.ndarray, shifts: np.ndarray, n_shells: int) -> np.ndarray:
    """Sizes of the shells of the bond graph around every atom, ``(n_atoms, n_shells)``.

    A node is (root, atom, cell shift) packed into one integer: 10 bits a shift, 16 an atom. Neighbours of shell k lie
    in shells k-1, k and k+1, so the next shell is what is in none of the last two.
    """
    order = np.argsort(first, kind="stable")
    second = second[order]
    step = (((shifts[order, 0] << 10) + shifts[order, 1]) << 10) + shifts[order, 2]
    degree = np.bincount(first, minlength=n_atoms)
    start = np.concatenate([[0], np.cumsum(degree)[:-1]])
    origin = (((512 << 10) + 512) << 10) + 512
    roots = np.arange(n_atoms)
    shell = (roots << 46) + (roots << 30) + origin
    previous = np.empty(0, dtype=shell.dtype)
    sizes = np.zeros((n_atoms, n_shells), dtype=int)
    for k in range(n_shells):
        atom = (shell >> 30) & 0xFFFF
        repeats = degree[atom]
        offsets = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        edge = np.repeat(start[atom], repeats) + offsets
        source = np.repeat(shell, repeats)
        source_atom = np.repeat(atom, repeats)
        reached = np.unique(source + ((second[edge] - source_atom) << 30) + step[edge])
        fresh = ~(np.isin(reached, shell) | np.isin(reached, previous))
        previous, shell = shell, reached[fresh]
        sizes[:, k] = np.bincount(shell >> 46, minlength=n_atoms)
    return sizes
