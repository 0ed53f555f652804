"""Fit a MAISE network to energies, forces and stresses of labelled crystals."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maise_bridge.maise_data import initial_weights
from maise_bridge.model_file import MaiseModel
from maise_bridge.network import SpeciesNetworks
from maise_bridge.objective import Batch, Group, MaiseObjective, Objective, ObjectiveSettings, make_batches, objective
from maise_bridge.preparation import TrainingData

logger = logging.getLogger(__name__)

_CHUNK = 20  # iterations of L-BFGS between looks at the validation rows
State = dict[str, Any]
Report = Callable[[int, float, float], None]


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
    early_stopping : bool
        Keep the weights that do best on the validation rows. If not, L-BFGS goes on for `n_lbfgs` iterations and the
        last weights are kept, so that validation rows are not needed.
    weight_decay : float
        Factor of the sum of squared weights in whitened coordinates.
    objective : ObjectiveSettings or MaiseObjective
        How errors are weighed. With MAISE's the penalty covers biases too, and the start is MAISE's.
    seed : int
        Initial weights and batches.
    """

    hidden: tuple[int, int] = (20, 20)
    n_epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 5e-3
    n_lbfgs: int = 2000
    patience: int = 20
    early_stopping: bool = True
    weight_decay: float = 0.3
    objective: Objective = field(default_factory=ObjectiveSettings)
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
class TrainingResult:
    """A fitted model.

    Attributes
    ----------
    model : MaiseModel
    validation_loss : float
        Objective on the validation rows a unit of row weight, without the penalty, at the weights that were kept; NaN
        if there are no such rows.
    history : ndarray, shape (n, 3)
        Step, objective on training rows, objective on validation rows (or NaN).
    """

    model: MaiseModel
    validation_loss: float
    history: np.ndarray = field(repr=False)


def train(
    data: TrainingData,
    settings: TrainingSettings,
    *,
    info: Mapping[str, str] | None = None,
    resume: State | None = None,
    save: Callable[[State], None] | None = None,
    report: Report | None = None,
) -> TrainingResult:
    """Fit networks to the training rows; keep the weights that do best on the validation rows, or the last ones.

    Parameters
    ----------
    data : TrainingData
        From :func:`maise_bridge.preparation.prepare`.
    settings : TrainingSettings
    info : mapping, optional
        Further header entries of the model file.
    resume : mapping, optional
        What `save` was last called with in a fit of the same data and settings; the fit goes on from there and ends
        with the same bits.
    save : callable, optional
        Called with the state of the fit after every epoch of Adam and every 20 iterations of L-BFGS.
    report : callable, optional
        Called with step, objective on training rows, objective on validation rows (or NaN) at each look at them.

    Raises
    ------
    ValueError
        If there are no validation rows for early stopping.
    """
    if settings.early_stopping and not data.validation:
        raise ValueError("early stopping needs validation rows; hold some out, or go without it")
    fit = _Fit(data, settings, report)
    fit.run(resume, save or (lambda state: None))
    split = data.split
    header = {"train energy data": str(len(split.train)), "test energy data": str(len(split.test)), **(info or {})}
    model = fit.networks.fold(data.whitenings, data.references, species=data.species, basis=data.basis, info=header)
    return TrainingResult(model=model, validation_loss=fit.loss, history=np.array(fit.history))


def make_networks(data: TrainingData, settings: TrainingSettings) -> SpeciesNetworks:
    """Networks with the weights from which a fit starts."""
    rng = torch.Generator().manual_seed(settings.seed)
    hidden = settings.hidden if data.frozen is None else data.frozen.hidden
    widths = [len(whitening.matrix) for whitening in data.whitenings]
    networks = SpeciesNetworks(widths, hidden, rng).to(data.dtype)
    if isinstance(settings.objective, MaiseObjective):
        networks.set_weights(*initial_weights((widths[0], *hidden, 1), len(widths), settings.seed))
    if data.frozen is not None:
        networks.freeze(data.frozen.weights, data.frozen.biases)
    return networks


@dataclass(frozen=True, eq=False)
class _Part:
    """Rows to fit or to validate, as batches, with the sum of their weights."""

    batches: list[Batch]
    norm: float

    @classmethod
    def make(cls, data: TrainingData, groups: Sequence[Group], settings: TrainingSettings) -> _Part:
        """Put rows into batches; without rows the objective is not a number."""
        if not groups:
            return cls([], math.nan)
        zeros, above = data.zeros, data.above
        return cls(*make_batches(data.labels, groups, settings.objective, zeros=zeros, above=above))

    def loss(self, networks: SpeciesNetworks) -> Tensor:
        """Return the objective over the rows, by their norm."""
        return objective(networks, self.batches) / self.norm if self.batches else torch.tensor(math.nan)


class _Fit:
    """Networks on their way, the weights that would be kept so far, and how it went."""

    def __init__(self, data: TrainingData, settings: TrainingSettings, report: Report | None) -> None:
        self.settings = settings
        self.networks = make_networks(data, settings)
        self.parameters = self.networks.free_parameters()
        self.train, self.validation = (_Part.make(data, part, settings) for part in (data.train, data.validation))
        self.loss = math.inf
        self.best: State = {}
        self.history: list[tuple[float, float, float]] = []
        self.report = report

    def run(self, resume: State | None, save: Callable[[State], None]) -> None:
        """Adam, then L-BFGS from the best weights, each from where it was left."""
        state = resume or {"stage": "start"}
        if resume is None:
            self._look(0)
        else:
            self.networks.load_state_dict(state["networks"])
            self.loss, self.best, self.history = state["loss"], state["best"], list(state["history"])
        if state["stage"] in ("start", "adam"):
            self._run_adam(state if state["stage"] == "adam" else None, save)
            self.networks.load_state_dict(self.best)
        if state["stage"] != "done":
            self._run_lbfgs(state if state["stage"] == "lbfgs" else None, save)
        self.networks.load_state_dict(self.best)
        save(self._state("done"))

    def _state(self, stage: str, **more: Any) -> State:
        kept = {"loss": self.loss, "best": self.best, "history": self.history}
        return {"stage": stage, "networks": self.networks.state_dict(), **kept, **more}

    def _look(self, step: int) -> bool:
        """Look at the validation rows; True if these weights would be kept."""
        with torch.no_grad():
            train, validation = (float(part.loss(self.networks)) for part in (self.train, self.validation))
        self.history.append((step, train, validation))
        logger.info("step %d: objective %.4f (training) %.4f (validation)", step, train, validation)
        if self.report is not None:
            self.report(step, train, validation)
        kept = validation < self.loss or not self.settings.early_stopping
        if kept:
            self.loss = validation
            self.best = {name: value.clone() for name, value in self.networks.state_dict().items()}
        return kept

    def _penalty(self) -> Tensor:
        settings = self.settings
        return settings.weight_decay * self.networks.penalty(biases=isinstance(settings.objective, MaiseObjective))

    def _run_adam(self, state: State | None, save: Callable[[State], None]) -> None:
        settings = self.settings
        rng = torch.Generator().manual_seed(settings.seed + 1)
        n_rows = sum(len(batch) for batch in self.train.batches)
        n_steps = settings.n_epochs * math.ceil(n_rows / settings.batch_size)
        optimizer = torch.optim.Adam(self.parameters, lr=settings.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, max(1, n_steps), eta_min=settings.learning_rate / 500
        )
        if state is not None:
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            rng.set_state(state["rng"])
        for epoch in range(0 if state is None else state["epoch"], settings.n_epochs):
            for part in _mixed_batches(self.train.batches, settings.batch_size, rng):
                share = sum(len(batch) for batch in part) / n_rows
                optimizer.zero_grad()
                loss = objective(self.networks, part) / (share * self.train.norm) + self._penalty()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.parameters, 100.0)
                optimizer.step()
                schedule.step()
            if epoch % 5 == 4 or epoch == settings.n_epochs - 1:
                self._look(epoch + 1)
            states = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(), "rng": rng.get_state()}
            save(self._state("adam", epoch=epoch + 1, **states))

    def _run_lbfgs(self, state: State | None, save: Callable[[State], None]) -> None:
        settings = self.settings
        optimizer = torch.optim.LBFGS(
            self.parameters, max_iter=_CHUNK, history_size=50, line_search_fn="strong_wolfe", tolerance_grad=1e-9
        )

        def closure() -> Tensor:
            """Return loss and penalty, with their gradient in the weights, as L-BFGS asks for it."""
            optimizer.zero_grad()
            loss = self.train.loss(self.networks) + self._penalty()
            loss.backward()
            return loss

        start, first, worse = int(self.history[-1][0]), 0, 0
        if state is not None:
            optimizer.load_state_dict(state["optimizer"])
            start, first, worse = state["start"], state["chunk"], state["worse"]
        for chunk in range(first, math.ceil(settings.n_lbfgs / _CHUNK)):
            if worse == settings.patience:
                break
            optimizer.step(closure)
            worse = 0 if self._look(start + (chunk + 1) * _CHUNK) else worse + 1
            save(self._state("lbfgs", optimizer=optimizer.state_dict(), start=start, chunk=chunk + 1, worse=worse))


def _mixed_batches(batches: Sequence[Batch], size: int, rng: torch.Generator) -> Iterator[list[Batch]]:
    """Batches of about `size` structures of all sizes, in random order."""
    places = torch.tensor([(i, k) for i, batch in enumerate(batches) for k in range(len(batch))])
    for chosen in places[torch.randperm(len(places), generator=rng)].split(size):
        yield [batches[i].take(chosen[chosen[:, 0] == i, 1]) for i in torch.unique(chosen[:, 0]).tolist()]
