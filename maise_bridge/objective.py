"""What training minimises: weighted squared errors of energies, forces and stresses, batched by structure size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maise_bridge.basis import Basis
from maise_bridge.dataset import Labels, match_tags
from maise_bridge.inputs import species_indices
from maise_bridge.maise_data import mark_atoms
from maise_bridge.network import SpeciesNetworks, Whitening
from maise_bridge.tables import descriptor_tables

Table = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Weights:
    """Factors of squared errors of rows.

    Attributes
    ----------
    energies : ndarray, shape (n,)
        Of energies of cells; 1/eV².
    derivatives : tuple of ndarray, shapes (3 n_atoms + 6,)
        Of -forces (Å²/eV²), then of volume times stress (1/eV²).
    norm : float
        What the sum of squares is divided by.
    """

    energies: np.ndarray
    derivatives: tuple[np.ndarray, ...]
    norm: float


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
    near_tolerance, near_window : float
        Share of force_error and stress_error that rows at the lowest energy are allowed, and dE (eV/atom) over which
        the share rises by one. Curvatures of the lowest minimum, as its elastic constants, follow from forces and
        stresses far smaller than the errors that are fair elsewhere.
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
    near_tolerance: float = 1.0
    near_window: float = 0.4
    coarse_spacing: float = 0.29
    coarse_weight: float = 0.5
    tag_weights: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        names = ("energy_error", "force_error", "stress_error", "force_softening", "energy_window", "near_window")
        for name in names:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        if not 0 < self.near_tolerance <= 1:
            raise ValueError(f"near_tolerance is {self.near_tolerance}; it must be positive and at most 1, a share")

    def weigh(self, labels: Labels, above: np.ndarray) -> Weights:
        """Weights of rows whose energies are so far above the lowest, (n,) in eV/atom."""
        rows, energies = row_weights(labels, self, above)
        shares = np.clip(self.near_tolerance + above / self.near_window, self.near_tolerance, 1.0)
        derivatives = rows / shares**2
        return Weights(
            energies=energies / (labels.n_atoms * self.energy_error) ** 2,
            derivatives=tuple(derivatives[row] * self._derivatives(labels, row) for row in range(len(labels))),
            norm=float(rows.sum()),
        )

    def _derivatives(self, labels: Labels, row: int) -> np.ndarray:
        forces, known = labels.forces[row], np.isfinite(labels.stresses[row])
        soft = 1.0 + np.linalg.norm(forces, axis=1, keepdims=True) / self.force_softening
        force_weights = np.broadcast_to(1.0 / (soft * self.force_error) ** 2 / forces.size, forces.shape)
        stress_weight = 1.0 / (labels.structures[row].get_volume() * self.stress_error) ** 2 / 6
        return np.concatenate([force_weights.ravel(), np.where(known, stress_weight, 0.0)])


@dataclass(frozen=True)
class MaiseObjective:
    """MAISE's own weights: the mean over rows of (dE / n_atoms)² + force_weight |dF|² of the marked atoms.

    Attributes
    ----------
    force_weight : float
        MAISE's WFRC; Å².
    energy_limit : float
        WENE: rows farther above the lowest weigh energy_limit / dE; eV/atom.
    force_fraction : float
        FMRK: share of the atoms of each structure whose forces count, drawn as MAISE draws them.
    force_minimum : float
        FMIN: forces of smaller norm do not count; eV/Å.
    seed : int
        RAND, of the draw.
    """

    force_weight: float = 0.01
    energy_limit: float = 1000.0
    force_fraction: float = 1.0
    force_minimum: float = 1e-5
    seed: int = 1

    def __post_init__(self) -> None:
        if not (self.force_weight >= 0 and self.energy_limit > 0 and 0 <= self.force_fraction <= 1):
            raise ValueError(
                f"force_weight {self.force_weight} must not be negative, energy_limit {self.energy_limit} must be "
                f"positive, force_fraction {self.force_fraction} from 0 to 1"
            )

    def weigh(self, labels: Labels, above: np.ndarray) -> Weights:
        """Weights of rows whose energies are so far above the lowest, (n,) in eV/atom."""
        rows = np.minimum(1.0, self.energy_limit / np.maximum(above, 1e-300))
        derivatives = []
        for row, forces in enumerate(labels.forces):
            marked = mark_atoms(len(forces), self.force_fraction, self.seed)
            marked &= np.linalg.norm(forces, axis=1) >= self.force_minimum
            derivatives.append(np.append(np.repeat(rows[row] * self.force_weight * marked, 3), np.zeros(6)))
        return Weights(rows / labels.n_atoms**2, tuple(derivatives), float(len(labels)))


Objective = ObjectiveSettings | MaiseObjective


def row_weights(labels: Labels, settings: ObjectiveSettings, above: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of rows, and of their energies among them; both (n,)."""
    weights = 1.0 / (1.0 + (above / settings.energy_window) ** 2)
    for pattern, factor in settings.tag_weights:
        weights = weights * np.where(match_tags(labels.tags, (pattern,)), factor, 1.0)
    coarse = (labels.n_atoms > 2) & (np.nan_to_num(labels.spacings) >= settings.coarse_spacing)
    return weights, weights * np.where(coarse, settings.coarse_weight, 1.0)


@dataclass(frozen=True, eq=False)
class Group:
    """Structures with as many atoms of each species: what the networks see of them.

    Attributes
    ----------
    rows : ndarray, shape (n_group,)
        Of the labels.
    inputs : tuple of Tensor, shapes (n_group, n_atoms of a species, n_components)
        Whitened, one tensor a species.
    tables : tuple of Tensor, shapes (n_group, n_atoms of a species, n_components, 3 n_atoms + 6)
        Their derivatives; by far the largest part of what training holds in memory.
    """

    rows: np.ndarray
    inputs: tuple[Tensor, ...]
    tables: tuple[Tensor, ...]

    @property
    def n_bytes(self) -> int:
        """Memory of the tables; bytes."""
        return sum(table.nbytes for table in self.tables)


@dataclass(frozen=True, eq=False)
class Batch:
    """Structures of one composition: whitened inputs, tables, targets, weights (first axis: structure)."""

    inputs: tuple[Tensor, ...]
    tables: tuple[Tensor, ...]
    energies: Tensor
    derivatives: Tensor  # (n_batch, 3 n_atoms + 6), -forces then volume * stress
    energy_weights: Tensor  # (n_batch,)
    derivative_weights: Tensor  # (n_batch, 3 n_atoms + 6)

    def __len__(self) -> int:
        return len(self.energies)

    def take(self, rows: Tensor) -> Batch:
        """Return some structures."""
        columns: dict[str, Any] = {
            name: tuple(part.index_select(0, rows) for part in value)
            if isinstance(value, tuple)
            else value.index_select(0, rows)
            for name, value in vars(self).items()
        }
        return Batch(**columns)


def compute_tables(labels: Labels, basis: Basis, species: Sequence[str] | None = None) -> list[Table]:
    """Descriptors and their derivatives of all structures, see :func:`maise_bridge.tables.descriptor_tables`.

    In double precision: whitening magnifies small differences of them, and single precision is enough only after it.
    """
    return [descriptor_tables(atoms, basis, species or labels.species) for atoms in labels.structures]


def make_groups(
    labels: Labels,
    rows: np.ndarray,
    tables: list[Table | None],
    whitenings: Sequence[Whitening],
    species: Sequence[str],
    *,
    dtype: torch.dtype = torch.float32,
) -> list[Group]:
    """Group rows by size and composition; each entry of `tables` that was used is set to None, to free its memory."""
    kinds = {int(row): species_indices([labels.structures[row]], species) for row in rows}
    counts = {row: (len(kind), *np.bincount(kind, minlength=len(species)).tolist()) for row, kind in kinds.items()}
    groups = []
    for count in sorted(set(counts.values())):
        chosen = [row for row in counts if counts[row] == count]
        shapes = [(len(chosen), n, len(whitening.matrix)) for n, whitening in zip(count[1:], whitenings, strict=True)]
        inputs = tuple(torch.empty(shape, dtype=dtype) for shape in shapes)
        derivatives = tuple(torch.empty((*shape, 3 * count[0] + 6), dtype=dtype) for shape in shapes)
        for place, row in enumerate(chosen):
            values, slopes = tables[row]  # type: ignore[misc]
            tables[row] = None
            for s, whitening in enumerate(whitenings):
                atoms = kinds[row] == s
                inputs[s][place] = torch.as_tensor(whitening.inputs(values[atoms]))
                derivatives[s][place] = torch.as_tensor(whitening.derivatives(slopes[atoms]))
        groups.append(Group(np.array(chosen), inputs, derivatives))
    return groups


def make_batches(
    labels: Labels, groups: Sequence[Group], settings: Objective, *, zeros: np.ndarray, above: np.ndarray
) -> tuple[list[Batch], float]:
    """Add targets and weights to groups.

    Parameters
    ----------
    labels : Labels
    groups : sequence of Group
    settings : ObjectiveSettings or MaiseObjective
    zeros : ndarray, shape (n,)
        What energies of cells are relative to; eV.
    above : ndarray, shape (n,)
        How far each row lies above the lowest; eV/atom.

    Returns
    -------
    batches : list of Batch
    norm : float
        What the objective is to be divided by.
    """
    batches = []
    order = np.sort(np.concatenate([group.rows for group in groups]))
    weights = settings.weigh(labels.select(order), above[order])
    place = {int(row): number for number, row in enumerate(order)}
    for group in groups:
        places = [place[int(row)] for row in group.rows]
        dtype = group.inputs[0].dtype
        targets = [_derivative_targets(labels, row) for row in group.rows]
        batches.append(
            Batch(
                inputs=group.inputs,
                tables=group.tables,
                energies=torch.as_tensor(labels.energies[group.rows] - zeros[group.rows]).to(dtype),
                derivatives=torch.as_tensor(np.stack(targets)).to(dtype),
                energy_weights=torch.as_tensor(weights.energies[places]).to(dtype),
                derivative_weights=torch.as_tensor(np.stack([weights.derivatives[p] for p in places])).to(dtype),
            )
        )
    return batches, weights.norm


def _derivative_targets(labels: Labels, row: int) -> np.ndarray:
    """Targets -F and V * stress, 0 where unknown; (3 n_atoms + 6,)."""
    stress = np.nan_to_num(labels.stresses[row], nan=0.0)
    return np.concatenate([-labels.forces[row].ravel(), stress * labels.structures[row].get_volume()])


def objective(networks: SpeciesNetworks, batches: Sequence[Batch]) -> Tensor:
    """Weighted sum of squared errors over structures, in units of the errors in the settings; no penalty."""
    total = torch.zeros((), dtype=batches[0].energies.dtype)
    for batch in batches:
        energies, derivatives = networks(batch.inputs, batch.tables)
        total = total + (batch.energy_weights * (energies - batch.energies) ** 2).sum()
        total = total + (batch.derivative_weights * (derivatives - batch.derivatives) ** 2).sum()
    return total
