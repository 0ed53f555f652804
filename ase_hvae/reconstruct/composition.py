"""The composition of the crystals of a search: which species, how many of each, and in which pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ase.formula import Formula

from ase_hvae.errors import ReconstructionError
from ase_hvae.rdf import channel_pairs


@dataclass(frozen=True)
class Composition:
    """A reduced chemical formula.

    Attributes
    ----------
    species : tuple of str
        Chemical symbols, sorted.
    counts : tuple of int
        Atoms of each species in a formula unit.
    """

    species: tuple[str, ...]
    counts: tuple[int, ...]

    @classmethod
    def parse(cls, formula: str) -> Composition:
        """Read a formula as ``Si``, ``SiC`` or ``SrTiO3``; multiples of a formula unit are reduced.

        Raises
        ------
        ReconstructionError
            If it is none.
        """
        try:
            counts = Formula(formula, strict=True).count() if isinstance(formula, str) else {}
        except ValueError:
            counts = {}
        if not counts or min(counts.values()) < 1 or "X" in counts:
            raise ReconstructionError(f"{formula!r} is no chemical formula; give one as 'Si', 'SiC' or 'SrTiO3'")
        species, unit = tuple(sorted(counts)), math.gcd(*counts.values())
        return cls(species, tuple(counts[name] // unit for name in species))

    def __str__(self) -> str:
        return Formula.from_dict(dict(zip(self.species, self.counts, strict=True))).format("hill")

    @property
    def channels(self) -> list[tuple[str, str]]:
        """Pairs of species in the order of the RDF's channels."""
        return channel_pairs(self.species)

    @property
    def fractions(self) -> dict[str, float]:
        """Share of the atoms by species."""
        return {name: count / sum(self.counts) for name, count in zip(self.species, self.counts, strict=True)}

    def atoms_of(self, natoms: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Return the atoms of each species for those of the numbers of atoms that hold whole formula units.

        Raises
        ------
        ReconstructionError
            If none does.
        """
        unit = sum(self.counts)
        whole = [n // unit for n in natoms if n % unit == 0]
        if not whole:
            raise ReconstructionError(
                f"natoms {', '.join(map(str, natoms))} hold no whole formula unit of {self}, which has {unit} atoms; "
                f"allow a multiple of {unit}"
            )
        return tuple(tuple(n * count for count in self.counts) for n in whole)
