"""Ways to fill the Wyckoff positions of a space group, drawn as crystals fill them.

The Euclidean normalizer permutes Wyckoff positions (origin shifts of C2/m turn a into b, c or d, for instance), so that
different letters give the same crystals; one of them stands for all.

The atoms of a primitive cell are given as a tuple, how many of each species. A choice is one letter per orbit, sorted,
and the species there, counted from 0.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from ase_hvae.reconstruct.wyckoff import Site, space_group

# Weight of an orbit on a site with 0 to 3 free coordinates. They make the orbits of prototypes in AFLOW's library (Mehl
# et al., Comput. Mater. Sci. 136, S1, 2017) likeliest, given space group and number of atoms, of 40 at most.
ORBIT_WEIGHTS = (1.3, 2.1, 8.6, 43.0)

Choice = tuple[tuple[str, ...], tuple[int, ...]]


def canonical(number: int, letters: Sequence[str], species: Sequence[int] | None = None) -> Choice:
    """Return the choice that stands for all that give the same crystals; of the first species by default."""
    kinds = tuple(species or (0,) * len(letters))
    names, n_species = [site.letter for site in space_group(number).sites], max(kinds) + 1
    counts = np.zeros((len(names), n_species), dtype=np.int64)
    for letter, kind in zip(letters, kinds, strict=True):
        counts[names.index(letter), kind] += 1
    renamed = counts[space_group(number).renamings]
    hashes = renamed.reshape(len(renamed), -1) @ _keys(counts.size)
    return _choice(names, renamed[hashes.argmin()])


def feasible(number: int, n_atoms: tuple[int, ...]) -> bool:
    """Tell whether atoms fit into a primitive cell of a space group."""
    return bool(_combination_weights(number, n_atoms)[(0, *n_atoms)] > 0)


def least_atoms(number: int) -> int:
    """Return the smallest number of atoms in a primitive cell of a space group."""
    return min(site.multiplicity for site in space_group(number).sites)


def _occupations(site: Site, n_atoms: tuple[int, ...]) -> Iterable[tuple[int, ...]]:
    """Return how many orbits of each species a site can have with at most `n_atoms` atoms: one if it has no freedom."""
    most = [n // site.multiplicity for n in n_atoms]
    if site.n_free > 0:
        return itertools.product(*(range(n + 1) for n in most))
    kinds = range(len(most))
    return [(0,) * len(most), *(tuple(int(k == kind) for k in kinds) for kind in kinds if most[kind])]


def _shifted(n_atoms: tuple[int, ...], used: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the part of an array over numbers of atoms that has room for `used` more, and where they lead."""
    rooms = tuple(slice(0, n + 1 - u) for n, u in zip(n_atoms, used, strict=True))
    return rooms, tuple(slice(u, None) for u in used)


@functools.cache
def _keys(length: int) -> np.ndarray:
    """Return fixed random numbers whose dot product with a row of counts is a hash of the row, shape (length,)."""
    return np.random.default_rng(0).integers(2**62, size=length, dtype=np.int64)


def _weight(site: Site, orbits: tuple[int, ...]) -> np.longdouble:
    """Return the weight of a number of orbits of each species on a site; hundreds of atoms would overflow a double."""
    return np.longdouble(ORBIT_WEIGHTS[site.n_free]) ** sum(orbits)


@functools.cache
def _combination_weights(number: int, n_atoms: tuple[int, ...]) -> np.ndarray:
    """Return the summed weights of all ways to place atoms on the sites from l on, shape (n_sites + 1, n + 1, ...)."""
    sites = space_group(number).sites
    weights = np.zeros((len(sites) + 1, *(n + 1 for n in n_atoms)), dtype=np.longdouble)
    weights[(-1, *(0,) * len(n_atoms))] = 1.0
    for index in range(len(sites) - 1, -1, -1):
        for orbits in _occupations(sites[index], n_atoms):
            before, after = _shifted(n_atoms, [k * sites[index].multiplicity for k in orbits])
            weights[index][after] += _weight(sites[index], orbits) * weights[index + 1][before]
    return weights


def draw_choice(number: int, n_atoms: tuple[int, ...], rng: np.random.Generator) -> Choice:
    """Draw a choice for the atoms of a primitive cell, its weight the product of `ORBIT_WEIGHTS`; see `canonical`."""
    weights = _combination_weights(number, n_atoms)
    letters: list[str] = []
    species: list[int] = []
    left = n_atoms
    for index, site in enumerate(space_group(number).sites):
        ways = list(_occupations(site, left))
        rests = [tuple(n - k * site.multiplicity for n, k in zip(left, orbits, strict=True)) for orbits in ways]
        chances = [
            _weight(site, orbits) * weights[(index + 1, *rest)] for orbits, rest in zip(ways, rests, strict=True)
        ]
        chosen = int(np.searchsorted(np.cumsum(chances), rng.random() * sum(chances), side="right"))
        letters += [site.letter] * sum(ways[chosen])
        species += [kind for kind, count in enumerate(ways[chosen]) for _ in range(count)]
        left = rests[chosen]
    return canonical(number, letters, species)


def _choice(names: Sequence[str], counts: np.ndarray) -> Choice:
    """Return a choice given by its numbers of orbits, shape (n_sites, n_species)."""
    rows = zip(names, counts.tolist(), strict=True)
    orbits = sorted((name, kind) for name, row in rows for kind, count in enumerate(row) for _ in range(count))
    letters, species = zip(*orbits, strict=True)
    return letters, species
