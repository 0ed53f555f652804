"""Fit a MAISE network to energies, forces and stresses of labelled crystals."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from maise_bridge.basis import Basis, standard_basis
from maise_bridge.dataset import Labels
from maise_bridge.families import Split
from maise_bridge.model_file import MaiseModel
from maise_bridge.network import WhitenedNetwork, Whitening
from maise_bridge.objective import Batch, ObjectiveSettings, Table, compute_tables, make_batches, objective, row_weights

logger = logging.getLogger(__name__)

_CHUNK = 20  # iterations of L-BFGS between looks at the validation rows


@dataclass(frozen=True)
class TrainingSettings:
    """How to fit.

    Attributes
    ----------
    hidden : tuple of int
        Widths of the two hidden layers.
    n_epochs : int
        Passes of Adam over the training rows, learning rate on a cosine; L-BFGS does the bulk of the work.
    batch_size : int
        Structures a step of Adam.
    learning_rate : float
        Largest step of Adam.
    n_lbfgs : int
        Most iterations of L-BFGS.
    patience : int
        Looks at the validation rows (one every 20 iterations) without improvement before L-BFGS stops.
    weight_decay : float
        Factor of the sum of squared weights in whitened coordinates.
    whitening_floor : float
        See :meth:`maise_bridge.network.Whitening.fit`.
    objective : ObjectiveSettings
        How errors are weighed.
    seed : int
        Initial weights and batches.
    """

    hidden: tuple[int, int] = (20, 20)
    n_epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 5e-3
    n_lbfgs: int = 2000
    patience: int = 20
    weight_decay: float = 0.3
    whitening_floor: float = 1e-6
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("n_epochs", 0), ("batch_size", 1), ("n_lbfgs", 0), ("patience", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not (self.learning_rate > 0 and self.weight_decay >= 0):
            raise ValueError(
                f"learning_rate {self.learning_rate} must be positive, weight_decay {self.weight_decay} not negative"
            )


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Everything that fits with different seeds share: labels, split, descriptor tables, whitening.

    Made by :func:`prepare`.
    """

    labels: Labels
    split: Split
    basis: Basis
    tables: Sequence[Table]
    whitening: Whitening


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """A fitted model.

    Attributes
    ----------
    model : MaiseModel
    validation_loss : float
        Objective on the validation rows a unit of row weight, without the penalty, at the weights that were kept.
    history : ndarray, shape (n, 3)
        Step, objective on training rows, objective on validation rows.
    """

    model: MaiseModel
    validation_loss: float
    history: np.ndarray = field(repr=False)


def prepare(
    labels: Labels,
    split: Split,
    *,
    basis: Basis | None = None,
    whitening_floor: float = 1e-6,
    tables: Sequence[Table] | None = None,
) -> TrainingData:
    """Compute descriptors, their ranges and the whitening.

    Parameters
    ----------
    labels : Labels
        One species.
    split : Split
        Rows for training, validation and test; input ranges are taken over all, whitening over training rows.
    basis : Basis, optional
        The standard 51 functions by default.
    whitening_floor : float
        See :meth:`maise_bridge.network.Whitening.fit`.
    tables : sequence of (descriptors, derivatives), optional
        From :func:`maise_bridge.objective.compute_tables`, if at hand.

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
    maximum = np.max([table[0].max(0) for table in tables], axis=0)
    inputs = np.concatenate([tables[row][0] for row in split.train])
    whitening = Whitening.fit(inputs, np.where(maximum > 0, maximum, 1.0), floor=whitening_floor)
    return TrainingData(labels, split, basis, tables, whitening)


def train(data: TrainingData, settings: TrainingSettings, *, info: Mapping[str, str] | None = None) -> TrainingResult:
    """Fit a network to the training rows and keep the weights that do best on the validation rows.

    Parameters
    ----------
    data : TrainingData
        From :func:`prepare`.
    settings : TrainingSettings
    info : mapping, optional
        Further header entries of the model file.
    """
    labels, split = data.labels, data.split
    lowest = float(labels.energies_per_atom[split.train].min())
    rng = torch.Generator().manual_seed(settings.seed)
    network = WhitenedNetwork(len(data.whitening.matrix), settings.hidden, rng)
    parts = [_Part.make(data, rows, settings, lowest) for rows in (split.train, split.validation)]
    best = _Best(network, parts[0], parts[1])
    _run_adam(network, parts[0], settings, best)
    network.load_state_dict(best.state)
    _run_lbfgs(network, parts[0], settings, best)
    network.load_state_dict(best.state)
    header = {"train energy data": str(len(split.train)), "test energy data": str(len(split.test)), **(info or {})}
    model = network.fold(data.whitening, lowest, species=labels.species, basis=data.basis, info=header)
    return TrainingResult(model=model, validation_loss=best.loss, history=np.array(best.history))


@dataclass(frozen=True, eq=False)
class _Part:
    """Rows to fit or to validate, as batches, with the sum of their weights."""

    batches: list[Batch]
    norm: float

    @classmethod
    def make(cls, data: TrainingData, rows: np.ndarray, settings: TrainingSettings, lowest: float) -> _Part:
        chosen = data.labels.select(rows)
        tables = [data.tables[row] for row in rows]
        batches = make_batches(chosen, tables, data.whitening, settings.objective, lowest=lowest)
        return cls(batches, float(row_weights(chosen, settings.objective, lowest)[0].sum()))

    def loss(self, network: WhitenedNetwork) -> Tensor:
        return objective(network, self.batches) / self.norm


class _Best:
    """The weights that did best on the validation rows, and how the fit went."""

    def __init__(self, network: WhitenedNetwork, train: _Part, validation: _Part) -> None:
        self.parts = (train, validation)
        self.loss = math.inf
        self.history: list[tuple[float, float, float]] = []
        self.note(network, 0)

    def note(self, network: WhitenedNetwork, step: int) -> bool:
        """Look at the validation rows; True if the network improved."""
        with torch.no_grad():
            train, validation = (float(part.loss(network)) for part in self.parts)
        self.history.append((step, train, validation))
        logger.info("step %d: objective %.4f (training) %.4f (validation)", step, train, validation)
        improved = validation < self.loss
        if improved:
            self.loss = validation
            self.state = {name: value.clone() for name, value in network.state_dict().items()}
        return improved


def _mixed_batches(batches: Sequence[Batch], size: int, rng: torch.Generator) -> Iterator[list[Batch]]:
    """Batches of about `size` structures of all sizes, in random order."""
    places = torch.tensor([(i, k) for i, batch in enumerate(batches) for k in range(len(batch))])
    for chosen in places[torch.randperm(len(places), generator=rng)].split(size):
        yield [batches[i].take(chosen[chosen[:, 0] == i, 1]) for i in torch.unique(chosen[:, 0]).tolist()]


def _run_adam(network: WhitenedNetwork, train: _Part, settings: TrainingSettings, best: _Best) -> None:
    rng = torch.Generator().manual_seed(settings.seed + 1)
    n_rows = sum(len(batch) for batch in train.batches)
    n_steps = settings.n_epochs * math.ceil(n_rows / settings.batch_size)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, max(1, n_steps), eta_min=settings.learning_rate / 500
    )
    for epoch in range(settings.n_epochs):
        for part in _mixed_batches(train.batches, settings.batch_size, rng):
            share = sum(len(batch) for batch in part) / n_rows
            optimizer.zero_grad()
            loss = objective(network, part) / (share * train.norm) + settings.weight_decay * network.penalty()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 100.0)
            optimizer.step()
            schedule.step()
        if epoch % 5 == 4 or epoch == settings.n_epochs - 1:
            best.note(network, epoch + 1)


def _run_lbfgs(network: WhitenedNetwork, train: _Part, settings: TrainingSettings, best: _Best) -> None:
    optimizer = torch.optim.LBFGS(
        network.parameters(), max_iter=_CHUNK, history_size=50, line_search_fn="strong_wolfe", tolerance_grad=1e-9
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = train.loss(network) + settings.weight_decay * network.penalty()
        loss.backward()
        return loss

    start, worse = best.history[-1][0], 0
    for number in range(math.ceil(settings.n_lbfgs / _CHUNK)):
        optimizer.step(closure)
        improved = best.note(network, int(start) + (number + 1) * _CHUNK)
        worse = 0 if improved else worse + 1
        if worse == settings.patience:
            break
