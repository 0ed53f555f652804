"""The decision whether two crystals are one."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from ase import Atoms

from ase_hvae.compare.crystal import N_SHELLS, PreparedCrystal
from ase_hvae.compare.topology import widest_gap

# A gap narrower than this (in shortest distances) does not separate bonds from non-bonds safely.
MIN_BOND_GAP = 0.04


def same_crystal(
    a: Atoms,
    b: Atoms,
    *,
    volume_tolerance: float = 0.2,
    fingerprint_tolerance: float = 0.1,
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
    fingerprint_tolerance : float
        Largest difference of the mean distances of the k-th neighbours, for any k, in units of the cube root of the
        volume per atom. A strain of 1 % with atoms off by 0.02 Å makes 0.02 in silicon.
    ltol, stol, angle_tol : float
        Tolerances of pymatgen's StructureMatcher: lengths (relative), sites (in units of the cube root of the volume
        per atom) and angles (degrees). Where bonds are not well defined ``stol`` is divided by four.
    symprec : float
        Tolerance for finding the primitive cell, Å.

    Returns
    -------
    bool
        True if composition, volume, neighbour distances, primitive cell, bond topology and geometry agree.
    """
    matcher = Matcher(volume_tolerance, fingerprint_tolerance, ltol, stol, angle_tol)
    return matcher.same(PreparedCrystal(a, symprec), PreparedCrystal(b, symprec))


@dataclass
class MatchCounts:
    """How many pairs came to each step of the decision."""

    compared: int = 0
    near: int = 0
    same_bonds: int = 0
    same: int = 0


@dataclass(frozen=True)
class Matcher:
    """The decision of :func:`same_crystal` with its tolerances; counts what it does."""

    volume_tolerance: float = 0.2
    fingerprint_tolerance: float = 0.1
    ltol: float = 0.2
    stol: float = 0.2
    angle_tol: float = 5.0
    counts: MatchCounts = field(default_factory=MatchCounts, init=False, compare=False)

    def same(self, a: PreparedCrystal, b: PreparedCrystal) -> bool:
        """The whole decision, cheap questions first."""
        self.counts.compared += 1
        if a.composition != b.composition or abs(a.volume / b.volume - 1) > self.volume_tolerance:
            return False
        if np.abs(a.fingerprint - b.fingerprint).max() > self.fingerprint_tolerance:
            return False
        return self.same_near(a, b)

    def same_near(self, a: PreparedCrystal, b: PreparedCrystal) -> bool:
        """The decision for crystals whose composition, volume and fingerprint agree."""
        self.counts.near += 1
        distances = np.sort(np.concatenate([a.reduced_distances, b.reduced_distances]))
        cutoff, gap = widest_gap(distances / distances[0])
        stol = self.stol / 4
        if gap >= MIN_BOND_GAP:
            stol, longest = self.stol, cutoff * distances[0]
            if any(a.sequences(longest, n) != b.sequences(longest, n) for n in (3, N_SHELLS)):  # cheap ones first
                return False
        self.counts.same_bonds += 1
        same = self._fit(a, b, stol)
        self.counts.same += same
        return same

    def _fit(self, a: PreparedCrystal, b: PreparedCrystal, stol: float) -> bool:
        """Geometry of the primitive cells; StructureMatcher maps lattices by rotations and mirrors alike."""
        from pymatgen.core.structure_matcher import StructureMatcher

        first, second = a.structure, b.structure
        if len(first) != len(second):
            first, second = a.loose_structure, b.loose_structure
        if len(first) != len(second):
            return False
        matcher = StructureMatcher(ltol=self.ltol, stol=stol, angle_tol=self.angle_tol, primitive_cell=False)
        return bool(matcher.fit(first, second, skip_structure_reduction=True))
