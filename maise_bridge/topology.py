"""Which atoms are bonded and which bonds form triangles, apart from where the atoms are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from maise_bridge import kernels


@dataclass(frozen=True, eq=False)
class Topology:
    """Which atoms are bonded, each bond once: from the lower to the higher of two atom images.

    Images are ordered by lattice translation, then by number. Bonds are sorted by `centre`, then by the image that they
    lead to. Atoms of all structures are numbered through, structure after structure.

    Attributes
    ----------
    structure : ndarray, shape (n_atoms,)
        Number of the structure an atom belongs to.
    centre, neighbour : ndarray, shape (n_bonds,)
        Atoms i and j of each bond.
    shift : ndarray, shape (n_bonds, 3)
        Lattice translation of j in units of the cell vectors, integers.
    parts : tuple of Topology
        What :meth:`join` was given; empty otherwise.
    """

    structure: np.ndarray
    centre: np.ndarray
    neighbour: np.ndarray
    shift: np.ndarray
    parts: tuple[Topology, ...] = ()

    @classmethod
    def join(cls, parts: Sequence[Topology]) -> Topology:
        """Put topologies of single structures, at least one, together to that of a batch."""
        if len(parts) == 1:
            return parts[0]
        sizes = [len(part.structure) for part in parts]
        first_atoms = np.repeat(offsets(sizes), [len(part.centre) for part in parts])
        return cls(
            structure=np.repeat(np.arange(len(parts)), sizes),
            centre=np.concatenate([part.centre for part in parts]) + first_atoms,
            neighbour=np.concatenate([part.neighbour for part in parts]) + first_atoms,
            shift=np.concatenate([part.shift for part in parts]),
            parts=tuple(parts),
        )

    def split(self) -> list[Topology]:
        """Topologies of the single structures, atoms numbered from 0; :meth:`join` puts them together again."""
        if self.structure[-1] == 0:
            return [self]
        first_atoms = np.searchsorted(self.structure, np.arange(self.structure[-1] + 2))
        first_bonds = np.searchsorted(self.centre, first_atoms)
        out = []
        for s, first in enumerate(first_atoms[:-1].tolist()):
            bonds = slice(first_bonds[s], first_bonds[s + 1])
            structure = np.zeros(first_atoms[s + 1] - first, dtype=np.int64)
            ends = self.centre[bonds] - first, self.neighbour[bonds] - first
            out.append(Topology(structure, *ends, self.shift[bonds]))
        return out

    @cached_property
    def triangles(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Triangles of bonds ij, ik and jk: `starts` (n_bonds + 1,) of those of each ij, their `ik` and `jk`."""
        if self.parts:
            return self._joined_triangles()
        first, keys, steps = self._order
        starts = np.empty(len(self.centre) + 1, dtype=np.int64)
        room = 16 + int(0.4 * len(keys) ** 2 / len(self.structure))  # a bit more than crystals usually have
        while True:
            second, third = np.empty((2, room), dtype=np.int32)
            n_found = kernels.find_triangles(first, self.neighbour, keys, steps, second, third, starts)
            if n_found <= room:
                return starts, second[:n_found].copy(), third[:n_found].copy()
            room = n_found

    def _joined_triangles(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        all_starts, all_second, all_third = zip(*(part.triangles for part in self.parts), strict=True)
        n_triangles = [len(second) for second in all_second]
        first_bonds = np.repeat(offsets([len(part.centre) for part in self.parts]).astype(np.int32), n_triangles)
        starts = [part[:-1] + first for part, first in zip(all_starts, offsets(n_triangles).tolist(), strict=True)]
        starts.append(np.array([len(first_bonds)]))
        return np.concatenate(starts), np.concatenate(all_second) + first_bonds, np.concatenate(all_third) + first_bonds

    @cached_property
    def _order(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First bond of each atom (n_atoms + 1,); key and offset (n_bonds,) of :func:`kernels.find_triangles`."""
        n_atoms = len(self.structure)
        first = np.searchsorted(self.centre, np.arange(n_atoms + 1))
        steps = translation_keys(self.shift) * n_atoms
        return first, steps + self.neighbour, steps

    @cached_property
    def both_ways(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centre, neighbour and shift (as floats) of every bond in both directions, sorted by centre."""
        centre = np.concatenate([self.centre, self.neighbour])
        order = np.argsort(centre, kind="stable")
        neighbour = np.concatenate([self.neighbour, self.centre])[order]
        return centre[order], neighbour, np.concatenate([self.shift, -self.shift])[order].astype(float)


def offsets(sizes: Sequence[int]) -> np.ndarray:
    """Where each part begins in the concatenation of parts, (n,)."""
    return np.concatenate([[0], np.cumsum(sizes[:-1])]).astype(np.int64)


def translation_keys(shift: np.ndarray) -> np.ndarray:
    """Numbers (n,) in the lexical order of translations (n, 3), which add up as the translations do."""
    base = 4 * int(np.abs(shift).max(initial=0)) + 3
    return (shift[:, 0] * base + shift[:, 1]) * base + shift[:, 2]
