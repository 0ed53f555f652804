"""Duplicates among many crystals, and crystals that are known already."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from ase_hvae.compare.crystal import PreparedCrystal, content, remember
from ase_hvae.compare.matching import Matcher
from ase_hvae.structures import read_structures

logger = logging.getLogger(__name__)

ENERGY_TOLERANCE = 0.02  # eV/atom, between two relaxations of one crystal
VOLUME_TOLERANCE = 0.05  # relative, likewise


def find_duplicates(
    crystals: Sequence[Atoms],
    energies_per_atom: Sequence[float] | np.ndarray,
    *,
    energy_tolerance: float = ENERGY_TOLERANCE,
    volume_tolerance: float = VOLUME_TOLERANCE,
    **tolerances: float,
) -> list[int | None]:
    """For each crystal the index of the one of lower energy that it repeats, or None for those to keep.

    Crystals are taken from the lowest energy upwards, and one is dropped if it is the same crystal as one that was
    kept. Sameness within tolerances is not transitive: where b is the same as a and as c, but a and c differ, b is
    dropped if a or c has a lower energy, and a and c are both kept, unless b is the lowest: then both repeat b. So
    every crystal that is dropped is within tolerance of the one it repeats, and no chain of small steps merges two
    crystals that differ.

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
        ``result[i]`` is the kept crystal that i repeats, the one with the nearest fingerprint if there are several;
        of lower energy, at equal energy of smaller volume. The order of ``crystals`` does not matter; only among
        identical copies the first is kept.
    """
    energies = _check_energies(crystals, energies_per_atom)
    if not energy_tolerance >= 0:
        raise ValueError(f"energy_tolerance is {energy_tolerance}; it must not be negative (eV/atom)")
    symprec = tolerances.pop("symprec", 0.1)
    matcher = Matcher(volume_tolerance=volume_tolerance, **tolerances)
    duplicate_of = assign_originals(crystals, energies, matcher, energy_tolerance=energy_tolerance, symprec=symprec)
    n_kept = sum(other is None for other in duplicate_of)
    logger.debug("%d of %d crystals are distinct; %s", n_kept, len(crystals), matcher.counts)
    return duplicate_of


def assign_originals(
    crystals: Sequence[Atoms], energies: np.ndarray, matcher: Matcher, *, energy_tolerance: float, symprec: float
) -> list[int | None]:
    """What :func:`find_duplicates` returns, by a matcher, which counts the pairs."""
    order = sorted(range(len(crystals)), key=lambda i: (energies[i], crystals[i].cell.volume, content(crystals[i])))
    duplicate_of: list[int | None] = [None] * len(crystals)
    rising = ((index, crystals[index], energies[index]) for index in order)
    for index, original in stream_originals(rising, matcher, energy_tolerance=energy_tolerance, symprec=symprec):
        duplicate_of[index] = original
    return duplicate_of


def stream_originals(
    crystals: Iterable[tuple[int, Atoms, float]],
    matcher: Matcher | None = None,
    *,
    energy_tolerance: float = ENERGY_TOLERANCE,
    symprec: float = 0.1,
) -> Iterator[tuple[int, int | None]]:
    """What :func:`find_duplicates` finds, one after the other: numbers of a crystal and of the kept one it repeats.

    Kept crystals of the same composition are forgotten once they are too low in energy to be compared.

    Parameters
    ----------
    crystals : iterable of (number, Atoms, energy)
        Energies per atom (eV/atom) must not fall.
    matcher : Matcher, optional
        Decides whether two crystals are one, and counts the pairs.
    energy_tolerance, symprec : float
        As for :func:`find_duplicates`.

    Yields
    ------
    tuple of int and (int or None)
        Number of the crystal, and of the kept one of lower energy that it is.

    Raises
    ------
    ValueError
        If an energy is below the one before it.
    """
    matcher = matcher or Matcher(volume_tolerance=VOLUME_TOLERANCE)
    shelves: dict[Any, _Shelf] = {}
    last = -np.inf
    for index, atoms, energy in crystals:
        if not energy >= last:
            raise ValueError(f"energy of crystal {index} is {energy} eV/atom, after {last}; sort them, lowest first")
        last = energy
        candidate = PreparedCrystal(atoms, symprec)
        shelf = shelves.setdefault(frozenset(candidate.composition.items()), _Shelf())
        shelf.forget_below(energy - energy_tolerance)
        near = shelf.near(candidate, matcher)
        original = next((number for number, kept in near if matcher.same_near(candidate, kept)), None)
        if original is None:
            shelf.add(index, candidate, energy)
        yield index, original


def match_known(atoms: Atoms, known: Sequence[Atoms], **tolerances: float) -> int | None:
    """Index of the known crystal that ``atoms`` is, or None; ``tolerances`` are those of :func:`same_crystal`."""
    symprec = tolerances.pop("symprec", 0.1)
    library = _library([remember(crystal, symprec) for crystal in known])
    return _find(PreparedCrystal(atoms, symprec), library, Matcher(**tolerances))


def find_known(
    crystals: Sequence[Atoms], *references: Sequence[Atoms] | str | Path, **tolerances: float
) -> list[Atoms | None]:
    """For each crystal the known one that it is, or None if it is new.

    Parameters
    ----------
    crystals : sequence of Atoms
        Relaxed crystals.
    *references : sequence of Atoms, or path
        Known crystals, in any number of parts: lists, or paths of structure files, ase.db databases and folders as
        :func:`ase_hvae.structures.read_structures` reads them. Prepared once for all ``crystals``.
    **tolerances
        Those of :func:`same_crystal`.

    Returns
    -------
    list of Atoms or None
        The reference with the nearest fingerprint among those that are the same crystal; its ``info`` says what and
        from where it is (``name``, ``source``).

    Raises
    ------
    ValueError
        If there is no reference.
    StructureError
        If a path cannot be read or a structure is not a crystal.
    """
    if not references:
        raise ValueError("no references to compare with; give a list of crystals or a path")
    known = [
        atoms for part in references for atoms in (read_structures(part) if isinstance(part, str | Path) else part)
    ]
    library = KnownCrystals(known, **tolerances)
    return [library.find(atoms) for atoms in crystals]


class KnownCrystals:
    """Known crystals, prepared once and searched as often as needed.

    Parameters
    ----------
    crystals : sequence of Atoms
        Periodic crystals.
    **tolerances
        Those of :func:`same_crystal`.
    """

    def __init__(self, crystals: Sequence[Atoms], **tolerances: float) -> None:
        self.crystals = crystals
        self._symprec = tolerances.pop("symprec", 0.1)
        self._matcher = Matcher(**tolerances)
        self._shelves = _library([PreparedCrystal(atoms, self._symprec) for atoms in crystals])

    def find(self, atoms: Atoms) -> Atoms | None:
        """The known crystal that a crystal is, by nearest fingerprint if there are several; None if it is new."""
        index = _find(PreparedCrystal(atoms, self._symprec), self._shelves, self._matcher)
        return None if index is None else self.crystals[index]


class _Shelf:
    """Kept crystals of one composition, with the numbers by which most of them are passed over."""

    def __init__(self) -> None:
        self.indices: list[int] = []
        self.crystals: list[PreparedCrystal] = []
        self._numbers = np.empty((0, 2))  # energies per atom, in ascending order as they are added; volumes per atom
        self._fingerprints = np.empty((0, 0))

    def add(self, index: int, crystal: PreparedCrystal, energy: float = 0.0) -> None:
        """Append a crystal, under its index and with its energy per atom."""
        n = len(self.indices)
        if n == len(self._numbers):  # grows by doubling
            grown = max(64, 2 * n)
            numbers, fingerprints = np.empty((grown, 2)), np.empty((grown, crystal.fingerprint.size))
            if n:
                numbers[:n], fingerprints[:n] = self._numbers, self._fingerprints
            self._numbers, self._fingerprints = numbers, fingerprints
        self._numbers[n] = energy, crystal.volume
        self._fingerprints[n] = crystal.fingerprint
        self.indices.append(index)
        self.crystals.append(crystal)

    def forget_below(self, energy: float) -> None:
        """Drop crystals of lower energy; added in ascending order of energy."""
        n = len(self.indices)
        start = int(np.searchsorted(self._numbers[:n, 0], energy))
        if start:
            del self.indices[:start], self.crystals[:start]
            self._numbers, self._fingerprints = self._numbers[start:n].copy(), self._fingerprints[start:n].copy()

    def near(self, candidate: PreparedCrystal, matcher: Matcher) -> Iterator[tuple[int, PreparedCrystal]]:
        """Crystals whose volume and fingerprint are near enough, nearest fingerprint first."""
        n = len(self.indices)
        if n == 0:
            return
        ratio = np.abs(candidate.volume / self._numbers[:n, 1] - 1)
        chosen = np.flatnonzero(ratio <= matcher.volume_tolerance)
        distances = np.abs(self._fingerprints[chosen] - candidate.fingerprint).max(axis=1, initial=0.0)
        matcher.counts.compared += len(chosen)
        close = distances <= matcher.fingerprint_tolerance
        for place in chosen[close][np.argsort(distances[close], kind="stable")]:
            yield self.indices[place], self.crystals[place]


def _library(known: Sequence[PreparedCrystal]) -> dict[Any, _Shelf]:
    """Known crystals by composition."""
    shelves: dict[Any, _Shelf] = {}
    for index, crystal in enumerate(known):
        shelves.setdefault(frozenset(crystal.composition.items()), _Shelf()).add(index, crystal)
    return shelves


def _find(candidate: PreparedCrystal, library: dict[Any, _Shelf], matcher: Matcher) -> int | None:
    """Index of the nearest known crystal that the candidate is."""
    shelf = library.get(frozenset(candidate.composition.items()))
    near = iter(()) if shelf is None else shelf.near(candidate, matcher)
    return next((index for index, known in near if matcher.same_near(candidate, known)), None)


def _check_energies(crystals: Sequence[Atoms], energies_per_atom: Sequence[float] | np.ndarray) -> np.ndarray:
    energies = np.asarray(energies_per_atom, dtype=float)
    if energies.shape != (len(crystals),):
        raise ValueError(f"{len(crystals)} crystals need as many energies, not an array of shape {energies.shape}")
    if not np.isfinite(energies).all():
        raise ValueError(f"energy of crystal {int(np.flatnonzero(~np.isfinite(energies))[0])} is not finite")
    return energies
