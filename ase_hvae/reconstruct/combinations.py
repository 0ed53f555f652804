"""All ways to fill the Wyckoff positions of a space group, each once though an affine normalizer may rename it.

The Euclidean normalizer permutes Wyckoff positions (origin shifts of C2/m turn a into b, c or d, for instance), so that
different letters give the same crystals. For eight atoms 56,000 choices of letters with at most eight free coordinates
are 6,000 different ones.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from ase_hvae.reconstruct.wyckoff import Site, space_group

MAX_COMBINATIONS = 20000  # most choices of letters of a space group that are listed for one number of atoms
ORBIT_WEIGHT = 0.5  # weight of a drawn choice of Wyckoff positions per orbit: simple crystals are more common
MAX_FREE = 12  # most free coordinates of a listed choice


def canonical(number: int, letters: Sequence[str]) -> tuple[str, ...]:
    """Return the name that stands for all choices of letters that give the same crystals."""
    names = [site.letter for site in space_group(number).sites]
    counts = np.array([[letters.count(name) for name in names]])
    return _letters(names, _representatives(number, counts)[1][0])


def combinations(number: int, n_atoms: int) -> tuple[tuple[str, ...], ...]:
    """Return the different choices of letters for `n_atoms` atoms in the primitive cell, few free coordinates first.

    Choices with more free coordinates than `free_limit` are left out.
    """
    return _combinations(number, n_atoms, free_limit(number, n_atoms))


def n_free(number: int, letters: Sequence[str]) -> int:
    """Return the number of free coordinates of a choice of letters."""
    free = {site.letter: site.n_free for site in space_group(number).sites}
    return sum(free[letter] for letter in letters)


@functools.cache
def free_limit(number: int, n_atoms: int) -> int:
    """Return up to how many free coordinates the choices of a space group are listed; -1 if none are."""
    within = np.cumsum(_histogram(number, n_atoms)) <= MAX_COMBINATIONS
    return MAX_FREE if within.all() else int(np.argmin(within)) - 1


@functools.cache
def feasible(number: int, n_atoms: int) -> bool:
    """Tell whether `n_atoms` atoms fit into a primitive cell of a space group."""
    reached = np.zeros(n_atoms + 1, dtype=bool)
    reached[0] = True
    for site in space_group(number).sites:
        for used in range(n_atoms, -1, -1):
            reached[used] = any(reached[used - k * site.multiplicity] for k in _counts(site, used))
    return bool(reached[n_atoms])


def least_atoms(number: int) -> int:
    """Return the smallest number of atoms in a primitive cell of a space group."""
    return min(site.multiplicity for site in space_group(number).sites)


def _counts(site: Site, n_atoms: int) -> range:
    """Return how often a site can be occupied with at most `n_atoms` atoms: once if it has no freedom."""
    most = n_atoms // site.multiplicity
    return range((min(most, 1) if site.n_free == 0 else most) + 1)


def _histogram(number: int, n_atoms: int) -> np.ndarray:
    """Return the number of choices of letters by free coordinates, shape (MAX_FREE + 1,)."""
    ways = np.zeros((n_atoms + 1, MAX_FREE + 1))
    ways[0, 0] = 1
    for site in space_group(number).sites:
        more = np.zeros_like(ways)
        for count in _counts(site, n_atoms):
            used, free = count * site.multiplicity, count * site.n_free
            if free <= MAX_FREE:
                more[used:, free:] += ways[: n_atoms + 1 - used, : MAX_FREE + 1 - free]
        ways = more
    return ways[n_atoms]


@functools.cache
def _combinations(number: int, n_atoms: int, most_free: int) -> tuple[tuple[str, ...], ...]:
    """List the choices of letters with at most `most_free` free coordinates, one of each kind."""
    sites = space_group(number).sites
    listed: list[list[int]] = []

    def fill(index: int, left: int, freedom: int, counts: list[int]) -> None:
        if left == 0:
            listed.append(counts + [0] * (len(sites) - len(counts)))
        elif index < len(sites) and possible[index, left]:
            site = sites[index]
            for count in _counts(site, left):
                if count * site.n_free <= freedom:
                    rest = left - count * site.multiplicity
                    fill(index + 1, rest, freedom - count * site.n_free, [*counts, count])

    possible = _combination_weights(number, n_atoms) > 0
    fill(0, n_atoms, most_free, [])
    if not listed:
        return ()
    counts = _representatives(number, np.array(listed))[1]
    order = np.argsort(counts @ [site.n_free for site in sites], kind="stable")
    names = [site.letter for site in sites]
    return tuple(_letters(names, row) for row in counts[order])


def _representatives(number: int, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return one row of each class of rows of `counts` that renaming turns into one another, and its position."""
    keys = np.random.default_rng(0).integers(2**62, size=counts.shape[1], dtype=np.int64)  # a hash of each row
    renamed = np.stack([counts[:, names] @ keys for names in space_group(number).renamings])
    _, first = np.unique(renamed.min(0), return_index=True)
    best = renamed[:, first].argmin(0)
    rows = np.stack([counts[row][space_group(number).renamings[k]] for row, k in zip(first, best, strict=True)])
    return first, rows


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


def draw_letters(number: int, n_atoms: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Draw letters for `n_atoms` atoms, each choice with weight ``ORBIT_WEIGHT ** n_orbits``; see `canonical`."""
    sites, weights = space_group(number).sites, _combination_weights(number, n_atoms)
    letters: list[str] = []
    left = n_atoms
    for index, site in enumerate(sites):
        counts = _counts(site, left)
        chances = [ORBIT_WEIGHT**k * weights[index + 1, left - k * site.multiplicity] for k in counts]
        chosen = int(np.searchsorted(np.cumsum(chances), rng.random() * sum(chances), side="right"))
        letters += [site.letter] * chosen
        left -= chosen * site.multiplicity
    return canonical(number, letters)


def _letters(names: Sequence[str], counts: np.ndarray) -> tuple[str, ...]:
    return tuple(sorted(name for name, count in zip(names, counts, strict=True) for _ in range(count)))
