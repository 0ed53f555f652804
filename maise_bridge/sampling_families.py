"""Families of configurations around known crystals, and random symmetric crystals of their compositions.

Each family is a function of a parent, a generator of random numbers, the largest number of atoms and the number of the
draw; it returns a structure, or None where the parent offers none.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms

VOLUMES = (0.75, 1.35)  # of the parent's, in volume scans
STRAINED_VOLUMES = (0.85, 1.2)
STRAIN = 0.04  # standard deviation of strain components of rattled crystals
RATTLES = (0.02, 0.25)  # Å, standard deviations of displacements
PHONON_RATTLES = (0.01, 0.06)  # Å
ELASTIC_STRAINS = (0.005, 0.02)
VACANCY_RATTLE = 0.05  # Å
RANDOM_VOLUMES = (0.8, 1.4)
_CENTRINGS = {"P": 1, "A": 2, "B": 2, "C": 2, "I": 2, "R": 3, "F": 4}  # primitive cells in a conventional one


@dataclass(frozen=True, eq=False)
class Parent:
    """A known crystal.

    Attributes
    ----------
    name : str
        Names it in the tags of its descendants; no blanks.
    atoms : Atoms
    """

    name: str
    atoms: Atoms


Family = Callable[[Parent, np.random.Generator, int, int], Atoms | None]


def volume(parent: Parent, rng: np.random.Generator, max_atoms: int, number: int) -> Atoms | None:
    """Volume scan at fixed shape; successive draws fill the range evenly (van der Corput)."""
    low, high = VOLUMES
    return _strained(parent.atoms, np.eye(3) * (low + (high - low) * _van_der_corput(number + 1)) ** (1 / 3))


def rattle(parent: Parent, rng: np.random.Generator, max_atoms: int, number: int) -> Atoms | None:
    """Strain of any shape, another volume, and displaced atoms; sometimes in a supercell."""
    cells = int(rng.integers(1, max_atoms // len(parent.atoms) + 1))
    atoms = _strained(supercell(parent.atoms, cells * len(parent.atoms)), _random_strain(rng, STRAIN))
    scale = rng.uniform(*STRAINED_VOLUMES) * len(atoms) * _volume_per_atom(parent.atoms) / atoms.get_volume()
    atoms = _strained(atoms, np.eye(3) * scale ** (1 / 3))
    return _displaced(atoms, rng, rng.uniform(*RATTLES))


def phonon(parent: Parent, rng: np.random.Generator, max_atoms: int, number: int) -> Atoms | None:
    """Small displacements in a supercell, the largest or a smaller one."""
    most = max_atoms // len(parent.atoms)
    cells = most if number % 2 == 0 or most < 3 else int(rng.integers(2, most + 1))
    atoms = supercell(parent.atoms, cells * len(parent.atoms))
    if len(atoms) == 1:  # one atom a cell feels no force
        return None
    return _displaced(atoms, rng, rng.uniform(*PHONON_RATTLES))


def elastic(parent: Parent, rng: np.random.Generator, max_atoms: int, number: int) -> Atoms | None:
    """Small strain along one Voigt component, or in any direction; fractional coordinates are kept."""
    size = rng.uniform(*ELASTIC_STRAINS) * rng.choice((-1.0, 1.0))
    voigt = np.zeros(6)
    if rng.random() < 0.7:
        voigt[rng.integers(6)] = size
    else:
        direction = rng.normal(size=6)
        voigt = size * direction / np.linalg.norm(direction)
    xx, yy, zz, yz, xz, xy = voigt
    strain = np.array([[xx, xy / 2, xz / 2], [xy / 2, yy, yz / 2], [xz / 2, yz / 2, zz]])
    return _strained(parent.atoms, np.eye(3) + strain)


def vacancy(parent: Parent, rng: np.random.Generator, max_atoms: int, number: int) -> Atoms | None:
    """A supercell that lacks an atom, the others slightly displaced; None if it would keep fewer than three."""
    atoms = supercell(parent.atoms, max_atoms + 1)
    if len(atoms) < 4:
        return None
    del atoms[int(rng.integers(len(atoms)))]
    return _displaced(atoms, rng, VACANCY_RATTLE)


def random_crystal(parent: Parent, rng: np.random.Generator, max_atoms: int, number: int) -> Atoms | None:
    """Random symmetric crystal of the parent's composition by PyXtal, as a primitive cell; None if the draw failed.

    The space group, the number of formula units and the volume per atom are drawn evenly.
    """
    from pyxtal import pyxtal
    from pyxtal.symmetry import Group

    from maise_bridge.labelling.calculators import primitive_cell

    counts = parent.atoms.symbols.formula.reduce()[0].count()
    units = int(rng.integers(1, max_atoms // sum(counts.values()) + 1))
    group = int(rng.integers(1, 231))
    n_conventional = units * _CENTRINGS[Group(group, quick=True).symbol[0]]
    crystal = pyxtal()
    try:
        crystal.from_random(
            3, group, list(counts), [count * n_conventional for count in counts.values()], random_state=rng
        )
    except Exception:  # PyXtal raises many kinds for requests that no Wyckoff positions meet
        return None
    if not crystal.valid:
        return None
    drawn = crystal.to_ase()
    bare = Atoms(drawn.numbers, cell=drawn.cell, scaled_positions=drawn.get_scaled_positions(), pbc=True)
    atoms = primitive_cell(bare, symprec=1e-3)
    scale = rng.uniform(*RANDOM_VOLUMES) * _volume_per_atom(parent.atoms) / _volume_per_atom(atoms)
    atoms = _strained(atoms, np.eye(3) * scale ** (1 / 3))
    atoms.info["space_group"] = group
    return atoms if len(atoms) <= max_atoms else None


FAMILIES: dict[str, tuple[Family, str, float]] = {
    "volume": (volume, "ev", 0.15),
    "rattle": (rattle, "rattle", 0.3),
    "phonon": (phonon, "phonon", 0.15),
    "elastic": (elastic, "elastic", 0.1),
    "vacancy": (vacancy, "vacancy", 0.05),
    "random": (random_crystal, "random", 0.25),
}  # the function, the tag before the parent's name, and the share of a pool


def supercell(atoms: Atoms, max_atoms: int) -> Atoms:
    """Return the smallest diagonal supercell, of at most `max_atoms` atoms, whose faces lie farthest apart."""
    most = max(1, max_atoms // len(atoms))
    heights = atoms.get_volume() / np.linalg.norm(np.cross(atoms.cell[[1, 2, 0]], atoms.cell[[2, 0, 1]]), axis=1)
    repeats = [r for r in itertools.product(range(1, most + 1), repeat=3) if np.prod(r) <= most]
    best = max(repeats, key=lambda r: (round(min(heights * r), 6), -int(np.prod(r)), r))
    return atoms.repeat(best)


def _van_der_corput(number: int) -> float:
    """Binary digits of a number, mirrored behind the point."""
    digits = f"{number:b}"[::-1]
    return int(digits, 2) / 2.0 ** len(digits)


def _volume_per_atom(atoms: Atoms) -> float:
    return atoms.get_volume() / len(atoms)


def _random_strain(rng: np.random.Generator, size: float) -> np.ndarray:
    components = rng.normal(scale=size, size=(3, 3))
    return np.eye(3) + 0.5 * (components + components.T)


def _strained(atoms: Atoms, deformation: np.ndarray) -> Atoms:
    strained = atoms.copy()
    strained.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
    return strained


def _displaced(atoms: Atoms, rng: np.random.Generator, size: float) -> Atoms:
    displaced = atoms.copy()
    displaced.positions += rng.normal(scale=size, size=displaced.positions.shape)
    return displaced
