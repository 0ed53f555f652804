"""Fit a MAISE network to energies, forces and stresses."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor

from maise_bridge.basis import Basis, standard_basis
from maise_bridge.dataset import Labels
from maise_bridge.families import Split
from maise_bridge.model_file import MaiseModel
from maise_bridge.network import WhitenedNetwork, Whitening
from maise_bridge.tables import descriptor_tables

logger = logging.getLogger(__name__)

Table = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class TrainingSettings:
    """How to fit.

    Attributes
    ----------
    hidden : tuple of int
        Widths of the two hidden layers.
    n_epochs : int
        Passes of Adam over the training rows, learning rate on a cosine.
    batch_size : int
        Structures a step of Adam.
    learning_rate : float
        Largest step of Adam.
    n_lbfgs : int
        Iterations of L-BFGS afterwards.
    weight_decay : float
        Factor of the sum of squared weights (in whitened coordinates).
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
    whitening_floor : float
        See :meth:`maise_bridge.network.Whitening.fit`.
    seed : int
        Initial weights and batches.
    """

    hidden: tuple[int, int] = (20, 20)
    n_epochs: int = 400
    batch_size: int = 32
    learning_rate: float = 5e-3
    n_lbfgs: int = 200
    weight_decay: float = 1e-5
    energy_error: float = 0.01
    force_error: float = 0.1
    stress_error: float = 0.005
    force_softening: float = 2.0
    energy_window: float = 0.5
    coarse_spacing: float = 0.29
    coarse_weight: float = 0.5
    tag_weights: tuple[tuple[str, float], ...] = ()
    whitening_floor: float = 1e-5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("learning_rate", "energy_error", "force_error", "stress_error", "energy_window"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """A fitted model.

    Attributes
    ----------
    model : MaiseModel
    validation_loss : float
        Objective on the validation rows, without the penalty, at the weights that were kept.
    history : ndarray, shape (n, 3)
        Step, objective on training rows, objective on validation rows.
    """

    model: MaiseModel
    validation_loss: float
    history: np.ndarray = field(repr=False)


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


def row_weights(labels: Labels, settings: TrainingSettings, lowest: float) -> tuple[np.ndarray, np.ndarray]:
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
    settings: TrainingSettings,
    *,
    lowest: float,
    dtype: torch.dtype = torch.float32,
) -> list[Batch]:
    """Group structures by size, one batch a size; `lowest` (eV/atom) is the zero of energies."""
    weights, energy_weights = row_weights(labels, settings, lowest)
    n_atoms = labels.n_atoms
    batches = []
    for size in np.unique(n_atoms):
        rows = np.flatnonzero(n_atoms == size)
        columns: dict[str, list[np.ndarray]] = {"targets": [], "weights": []}
        for row in rows:
            target, weight = _derivative_targets(labels, int(row), settings)
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


def _derivative_targets(labels: Labels, row: int, settings: TrainingSettings) -> tuple[np.ndarray, np.ndarray]:
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


def train(
    labels: Labels,
    split: Split,
    settings: TrainingSettings,
    *,
    basis: Basis | None = None,
    tables: Sequence[Table] | None = None,
    info: dict[str, str] | None = None,
) -> TrainingResult:
    """Fit a network to the training rows and keep the weights that do best on the validation rows.

    Parameters
    ----------
    labels : Labels
        One species.
    split : Split
        Rows for training and validation; those for test are not looked at, but for input ranges.
    settings : TrainingSettings
    basis : Basis, optional
        The standard 51 functions by default.
    tables : sequence of (descriptors, derivatives), optional
        From :func:`compute_tables`, if at hand.
    info : dict, optional
        Further header entries of the model file.

    Raises
    ------
    ValueError
        If the labels hold several species or a part is empty.
    """
    if len(labels.species) != 1:
        raise ValueError(f"labels hold {', '.join(labels.species)}; training covers one species for now")
    if len(split.train) < 2 or len(split.validation) < 1:
        raise ValueError(f"{len(split.train)} rows to train on and {len(split.validation)} to validate are too few")
    basis = basis or standard_basis(51)
    tables = compute_tables(labels, basis) if tables is None else tables
    lowest = float(labels.energies_per_atom[split.train].min())
    maximum = np.max([table[0].max(0) for table in tables], axis=0)
    inputs = np.concatenate([tables[row][0] for row in split.train])
    whitening = Whitening.fit(inputs, np.where(maximum > 0, maximum, 1.0), floor=settings.whitening_floor)
    parts = [
        make_batches(labels.select(rows), [tables[r] for r in rows], whitening, settings, lowest=lowest)
        for rows in (split.train, split.validation)
    ]
    network = WhitenedNetwork(basis.n_functions, settings.hidden, torch.Generator().manual_seed(settings.seed))
    best = _Best(network, parts[0], parts[1], labels, split, settings, lowest)
    _run_adam(network, parts[0], settings, best)
    best.restore(network)
    _run_lbfgs(network, parts[0], settings, best)
    best.restore(network)
    header = {"train energy data": str(len(split.train)), "test energy data": str(len(split.test)), **(info or {})}
    model = network.fold(whitening, lowest, species=labels.species, basis=basis, info=header)
    return TrainingResult(model=model, validation_loss=best.loss, history=np.array(best.history))


class _Best:
    """Objective per row weight on training and validation rows, and the weights that did best on the latter."""

    def __init__(
        self,
        network: WhitenedNetwork,
        train: Sequence[Batch],
        validation: Sequence[Batch],
        labels: Labels,
        split: Split,
        settings: TrainingSettings,
        lowest: float,
    ) -> None:
        self.parts = (train, validation)
        self.norms = [
            float(row_weights(labels.select(rows), settings, lowest)[0].sum())
            for rows in (split.train, split.validation)
        ]
        self.loss = math.inf
        self.state = {name: value.clone() for name, value in network.state_dict().items()}
        self.history: list[tuple[float, float, float]] = []

    def note(self, network: WhitenedNetwork, step: int) -> None:
        with torch.no_grad():
            train, validation = (
                float(objective(network, part)) / norm for part, norm in zip(self.parts, self.norms, strict=True)
            )
        self.history.append((step, train, validation))
        logger.info("step %d: objective %.4f (training) %.4f (validation)", step, train, validation)
        if validation < self.loss:
            self.loss = validation
            self.state = {name: value.clone() for name, value in network.state_dict().items()}

    def restore(self, network: WhitenedNetwork) -> None:
        network.load_state_dict(self.state)


def _mixed_batches(batches: Sequence[Batch], size: int, rng: torch.Generator) -> Iterator[list[Batch]]:
    """Batches of about `size` structures of all sizes, in random order."""
    places = torch.tensor([(i, k) for i, batch in enumerate(batches) for k in range(len(batch))])
    for chosen in places[torch.randperm(len(places), generator=rng)].split(size):
        yield [batches[i].take(chosen[chosen[:, 0] == i, 1]) for i in torch.unique(chosen[:, 0]).tolist()]


def _run_adam(network: WhitenedNetwork, batches: Sequence[Batch], settings: TrainingSettings, best: _Best) -> None:
    rng = torch.Generator().manual_seed(settings.seed + 1)
    n_rows = sum(len(batch) for batch in batches)
    n_steps = settings.n_epochs * math.ceil(n_rows / settings.batch_size)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps, eta_min=settings.learning_rate / 500)
    every = max(1, settings.n_epochs // 40)
    for epoch in range(settings.n_epochs):
        for part in _mixed_batches(batches, settings.batch_size, rng):
            share = sum(len(batch) for batch in part) / n_rows
            optimizer.zero_grad()
            loss = objective(network, part) / (share * best.norms[0]) + settings.weight_decay * network.penalty()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 100.0)
            optimizer.step()
            schedule.step()
        if epoch % every == every - 1 or epoch == settings.n_epochs - 1:
            best.note(network, epoch + 1)


def _run_lbfgs(network: WhitenedNetwork, batches: Sequence[Batch], settings: TrainingSettings, best: _Best) -> None:
    chunk = 20
    optimizer = torch.optim.LBFGS(
        network.parameters(), max_iter=chunk, history_size=50, line_search_fn="strong_wolfe", tolerance_grad=1e-9
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(network, batches) / best.norms[0] + settings.weight_decay * network.penalty()
        loss.backward()
        return loss

    worse = 0
    for number in range(math.ceil(settings.n_lbfgs / chunk)):
        before = best.loss
        optimizer.step(closure)
        best.note(network, settings.n_epochs + (number + 1) * chunk)
        worse = 0 if best.loss < before else worse + 1
        if worse == 3:
            break


def with_seed(settings: TrainingSettings, seed: int) -> TrainingSettings:
    """Return the same settings with another seed."""
    return replace(settings, seed=seed)
