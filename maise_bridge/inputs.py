"""The order of a network's inputs, and of species within a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols


def species_indices(structures: Sequence[Atoms], species: Sequence[str]) -> np.ndarray:
    """Place in `species` of every atom of some structures, (n_atoms,). Raises ValueError naming what is missing."""
    place = np.full(len(atomic_numbers), -1)
    place[[atomic_numbers[symbol] for symbol in species]] = np.arange(len(species))
    numbers = np.concatenate([atoms.numbers for atoms in structures])
    found = place[numbers]
    if np.any(found < 0):
        missing = sorted({chemical_symbols[number] for number in numbers[found < 0]})
        raise ValueError(f"structure has {', '.join(missing)}; the model covers {', '.join(species)}")
    return found


def input_blocks(n_species: int, n_radial: int, n_angular: int) -> Iterator[tuple[tuple[int, ...], slice]]:
    """Classes of the one or two neighbours of each block of inputs, in MAISE's order, with its columns.

    The class of a neighbour of species b at a centre of species a is d = (b - a) mod n_species.
    """
    order: list[tuple[int, ...]] = [(0,), (0, 0), (1,), (0, 1), (1, 1), (2,), (0, 2), (2, 2), (1, 2)]
    column = 0
    for classes in order:
        if max(classes) < n_species:
            width = n_radial if len(classes) == 1 else n_angular
            yield classes, slice(column, column + width)
            column += width
