"""Space groups as templates of primitive crystals, and the prior over (space group, Wyckoff letters).

A `Template` holds what a space group and a choice of Wyckoff positions leave free: the scaled positions of the atoms of
the primitive cell are affine in the free coordinates ``u``, ``x = matrix u + offset``, and the cell may be strained in
the subspace of symmetric strains that the point group leaves invariant. Moving inside a template keeps the space group.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from ase_hvae.errors import ReconstructionError

ORBIT_WEIGHT = 0.5  # weight of a combination of Wyckoff positions per orbit: simple crystals are more common

_PRIMITIVE = {  # rows: primitive lattice vectors in the basis of the conventional ones
    "P": np.eye(3),
    "A": np.array([[1, 0, 0], [0, 0.5, -0.5], [0, 0.5, 0.5]]),
    "C": np.array([[0.5, -0.5, 0], [0.5, 0.5, 0], [0, 0, 1]]),
    "I": np.array([[-0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5]]),
    "F": np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]),
    "R": np.array([[2, 1, 1], [-1, 1, 1], [-1, -2, 1]]) / 3,
}
_STRAINS = {  # independent strains (entries of the symmetric tensor that go together), Cartesian, c along z, b unique
    "triclinic": (("xx",), ("yy",), ("zz",), ("yz",), ("xz",), ("xy",)),
    "monoclinic": (("xx",), ("yy",), ("zz",), ("xz",)),
    "orthorhombic": (("xx",), ("yy",), ("zz",)),
    "tetragonal": (("xx", "yy"), ("zz",)),
    "hexagonal": (("xx", "yy"), ("zz",)),
    "cubic": (("xx", "yy", "zz"),),
}


@dataclass(frozen=True, eq=False)
class Site:
    """A Wyckoff position in the primitive cell.

    Attributes
    ----------
    letter : str
        Wyckoff letter.
    matrix, offset : ndarray
        Shapes (multiplicity, 3, n_free) and (multiplicity, 3): scaled positions are ``matrix @ u + offset``.
    """

    letter: str
    matrix: np.ndarray
    offset: np.ndarray

    @property
    def multiplicity(self) -> int:
        """Atoms in the primitive cell."""
        return len(self.offset)

    @property
    def n_free(self) -> int:
        """Free coordinates."""
        return self.matrix.shape[2]


@dataclass(frozen=True, eq=False)
class SpaceGroup:
    """Wyckoff positions of a space group in its standard setting, for the primitive cell.

    Attributes
    ----------
    number : int
        International number, 1 to 230.
    symbol : str
        Hermann-Mauguin symbol.
    primitive : ndarray
        Shape (3, 3): ``primitive @ conventional cell`` is the primitive cell.
    rotations, translations : ndarray
        Shapes (n_operations, 3, 3) and (n_operations, 3), acting on scaled positions (columns) of the primitive cell.
    sites : tuple of Site
        From the general position to the most special one.
    """

    number: int
    symbol: str
    primitive: np.ndarray
    rotations: np.ndarray
    translations: np.ndarray
    sites: tuple[Site, ...]

    @property
    def family(self) -> str:
        """Crystal family."""
        limits = {"triclinic": 2, "monoclinic": 15, "orthorhombic": 74, "tetragonal": 142, "hexagonal": 194}
        return next((name for name, last in limits.items() if self.number <= last), "cubic")


@dataclass(frozen=True, eq=False)
class Template:
    """What a space group and a choice of Wyckoff positions leave free in a primitive cell.

    Attributes
    ----------
    group : SpaceGroup
    letters : tuple of str
        One letter per orbit, sorted.
    matrix, offset : ndarray
        Shapes (n_atoms, 3, n_free) and (n_atoms, 3): scaled positions are ``matrix @ u + offset``.
    orbit_sizes : ndarray
        Shape (n_orbits,): atoms of each orbit; an orbit's atoms follow each other.
    strains : ndarray
        Shape (n_strains, 3, 3): orthonormal basis of the symmetric strains that keep the point group.
    """

    group: SpaceGroup
    letters: tuple[str, ...]
    matrix: np.ndarray
    offset: np.ndarray
    orbit_sizes: np.ndarray
    strains: np.ndarray

    @property
    def n_atoms(self) -> int:
        """Atoms in the primitive cell."""
        return len(self.offset)

    @property
    def n_free(self) -> int:
        """Free coordinates of the atoms."""
        return self.matrix.shape[2]

    @property
    def n_parameters(self) -> int:
        """Free coordinates and strains."""
        return self.n_free + len(self.strains)

    @property
    def wyckoffs(self) -> tuple[str, ...]:
        """Letters with the multiplicity in the conventional cell, as ``8a``."""
        centring = round(1 / np.linalg.det(self.group.primitive))
        return tuple(f"{size * centring}{letter}" for size, letter in zip(self.orbit_sizes, self.letters, strict=True))


@functools.cache
def space_group(number: int) -> SpaceGroup:
    """Return the tables of a space group (read from PyXtal once, then cached)."""
    if not 1 <= number <= 230:
        raise ValueError(f"space group number must be 1 to 230, got {number}")
    from pyxtal.symmetry import Group

    table = Group(number)
    symbol = str(table.symbol)
    primitive = _PRIMITIVE[symbol[0]]
    to_primitive = np.linalg.inv(primitive).T  # acts on columns of conventional scaled positions
    centring = round(1 / np.linalg.det(primitive))
    sites = []
    for position in table:
        operations = position.ops[: len(position.ops) // centring]  # PyXtal lists the centring translations last
        rotations = np.array([operation.rotation_matrix for operation in operations])
        free = np.abs(rotations).sum((0, 1)) > 1e-9
        offsets = np.array([operation.translation_vector for operation in operations])
        sites.append(Site(position.letter, to_primitive @ rotations[:, :, free], offsets @ to_primitive.T))
    general = table[0].ops[: len(table[0].ops) // centring]
    rotations = np.array([to_primitive @ operation.rotation_matrix @ primitive.T for operation in general])
    translations = np.array([operation.translation_vector for operation in general]) @ to_primitive.T
    return SpaceGroup(number, symbol, primitive, rotations, translations, tuple(sites))


@functools.lru_cache(maxsize=20000)
def template(number: int, letters: tuple[str, ...]) -> Template:
    """Return the template of a space group and one Wyckoff letter per orbit."""
    group = space_group(number)
    by_letter = {site.letter: site for site in group.sites}
    unknown = sorted(set(letters) - set(by_letter))
    if unknown:
        raise ReconstructionError(
            f"space group {number} has no Wyckoff position {', '.join(unknown)}; it has {', '.join(by_letter)}"
        )
    sites = [by_letter[letter] for letter in sorted(letters)]
    n_free = sum(site.n_free for site in sites)
    matrix = np.zeros((sum(site.multiplicity for site in sites), 3, n_free))
    row = column = 0
    for site in sites:
        matrix[row : row + site.multiplicity, :, column : column + site.n_free] = site.matrix
        row, column = row + site.multiplicity, column + site.n_free
    return Template(
        group=group,
        letters=tuple(site.letter for site in sites),
        matrix=matrix,
        offset=np.concatenate([site.offset for site in sites]),
        orbit_sizes=np.array([site.multiplicity for site in sites]),
        strains=_strain_basis(group.family),
    )


@functools.cache
def _combination_weights(number: int, n_atoms: int) -> np.ndarray:
    """Return the summed weights of all ways to place m atoms on the sites from l on, shape (n_sites + 1, n + 1)."""
    sites = space_group(number).sites
    weights = np.zeros((len(sites) + 1, n_atoms + 1))
    weights[-1, 0] = 1.0
    for index in range(len(sites) - 1, -1, -1):
        for count in _counts(sites[index], n_atoms):
            used = count * sites[index].multiplicity
            weights[index, used:] += ORBIT_WEIGHT**count * weights[index + 1, : n_atoms + 1 - used]
    return weights


def _counts(site: Site, n_atoms: int) -> range:
    """Return how often a site can be occupied with at most `n_atoms` atoms: once if it has no freedom."""
    most = n_atoms // site.multiplicity
    return range((min(most, 1) if site.n_free == 0 else most) + 1)


def feasible(number: int, n_atoms: int) -> bool:
    """Tell whether `n_atoms` atoms fit into a primitive cell of a space group."""
    return bool(_combination_weights(number, n_atoms)[0, n_atoms] > 0)


def draw_letters(number: int, n_atoms: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Draw Wyckoff letters for `n_atoms` atoms, each combination with weight ``ORBIT_WEIGHT ** n_orbits``."""
    sites, weights = space_group(number).sites, _combination_weights(number, n_atoms)
    letters: list[str] = []
    left = n_atoms
    for index, site in enumerate(sites):
        counts = _counts(site, left)
        chances = [ORBIT_WEIGHT**k * weights[index + 1, left - k * site.multiplicity] for k in counts]
        chosen = int(np.searchsorted(np.cumsum(chances), rng.random() * sum(chances), side="right"))
        letters += [site.letter] * chosen
        left -= chosen * site.multiplicity
    return tuple(sorted(letters))


@dataclass(frozen=True)
class WyckoffPrior:
    """Distribution over (space group, Wyckoff letters): what known crystals have, mixed with a uniform one.

    Attributes
    ----------
    learned : tuple of (int, tuple of str)
        Space group and one letter per orbit of the known crystals; repeated entries weigh more.
    uniform_share : float
        Share of draws that are uniform over the number of atoms, then the space groups that can hold it.
    spacegroups : tuple of int
        Space groups to draw from.
    """

    learned: tuple[tuple[int, tuple[str, ...]], ...] = ()
    uniform_share: float = 0.5
    spacegroups: tuple[int, ...] = tuple(range(1, 231))

    def __post_init__(self) -> None:
        if not 0 <= self.uniform_share <= 1:
            raise ValueError(f"uniform_share must be between 0 and 1, got {self.uniform_share}")
        wrong = [number for number in self.spacegroups if not 1 <= number <= 230]
        if wrong or not self.spacegroups:
            raise ValueError(f"spacegroups must be numbers from 1 to 230, got {wrong or 'none'}")

    @classmethod
    def from_sites(cls, sites: Iterable[tuple[int, Sequence[str]]], *, uniform_share: float = 0.5) -> WyckoffPrior:
        """Prior of crystals given by space-group number and occupied Wyckoff positions, as ``(227, ("8a",))``."""
        learned = ((number, tuple(sorted(site.lstrip("0123456789") for site in orbits))) for number, orbits in sites)
        return cls(tuple(learned), uniform_share)

    @classmethod
    def from_structures(cls, structures: Iterable[Atoms], *, uniform_share: float = 0.5) -> WyckoffPrior:
        """Learn the space groups and occupied Wyckoff positions of known crystals."""
        from ase_hvae.symmetry import wyckoff_sites

        return cls.from_sites((wyckoff_sites(atoms) for atoms in structures), uniform_share=uniform_share)

    def draw(self, natoms: Sequence[int], n_draws: int, rng: np.random.Generator) -> list[Template]:
        """Draw templates with a number of atoms out of `natoms`.

        Raises
        ------
        ReconstructionError
            If no space group can hold any of `natoms`.
        """
        groups = {n: [number for number in self.spacegroups if feasible(number, n)] for n in natoms}
        sizes = [n for n in natoms if groups[n]]
        known = [template(*entry) for entry in self.learned if entry[0] in self.spacegroups]
        known = [entry for entry in known if entry.n_atoms in natoms]
        if not (sizes or known):
            raise ReconstructionError(
                f"no crystal with {_ranges(natoms)} atoms in the primitive cell exists in space groups "
                f"{_ranges(self.spacegroups)}; allow other numbers of atoms or more space groups"
            )
        drawn = []
        for _ in range(n_draws):
            if known and (rng.random() >= self.uniform_share or not sizes):
                drawn.append(known[rng.integers(len(known))])
                continue
            n_atoms = sizes[rng.integers(len(sizes))]
            number = groups[n_atoms][rng.integers(len(groups[n_atoms]))]
            drawn.append(template(number, draw_letters(number, n_atoms, rng)))
        return drawn


def _ranges(numbers: Sequence[int]) -> str:
    numbers = sorted(numbers)
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


@functools.cache
def _strain_basis(family: str) -> np.ndarray:
    """Return the orthonormal symmetric strains of a crystal family, shape (n_strains, 3, 3)."""
    basis = np.zeros((len(_STRAINS[family]), 3, 3))
    for matrix, entries in zip(basis, _STRAINS[family], strict=True):
        for entry in entries:
            a, b = ("xyz".index(axis) for axis in entry)
            matrix[a, b] = matrix[b, a] = 1.0
        matrix /= np.linalg.norm(matrix)
    return basis
