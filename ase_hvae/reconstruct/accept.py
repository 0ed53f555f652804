"""Judge steered crystals: limits, space group, agreement with the target, near-identical results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import vesin
from ase import Atoms

from ase_hvae.rdf import RDFSettings
from ase_hvae.reconstruct.screen import exact_rdfs
from ase_hvae.reconstruct.tables import Crystals
from ase_hvae.reconstruct.wyckoff import Template

SAME_PEARSON = 1e-4  # Pearson distance between two g(r) of the same crystal
SAME_VOLUME = 2e-3  # relative difference of their volumes per atom
SAME_ANGLES = 0.02  # difference of their bond-angle histograms


def keeps_space_group(entry: Template, atoms: Atoms, tolerance: float = 1e-4) -> bool:
    """Tell whether all operations of the template's space group map the crystal onto itself.

    Parameters
    ----------
    entry : Template
        Space group in the setting of the primitive cell.
    atoms : Atoms
        Crystal in that cell.
    tolerance : float
        Largest displacement of an atom, and relative change of the metric; Å.
    """
    cell, group = atoms.cell.array, entry.group
    metric = cell @ cell.T
    turned = np.einsum("gba,bc,gcd->gad", group.rotations, metric, group.rotations)
    if np.abs(turned - metric).max() > tolerance * np.abs(metric).max():
        return False
    scaled = atoms.get_scaled_positions(wrap=False)
    images = np.einsum("gab,nb->gna", group.rotations, scaled) + group.translations[:, None]
    difference = images[:, :, None] - scaled
    distances = np.linalg.norm((difference - np.round(difference)) @ cell, axis=-1)
    distances[:, atoms.numbers[:, None] != atoms.numbers] = np.inf
    return bool(distances.min(2).max() < tolerance)


def pearson_distances(crystals: Crystals, target: np.ndarray, settings: RDFSettings) -> np.ndarray:
    """Return 1 - Pearson correlation of each crystal's g(r) with the target, all channels joined, (n_crystals,)."""
    return 1 - _correlations(exact_rdfs(crystals, settings), target.reshape(1, -1))[:, 0]


def distinct(structures: Sequence[Atoms], rdfs: np.ndarray) -> list[int]:
    """Return the positions of the crystals that are no near-identical copy of an earlier one.

    Copies agree in g(r), volume per atom and bond angles to within what steering leaves open. Cheap, not a proof of
    identity: crystals that differ by more are all kept.

    Parameters
    ----------
    structures : sequence of Atoms
        Crystals of one composition.
    rdfs : ndarray
        Their g(r), shape (n_structures, n_channels * n_bins).
    """
    if not structures:
        return []
    similar = 1 - _correlations(rdfs, rdfs) < SAME_PEARSON
    volumes = np.array([atoms.get_volume() / len(atoms) for atoms in structures])
    angles: dict[int, np.ndarray] = {}
    kept: list[int] = []
    for index in range(len(structures)):
        alike = [k for k in kept if similar[index, k] and abs(volumes[k] / volumes[index] - 1) < SAME_VOLUME]
        for k in [index, *alike] if alike else []:  # angles only where they decide
            if k not in angles:
                angles[k] = _bond_angles(structures[k])
        if not any(np.abs(angles[k] - angles[index]).sum() < SAME_ANGLES for k in alike):
            kept.append(index)
    return kept


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the Pearson correlation of every row of `a` with every row of `b`."""
    a, b = (rows - rows.mean(1, keepdims=True) for rows in (a, b))
    norm = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    return a @ b.T / np.where(norm > 0, norm, np.inf)


def _bond_angles(atoms: Atoms, n_bins: int = 36, width: float = 0.1) -> np.ndarray:
    """Return smeared histograms of cosines between bonds up to 1.3 times the shortest, (n_species, n_bins), sum 1.

    There is one for each species at the center.
    """
    volume = atoms.get_volume() / len(atoms)
    finder = vesin.NeighborList(cutoff=2.0 * volume ** (1 / 3), full_list=True)
    centers, vectors = finder.compute(atoms.positions, atoms.cell.array, True, "iD")
    lengths = np.linalg.norm(vectors, axis=1)
    soft = np.exp(-np.clip(lengths / lengths.min() - 1.0, 0, None) / 0.15)  # no sharp limit that noise could cross
    units = vectors / lengths[:, None]
    grid = np.linspace(-1, 1, n_bins)
    numbers = sorted(set(atoms.numbers.tolist()))
    total = np.zeros((len(numbers), n_bins))
    for center in range(len(atoms)):
        mine = centers == center
        cosines = units[mine] @ units[mine].T
        weights = np.outer(soft[mine], soft[mine])
        np.fill_diagonal(weights, 0.0)
        strong = weights > 1e-3
        total[numbers.index(atoms.numbers[center])] += (
            weights[strong][:, None] * np.exp(-0.5 * ((cosines[strong][:, None] - grid) / width) ** 2)
        ).sum(0)
    return total / total.sum()
