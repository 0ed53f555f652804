"""Bonds of a crystal: where they end, and how many atoms lie k bonds away."""

from __future__ import annotations

import numpy as np

# Bonds end in the widest gap between neighbour distances up to this multiple of the shortest one. Tetrahedral second
# neighbours lie at 1.63, those of fcc at 1.41.
BOND_WINDOW = 1.8


def widest_gap(ratios: np.ndarray) -> tuple[float, float]:
    """Middle and width of the widest gap of sorted ratios to the shortest distance, up to BOND_WINDOW."""
    ratios = np.append(ratios[ratios < BOND_WINDOW], BOND_WINDOW)
    gaps = np.diff(ratios)
    widest = int(np.argmax(gaps))
    return float(ratios[widest] + gaps[widest] / 2), float(gaps[widest])


def shell_sizes(n_atoms: int, first: np.ndarray, second: np.ndarray, shifts: np.ndarray, n_shells: int) -> np.ndarray:
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
