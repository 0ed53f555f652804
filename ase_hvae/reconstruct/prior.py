"""The prior over (space group, Wyckoff letters): what known crystals have, mixed with all there is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from ase_hvae.errors import ReconstructionError
from ase_hvae.reconstruct.combinations import draw_choice, feasible, least_atoms
from ase_hvae.reconstruct.composition import Composition
from ase_hvae.reconstruct.wyckoff import SYSTEMS, Template, template

ELEMENT = Composition(("",), (1,))  # crystals of one species, whichever
FREQUENT_SHARE = 0.8  # share of the unlearned draws that take a crystal system, then groups as often as prototypes do
# fmt: off
PROTOTYPES = {  # crystal prototypes in AFLOW's library by space group (Mehl et al., Comput. Mater. Sci. 136, S1, 2017)
    1: 2, 2: 2, 3: 1, 4: 1, 5: 1, 8: 1, 9: 1, 11: 3, 12: 5, 13: 2, 14: 3, 15: 4, 16: 1, 18: 1, 19: 1, 20: 1, 25: 1,
    28: 1, 31: 1, 33: 2, 36: 1, 38: 2, 41: 2, 43: 1, 44: 1, 47: 1, 51: 1, 56: 1, 57: 2, 58: 3, 59: 3, 61: 2, 62: 14,
    63: 4, 64: 4, 65: 3, 69: 1, 70: 3, 71: 2, 72: 1, 82: 2, 84: 1, 87: 2, 92: 1, 96: 2, 99: 1, 113: 1, 121: 1,
    122: 1, 123: 4, 127: 1, 129: 6, 131: 1, 134: 1, 136: 5, 138: 1, 139: 13, 140: 3, 141: 8, 142: 1, 147: 1, 148: 4,
    150: 1, 151: 1, 152: 2, 154: 1, 155: 2, 160: 2, 161: 1, 162: 1, 163: 1, 164: 2, 165: 1, 166: 14, 167: 3, 180: 3,
    182: 1, 186: 6, 187: 2, 189: 1, 191: 7, 194: 22, 197: 1, 198: 5, 199: 1, 204: 3, 205: 3, 206: 2, 213: 1, 215: 3,
    216: 3, 217: 3, 220: 2, 221: 10, 223: 2, 224: 1, 225: 10, 227: 9, 229: 6, 230: 1,
}
# fmt: on


@dataclass(frozen=True)
class WyckoffPrior:
    """Distribution over (space group, Wyckoff letters): what known crystals have, mixed with all there is.

    Attributes
    ----------
    learned : tuple of (int, tuple of str)
        Space group and orbits of the known crystals, each a letter and, in crystals of several species, a chemical
        symbol, as ``a`` or ``a Na``; repeated entries weigh more.
    uniform_share : float
        Share of draws that know nothing of them.
    spacegroups : tuple of int
        Space groups to draw from.
    """

    learned: tuple[tuple[int, tuple[str, ...]], ...] = ()
    uniform_share: float = 0.5
    spacegroups: tuple[int, ...] = tuple(range(1, 231))

    def __post_init__(self) -> None:
        if not 0 <= self.uniform_share <= 1:
            raise ValueError(f"uniform_share must be between 0 and 1, got {self.uniform_share}")
        wrong = [number for number in self.spacegroups if not 1 <= number <= 230]
        if wrong or not self.spacegroups:
            raise ValueError(f"spacegroups must be numbers from 1 to 230, got {wrong or 'none'}")

    @classmethod
    def from_sites(
        cls,
        sites: Iterable[tuple[int, Sequence[str]]],
        *,
        uniform_share: float = 0.5,
        spacegroups: Sequence[int] = tuple(range(1, 231)),
    ) -> WyckoffPrior:
        """Prior of crystals given by space-group number and occupied Wyckoff positions.

        They are named as by `ase_hvae.symmetry.wyckoff_sites`: ``(227, ("8a",))``, ``(225, ("4b Cl", "4a Na"))``.
        """
        learned = ((number, tuple(sorted(site.lstrip("0123456789") for site in orbits))) for number, orbits in sites)
        return cls(tuple(learned), uniform_share, tuple(spacegroups))

    @classmethod
    def from_structures(cls, structures: Iterable[Atoms], *, uniform_share: float = 0.5) -> WyckoffPrior:
        """Learn the space groups and occupied Wyckoff positions of known crystals."""
        from ase_hvae.symmetry import wyckoff_sites

        return cls.from_sites((wyckoff_sites(atoms) for atoms in structures), uniform_share=uniform_share)

    def draw(
        self, natoms: Sequence[int], rng: np.random.Generator, composition: Composition = ELEMENT
    ) -> Iterator[Template]:
        """Draw templates with a number of atoms out of `natoms`, without end.

        Draws that are not from what was learned take a number of atoms, mostly a crystal system and a space group as
        often as its prototypes have it, and orbits, those with free coordinates as much more often as prototypes have
        them (`draw_choice`).

        Raises
        ------
        ReconstructionError
            If no space group can hold any of `natoms`, or these hold no whole formula unit.
        """
        amounts = composition.atoms_of(natoms)
        groups = {n: [number for number in self.spacegroups if feasible(number, n)] for n in amounts}
        sizes = [n for n in amounts if groups[n]]
        known = self._known(amounts, composition)
        if not (sizes or known):
            of, each = (f"of {composition} ", " of each species") if len(composition.species) > 1 else ("", "")
            raise ReconstructionError(
                f"no crystal {of}with {_ranges([sum(n) for n in amounts])} atoms in the primitive cell "
                f"exists in space groups {_ranges(self.spacegroups)}, which need at least "
                f"{min(map(least_atoms, self.spacegroups))}{each}; allow other numbers of atoms or more space groups"
            )
        return self._draw(groups, sizes, known, rng)

    def _known(self, amounts: Sequence[tuple[int, ...]], composition: Composition) -> list[Template]:
        """Return the templates of the known crystals that have the composition and allowed numbers of atoms."""
        names = composition.species if len(composition.species) > 1 else ("",)  # elements name no species
        known = []
        for number, orbits in self.learned:
            letters, symbols = zip(*(orbit.partition(" ")[::2] for orbit in orbits), strict=True)
            if number in self.spacegroups and set(symbols) == set(names):
                entry = template(number, letters, tuple(names.index(symbol) for symbol in symbols))
                if tuple(np.bincount(entry.species)) in amounts:
                    known.append(entry)
        return known

    def _draw(
        self,
        groups: Mapping[tuple[int, ...], Sequence[int]],
        sizes: Sequence[tuple[int, ...]],
        known: Sequence[Template],
        rng: np.random.Generator,
    ) -> Iterator[Template]:
        chances = {n: _chances(groups[n]) for n in sizes}
        while True:
            if known and (rng.random() >= self.uniform_share or not sizes):
                yield known[int(rng.integers(len(known)))]
                continue
            n_atoms = sizes[int(rng.integers(len(sizes)))]
            number = groups[n_atoms][int(np.searchsorted(chances[n_atoms], rng.random(), side="right"))]
            yield template(number, *draw_choice(number, n_atoms, rng))


def _chances(numbers: Sequence[int]) -> np.ndarray:
    """Return the cumulative chances of space groups, those of all crystal systems together the same.

    As often as prototypes have them, crystals of low symmetry, which take the most proposals, would get the fewest.
    """
    counts = np.array([PROTOTYPES.get(number, 0) for number in numbers], float)
    systems = np.searchsorted(list(SYSTEMS.values()), numbers)
    totals = np.bincount(systems, counts, minlength=len(SYSTEMS))
    n_systems = max(int((totals > 0).sum()), 1)
    frequent = FREQUENT_SHARE / n_systems * counts / np.where(totals > 0, totals, 1.0)[systems]
    chances = np.cumsum(frequent + (1 - frequent.sum()) / len(numbers))
    return chances / chances[-1]


def _ranges(numbers: Sequence[int]) -> str:
    numbers = sorted(numbers)
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
