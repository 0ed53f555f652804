"""What training minimises: weighted squared errors of energies, forces and stresses, batched by structure size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor

from maise_bridge.basis import Basis
from maise_bridge.dataset import Labels
from maise_bridge.network import WhitenedNetwork, Whitening
from maise_bridge.tables import descriptor_tables

Table = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class ObjectiveSettings:
    """How errors are weighed.

    Attributes
    ----------
    energy_error, force_error, stress_error : float
        Errors that weigh the same: eV/atom, eV/Å, eV/Å³.
    force_softening : float
        Force errors of an atom are divided by 1 + |F| / force_softening; eV/Å.
    energy_window : float
        Rows weigh 1 / (1 + (dE / energy_window)²), dE above the lowest; eV/atom.
    coarse_spacing, coarse_weight : float
        Energies of cells of 3 and more atoms with k spacing at or above this (1/Å) are weighed by that.
    tag_weights : tuple of (str, float)
        Shell patterns of tags and factors of their rows' weights.
    """

    energy_error: float = 0.01
    force_error: float = 0.1
    stress_error: float = 0.005
    force_softening: float = 2.0
    energy_window: float = 0.5
    coarse_spacing: float = 0.29
    coarse_weight: float = 0.5
    tag_weights: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        for name in ("energy_error", "force_error", "stress_error", "force_softening", "energy_window"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")


@dataclass(frozen=True, eq=False)
class Batch:
    """Structures of one size: whitened inputs, tables, targets, weights (first axis: structure)."""

    inputs: Tensor
    tables: Tensor
    energies: Tensor
    derivatives: Tensor  # (n_batch, 3 n_atoms + 6), -forces then volume * stress
    energy_weights: Tensor  # (n_batch,)
    derivative_weights: Tensor  # (n_batch, 3 n_atoms + 6)

    def __len__(self) -> int:
        return len(self.energies)

    def take(self, rows: Tensor) -> Batch:
        """Return some structures."""
        return Batch(*(getattr(self, name).index_select(0, rows) for name in self.__dataclass_fields__))

    def to(self, dtype: torch.dtype) -> Batch:
        """Return the same numbers in another precision."""
        return Batch(*(getattr(self, name).to(dtype) for name in self.__dataclass_fields__))


def compute_tables(labels: Labels, basis: Basis) -> list[Table]:
    """Descriptors and their derivatives of all structures, see :func:`maise_bridge.tables.descriptor_tables`."""
    species = labels.species
    return [
        (values, derivatives.astype(np.float32))
        for values, derivatives in (descriptor_tables(atoms, basis, species) for atoms in labels.structures)
    ]


def row_weights(labels: Labels, settings: ObjectiveSettings, lowest: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights of rows, and of their energies among them; both (n,)."""
    above = labels.energies_per_atom - lowest
    weights = 1.0 / (1.0 + (above / settings.energy_window) ** 2)
    for pattern, factor in settings.tag_weights:
        weights = weights * np.array([factor if fnmatchcase(tag, pattern) else 1.0 for tag in labels.tags])
    coarse = (labels.n_atoms > 2) & (np.nan_to_num(labels.spacings) >= settings.coarse_spacing)
    return weights, weights * np.where(coarse, settings.coarse_weight, 1.0)


def make_batches(
    labels: Labels,
    tables: Sequence[Table],
    whitening: Whitening,
    settings: ObjectiveSettings,
    *,
    lowest: float,
    dtype: torch.dtype = torch.float32,
) -> list[Batch]:
    """Group structures by size, one batch a size; `lowest` (eV/atom) is the zero of energies."""
    weights, energy_weights = row_weights(labels, settings, lowest)
    n_atoms = labels.n_atoms
    batches = []
    for size in np.unique(n_atoms):
        rows = np.flatnonzero(n_atoms == size).tolist()
        columns: dict[str, list[np.ndarray]] = {"targets": [], "weights": []}
        for row in rows:
            target, weight = _derivative_targets(labels, row, settings)
            columns["targets"].append(target)
            columns["weights"].append(weights[row] * weight)
        batches.append(
            Batch(
                inputs=torch.as_tensor(np.stack([whitening.inputs(tables[r][0]) for r in rows])),
                tables=torch.as_tensor(np.stack([whitening.derivatives(tables[r][1]).astype("f4") for r in rows])),
                energies=torch.as_tensor(labels.energies[rows] - size * lowest),
                derivatives=torch.as_tensor(np.stack(columns["targets"])),
                energy_weights=torch.as_tensor(energy_weights[rows] / (size * settings.energy_error) ** 2),
                derivative_weights=torch.as_tensor(np.stack(columns["weights"])),
            ).to(dtype)
        )
    return batches


def _derivative_targets(labels: Labels, row: int, settings: ObjectiveSettings) -> tuple[np.ndarray, np.ndarray]:
    """Targets -F and V * stress, and the weights of their squared errors; (3 n_atoms + 6,)."""
    forces, stress = labels.forces[row], labels.stresses[row]
    volume = labels.structures[row].get_volume()
    soft = 1.0 + np.linalg.norm(forces, axis=1, keepdims=True) / settings.force_softening
    force_weights = np.broadcast_to(1.0 / (soft * settings.force_error) ** 2 / forces.size, forces.shape)
    stress_weight = 1.0 / (volume * settings.stress_error) ** 2 / 6
    known = np.isfinite(stress)
    return (
        np.concatenate([-forces.ravel(), np.where(known, stress, 0.0) * volume]),
        np.concatenate([force_weights.ravel(), np.where(known, stress_weight, 0.0)]),
    )


def objective(network: WhitenedNetwork, batches: Sequence[Batch]) -> Tensor:
    """Weighted sum of squared errors over structures, in units of the errors in the settings; no penalty."""
    total = torch.zeros((), dtype=batches[0].energies.dtype)
    for batch in batches:
        energies, derivatives = network(batch.inputs, batch.tables)
        total = total + (batch.energy_weights * (energies - batch.energies) ** 2).sum()
        total = total + (batch.derivative_weights * (derivatives - batch.derivatives) ** 2).sum()
    return total
