"""The limits of a relaxation: what it must not leave, and what it cannot heed."""

from __future__ import annotations

from dataclasses import dataclass

from ase import Atoms


@dataclass(frozen=True)
class Bounds:
    """What a relaxation must not leave; beyond it the potential, not the crystal, is at work.

    Attributes
    ----------
    volume_factor : float
        Volume may grow or shrink by at most this factor.
    length_factor : float
        No cell vector may grow by more than this factor.
    min_distance : float
        Smallest distance between two atoms; Å.
    """

    volume_factor: float = 3.0
    length_factor: float = 4.0
    min_distance: float = 0.5

    def violation(self, volume_ratio: float, stretch: float, shortest: float) -> str | None:
        """Say which bound is left, None if none is.

        Parameters
        ----------
        volume_ratio : float
            Volume by that of the start.
        stretch : float
            Largest growth of a cell vector, as a factor.
        shortest : float
            Smallest distance between two atoms; Å.
        """
        if not 1 / self.volume_factor <= volume_ratio <= self.volume_factor:
            return f"the volume changed by a factor {volume_ratio:.3g}, limit {self.volume_factor:g}"
        if stretch > self.length_factor:
            return f"a cell vector grew by a factor {stretch:.3g}, limit {self.length_factor:g}"
        if shortest < self.min_distance:
            return f"two atoms are {shortest:.3g} Å apart, limit {self.min_distance:g} Å"
        return None


def no_constraints(atoms: Atoms) -> str:
    """Say that the constraints of a structure cannot be heeded, since all atoms move with the cell, and what to do."""
    kinds = ", ".join(sorted({type(constraint).__name__ for constraint in atoms.constraints}))
    return (
        f"has constraints ({kinds}), but all atoms and the cell are relaxed; remove them with atoms.set_constraint(), "
        "or relax with one of ASE's optimizers"
    )
