"""How MAISE chooses and numbers structures for training, drawn by its own generator."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

_MULTIPLIER, _MODULUS = 48271, 2**31 - 1


def random_numbers(seed: int) -> Iterator[float]:
    """Yield MAISE's random numbers between 0 and 1: Lehmer's generator, which `seed` starts.

    Raises
    ------
    ValueError
        If `seed` is not positive; for 0 MAISE takes the clock.
    """
    if not 0 < seed < _MODULUS:
        raise ValueError(f"seed is {seed}; MAISE's generator takes 1 to {_MODULUS - 1}")
    state = seed
    while True:
        state = _MULTIPLIER * state % _MODULUS
        yield state / _MODULUS


def mark_atoms(n_atoms: int, fraction: float, seed: int) -> np.ndarray:
    """Atoms of a structure whose forces are fitted: bool, shape (n_atoms,).

    Parameters
    ----------
    n_atoms : int
    fraction : float
        Share of the atoms, FMRK; rounded down.
    seed : int
        RAND.
    """
    n_marked = int(fraction * n_atoms)
    marked = np.full(n_atoms, n_marked == n_atoms)
    if n_marked == n_atoms:
        return marked
    numbers, place = random_numbers(seed), 0
    for done in range(n_marked):
        open_atoms = np.flatnonzero(~marked)
        start = int(np.searchsorted(open_atoms, place))
        chosen = open_atoms[(start + int(next(numbers) * (n_atoms - done))) % len(open_atoms)]
        marked[chosen] = True
        place = int(chosen)
    return marked


def energy_threshold(energies_per_atom: np.ndarray, share: float) -> float:
    """Energy at and above which ECUT drops structures of a category; eV/atom.

    Bisection between lowest and highest, as MAISE does it, until a `share` of the structures lies below. A share of
    1 drops none, a larger one the highest only.
    """
    if share == 1:
        return math.inf
    wanted = int(len(energies_per_atom) * share)
    low, high = float(energies_per_atom.min()), float(energies_per_atom.max())
    middle = 0.5 * (low + high)
    for _ in range(len(energies_per_atom)):
        below = int((energies_per_atom < middle).sum())
        if below == wanted:
            break
        low, high = (middle, high) if below < wanted else (low, middle)
        middle = 0.5 * (low + high)
    return middle


def number_structures(uses: Sequence[int], seed: int) -> np.ndarray:
    """Number of each structure's file ``e000000``, shape (n,), in which order MAISE takes them for training.

    Parameters
    ----------
    uses : sequence of int
        1 for training and test, 2 for training only, 3 for test only; those that ECUT removed are left out.
    seed : int
        RAND: negative for the order of the listing.
    """
    if seed < 0:
        return np.arange(len(uses))
    numbers, offset = np.empty(len(uses), dtype=np.int64), 0
    for use in (2, 1, 3):
        members = np.flatnonzero(np.asarray(uses) == use)
        stream, taken = random_numbers(seed), set()
        for member in members:
            drawn = int(len(members) * next(stream))
            while drawn in taken:
                drawn = int(len(members) * next(stream))
            taken.add(drawn)
            numbers[member] = offset + drawn
        offset += len(members)
    return numbers


def initial_weights(
    architecture: Sequence[int], n_species: int, seed: int
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Weights and biases with which MAISE starts, shapes as in :class:`maise_bridge.model_file.MaiseModel`."""
    stream = random_numbers(seed)
    weights: list[list[np.ndarray]] = [[] for _ in architecture[1:]]
    biases: list[list[np.ndarray]] = [[] for _ in architecture[1:]]
    for _ in range(n_species):
        for arrays, wide in ((weights, True), (biases, False)):
            for layer, (n_in, n_out) in enumerate(itertools.pairwise(architecture)):
                shape = (n_out, n_in) if wide else (n_out,)
                drawn = np.array([next(stream) for _ in range(math.prod(shape))]).reshape(shape)
                arrays[layer].append(2.0 * (drawn - 0.5) / n_in)
    return tuple(np.stack(part) for part in weights), tuple(np.stack(part) for part in biases)
