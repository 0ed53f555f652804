"""Fit an HVAE to feature vectors by stochastic gradient ascent of the ELBO."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ase_hvae.errors import ModelError
from ase_hvae.hvae.model import HVAE

logger = logging.getLogger(__name__)

OPTIMIZERS = ("adam", "sgd")
RUNAWAY_ENERGY_ERROR = 1000.0  # nats; a leapfrog trajectory beyond it follows nothing (the limit that Stan uses)


@dataclass(frozen=True, eq=False)
class History:
    """What happened during a fit, one row an epoch.

    Attributes
    ----------
    loss : ndarray, (n_epochs,)
        Mean of -ELBO over the epoch's minibatches, in nats.
    kl : ndarray, (n_epochs, latent_dim)
        KL divergence of the encoder from the prior at the end of the epoch, in nats.
    seconds : ndarray, (n_epochs,)
        Wall time since the start.
    energy_error : ndarray, (n_epochs,)
        Mean of |H_end - H_start| over the epoch, in nats, without what tempering takes out; zero for K = 0.
        Far above 1 the steps are too long for the posterior.
    n_skipped : int
        Minibatches that were not used, because a trajectory ran away (|H_end - H_start| above 1000 nats or not finite;
        all step sizes are halved then) or because the gradient was not finite.
    """

    loss: np.ndarray
    kl: np.ndarray
    seconds: np.ndarray
    energy_error: np.ndarray
    n_skipped: int = 0


def fit(
    model: HVAE,
    features: Tensor,
    *,
    rng: torch.Generator,
    epochs: int = 100,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    optimizer: str = "adam",
    weight_decay: float = 0.0,
    gradient_clip: float = 20.0,
    anneal: bool = True,
    estimator: str = "analytic",
    callback: Callable[[int, float], object] | None = None,
) -> History:
    """Fit `model` in place to physical features; the model's standardisation must be set.

    Leapfrog is unstable when a step is longer than twice the posterior's width, which the encoder only learns. A
    minibatch with a runaway trajectory is therefore left out, and all step sizes are halved; they can grow again.

    Parameters
    ----------
    model : HVAE
    features : Tensor, (n, n_features)
    rng : torch.Generator
        Source of the minibatches and of the noise: the same state gives the same weights, bit for bit.
    epochs, batch_size : int
    learning_rate : float
        When `anneal` is true, it rises over the first 5 % of the epochs and then falls to zero along a half cosine.
    optimizer : {"adam", "sgd"}
        SGD has Nesterov momentum 0.9.
    weight_decay : float
        Decoupled for Adam (AdamW); on the networks' weights only.
    gradient_clip : float
        Largest norm of the gradient of the mean loss of a minibatch.
    estimator : {"analytic", "sampled"}
    callback : function of (epoch, loss), optional
        Called when an epoch ends.

    Raises
    ------
    ModelError
        When more than 1 % of the minibatches (and more than ten), or all of an epoch, could not be used.
    """
    _check(features, epochs, batch_size, learning_rate, optimizer)
    x = model.standardise(features)
    solver = _solver(model, optimizer, learning_rate, weight_decay)
    n_batches = math.ceil(len(x) / batch_size)
    n_tolerated = max(10, epochs * n_batches // 100)
    losses, divergences, times, energy_errors, n_skipped = [], [], [], [], 0
    begin = time.perf_counter()
    model.train()
    for epoch in range(epochs):
        if anneal:
            for group in solver.param_groups:
                group["lr"] = learning_rate * _annealed(epoch, epochs)
        values = _epoch(model, x, solver, rng, batch_size, gradient_clip, estimator)
        n_skipped += n_batches - len(values)
        if n_skipped > n_tolerated or not values:
            raise ModelError(
                f"training diverged: {n_skipped} minibatches up to epoch {epoch} gave no finite gradient or a runaway "
                f"trajectory (limit {n_tolerated}); lower the learning rate or max_step_size"
            )
        loss, energy_error = np.mean(values, axis=0).tolist()
        losses.append(loss)
        energy_errors.append(energy_error)
        divergences.append(model.kl_per_dimension(features).double().numpy())
        times.append(time.perf_counter() - begin)
        logger.debug("epoch %d: loss %.3f, KL %s", epoch, losses[-1], divergences[-1].round(2))
        if callback is not None:
            callback(epoch, losses[-1])
    if losses[-1] > losses[0]:
        logger.warning("the loss rose from %.4g to %.4g; lower the learning rate", losses[0], losses[-1])
    model.eval()
    return History(np.array(losses), np.array(divergences), np.array(times), np.array(energy_errors), n_skipped)


def _annealed(epoch: int, epochs: int) -> float:
    """Share of the learning rate that an epoch uses."""
    return min(1.0, (epoch + 1) / (0.05 * epochs)) * 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def _epoch(
    model: HVAE,
    x: Tensor,
    solver: torch.optim.Optimizer,
    rng: torch.Generator,
    batch_size: int,
    gradient_clip: float,
    estimator: str,
) -> list[tuple[float, float]]:
    """Step through the data once; return loss and energy error of the minibatches that were used."""
    values = []
    for indices in torch.randperm(len(x), generator=rng).split(batch_size):
        batch = x[indices]
        noise = model.draw_noise(len(batch), rng)
        trajectory = model.trajectory(batch, noise)
        energy_error = trajectory.energy_error.abs()
        if not energy_error.max() <= RUNAWAY_ENERGY_ERROR:  # also when it is not a number
            logger.info("a trajectory ran away (energy error %.3g nats): step sizes halved", energy_error.max())
            model.halve_step_sizes()
            continue
        loss = -model.weigh(trajectory, noise, estimator=estimator).mean()
        solver.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), gradient_clip)
        value = loss.item()
        if math.isfinite(value) and math.isfinite(norm.item()):
            solver.step()
            values.append((value, energy_error.mean().item()))
    return values


def _solver(model: HVAE, optimizer: str, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    decayed = [p for name, p in model.named_parameters() if ".weights." in name]
    free = [p for name, p in model.named_parameters() if ".weights." not in name]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    if optimizer == "adam":
        return torch.optim.AdamW(groups, lr=learning_rate)
    return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9, nesterov=True)


def _check(features: Tensor, epochs: int, batch_size: int, learning_rate: float, optimizer: str) -> None:
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer is {optimizer!r}; choose one of {', '.join(OPTIMIZERS)}")
    if epochs < 1 or batch_size < 1 or not learning_rate > 0:
        raise ValueError(
            f"epochs={epochs}, batch_size={batch_size}, learning_rate={learning_rate}; all must be positive"
        )
    if not torch.isfinite(torch.as_tensor(features)).all():
        raise ModelError("training features are not finite; check the structures and their RDFs")
