"""Which labelled rows a fit may see: MAISE's filters, and choices by what rows record."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from maise_bridge.depo import Category
from maise_bridge.maise_data import energy_threshold

if TYPE_CHECKING:
    from maise_bridge.dataset import Labels


@dataclass(frozen=True)
class Filters:
    """Rows that are left out. ECUT and EMAX look at one category at a time: a label file, or a folder of a DEPO tree.

    Attributes
    ----------
    ecut : float
        Share of the rows to keep, those of lowest energy per atom; MAISE's ECUT.
    emax : float
        Largest energy above the lowest; eV/atom.
    fmax : float
        Largest force component; eV/Å.
    vmin, vmax : float
        Range of the volume per atom; Å³. MAISE reads such limits and does not use them.
    kspacing : float
        Coarsest k spacing, where recorded; 1/Å.
    only : tuple of (str, str)
        What rows must record, and a shell pattern of its value, such as ``("ecut", "260")``.
    """

    ecut: float = 1.0
    emax: float = math.inf
    fmax: float = math.inf
    vmin: float = 0.0
    vmax: float = math.inf
    kspacing: float = math.inf
    only: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for name in ("ecut", "emax", "fmax", "vmax", "kspacing"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        if not 0 <= self.vmin < self.vmax:
            raise ValueError(f"volumes from {self.vmin} to {self.vmax} Å³ an atom hold nothing")


def recorded_rows(labels: Labels, filters: Filters) -> list[tuple[str, np.ndarray]]:
    """Filters by what rows record: name and mask (n,) of the rows to keep, of each."""
    masks = [
        (f"only {key}={pattern}", np.array([fnmatchcase(row.get(key, ""), pattern) for row in labels.records]))
        for key, pattern in filters.only
    ]
    if math.isfinite(filters.kspacing):
        masks.append(("kspacing", ~(labels.spacings > filters.kspacing + 1e-9)))
    return masks


def physical_rows(labels: Labels, filters: Filters, categories: Mapping[str, Category]) -> list[tuple[str, np.ndarray]]:
    """Filters by energy, force, volume and use: name and mask (n,) of the rows to keep, of each."""
    found = [categories.get(name, Category()) for name in labels.categories]
    energies, filtered = labels.energies_per_atom, np.array([category.filtered for category in found])
    names = np.array(labels.categories)
    thresholds, lowest = np.empty(len(labels)), np.empty(len(labels))
    for name in set(labels.categories):
        rows = names == name
        own = categories.get(name, Category())
        thresholds[rows] = energy_threshold(energies[rows], own.ecut or filters.ecut)
        lowest[rows] = energies[rows].min()
    forces = np.array([np.abs(row).max() for row in labels.forces])
    volumes = np.array([atoms.get_volume() for atoms in labels.structures]) / labels.n_atoms

    def limits(get: Callable[[Category], float], default: float) -> np.ndarray:
        """Return a limit of the category of each row, the default where it has none."""
        return np.array([get(category) or default for category in found])

    return [
        ("discarded", np.array([category.use != 4 for category in found])),
        ("ecut", ~filtered | (energies < thresholds)),
        ("emax", ~filtered | (energies - lowest <= limits(lambda category: category.emax, filters.emax))),
        ("fmax", ~filtered | (forces <= limits(lambda category: category.fmax, filters.fmax))),
        ("volume", ~filtered | ((volumes >= filters.vmin) & (volumes <= filters.vmax))),
    ]
