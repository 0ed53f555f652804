"""Space groups as templates of primitive crystals.

A `Template` holds what a space group and a choice of Wyckoff positions leave free: the scaled positions of the atoms of
the primitive cell are affine in the free coordinates ``u``, ``x = matrix u + offset``, and the cell may be strained in
the subspace of symmetric strains that the point group leaves invariant. Moving inside a template keeps the space group.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ase_hvae.errors import ReconstructionError

_PRIMITIVE = {  # rows: primitive lattice vectors in the basis of the conventional ones
    "P": np.eye(3),
    "A": np.array([[1, 0, 0], [0, 0.5, -0.5], [0, 0.5, 0.5]]),
    "C": np.array([[0.5, -0.5, 0], [0.5, 0.5, 0], [0, 0, 1]]),
    "I": np.array([[-0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5]]),
    "F": np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]),
    "R": np.array([[2, 1, 1], [-1, 1, 1], [-1, -2, 1]]) / 3,
}
SYSTEMS = {  # last space group of each crystal system
    "triclinic": 2,
    "monoclinic": 15,
    "orthorhombic": 74,
    "tetragonal": 142,
    "trigonal": 167,
    "hexagonal": 194,
    "cubic": 230,
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
    renamings : ndarray
        Shape (n_renamings, n_sites): permutations of the sites by the Euclidean normalizer, crystals stay the same.
    """

    number: int
    symbol: str
    primitive: np.ndarray
    rotations: np.ndarray
    translations: np.ndarray
    sites: tuple[Site, ...]
    renamings: np.ndarray

    @property
    def family(self) -> str:
        """Crystal family."""
        system = next(name for name, last in SYSTEMS.items() if self.number <= last)
        return "hexagonal" if system == "trigonal" else system


@dataclass(frozen=True, eq=False)
class Template:
    """What a space group and a choice of Wyckoff positions leave free in a primitive cell.

    Attributes
    ----------
    group : SpaceGroup
    letters : tuple of str
        One letter per orbit, sorted.
    species : ndarray
        Shape (n_atoms,), int64: which of the composition's species an atom is.
    matrix, offset : ndarray
        Shapes (n_atoms, 3, n_free) and (n_atoms, 3): scaled positions are ``matrix @ u + offset``.
    orbit_sizes : ndarray
        Shape (n_orbits,): atoms of each orbit; an orbit's atoms follow each other.
    strains : ndarray
        Shape (n_strains, 3, 3): orthonormal basis of the symmetric strains that keep the point group.
    """

    group: SpaceGroup
    letters: tuple[str, ...]
    species: np.ndarray
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
    def orbit_freedom(self) -> tuple[int, ...]:
        """Free coordinates of each orbit."""
        free = {site.letter: site.n_free for site in self.group.sites}
        return tuple(free[letter] for letter in self.letters)

    @property
    def n_parameters(self) -> int:
        """Free coordinates and strains."""
        return self.n_free + len(self.strains)

    def wyckoffs(self, symbols: Sequence[str]) -> tuple[str, ...]:
        """Return letters with the multiplicity in the conventional cell, as ``8a``, of several species ``4a Na``."""
        centring = round(1 / np.linalg.det(self.group.primitive))
        first_atoms = np.cumsum(self.orbit_sizes) - self.orbit_sizes
        sites = [f"{size * centring}{letter}" for size, letter in zip(self.orbit_sizes, self.letters, strict=True)]
        if len(symbols) == 1:
            return tuple(sites)
        return tuple(f"{site} {symbols[self.species[atom]]}" for site, atom in zip(sites, first_atoms, strict=True))


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
    return SpaceGroup(number, symbol, primitive, rotations, translations, tuple(sites), _renamings(table))


def _renamings(table: Any) -> np.ndarray:
    """Return the permutations of the Wyckoff positions of a PyXtal table by the normalizer, from general to special."""
    letters = [position.letter for position in table]
    plain, *others = (names.split() for names in table.get_alternatives()["Transformed WP"])
    rows = [[letters.index(names[plain.index(letter)]) for letter in letters] for names in (plain, *others)]
    return np.unique(rows, axis=0)


@functools.lru_cache(maxsize=8000)
def template(number: int, letters: tuple[str, ...], species: tuple[int, ...] | None = None) -> Template:
    """Return the template of a space group, one Wyckoff letter per orbit and its species, the first by default.

    Raises
    ------
    ReconstructionError
        If the space group has no such letter.
    ValueError
        If there are not as many species as letters.
    """
    group = space_group(number)
    orbits = sorted(zip(letters, species or (0,) * len(letters), strict=True))
    by_letter = {site.letter: site for site in group.sites}
    unknown = sorted(set(letters) - set(by_letter))
    if unknown:
        raise ReconstructionError(
            f"space group {number} has no Wyckoff position {', '.join(unknown)}; it has {', '.join(by_letter)}"
        )
    sites = [by_letter[letter] for letter, _ in orbits]
    sizes = np.array([site.multiplicity for site in sites])
    n_free = sum(site.n_free for site in sites)
    matrix = np.zeros((sum(site.multiplicity for site in sites), 3, n_free))
    row = column = 0
    for site in sites:
        matrix[row : row + site.multiplicity, :, column : column + site.n_free] = site.matrix
        row, column = row + site.multiplicity, column + site.n_free
    return Template(
        group=group,
        letters=tuple(site.letter for site in sites),
        species=np.repeat([kind for _, kind in orbits], sizes),
        matrix=matrix,
        offset=np.concatenate([site.offset for site in sites]),
        orbit_sizes=sizes,
        strains=_strain_basis(group.family),
    )


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
