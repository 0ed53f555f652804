"""Leapfrog integration of Hamilton's equations in latent space, with gradients that flow through every force."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

PotentialFunction = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps positions ``(..., latent_dim)`` to the potential ``(...)`` and its gradient ``(..., latent_dim)``."""


class PhasePoint(NamedTuple):
    """A point of phase space with the potential and its gradient there, so that no force is computed twice.

    Attributes
    ----------
    position, momenta, gradient : Tensor, (..., latent_dim)
    potential : Tensor, (...)
    """

    position: Tensor
    momenta: Tensor
    potential: Tensor
    gradient: Tensor

    @property
    def energy(self) -> Tensor:
        """Hamiltonian H = U(z) + |rho|^2 / 2, ``(...)``, in nats."""
        return self.potential + 0.5 * self.momenta.square().sum(-1)


def start(potential: PotentialFunction, position: Tensor, momenta: Tensor) -> PhasePoint:
    """Evaluate the potential once to begin a trajectory."""
    energy, gradient = potential(position)
    return PhasePoint(position, momenta, energy, gradient)


def leapfrog(point: PhasePoint, potential: PotentialFunction, step_size: Tensor) -> PhasePoint:
    """Take one kick-drift-kick step; it is reversible and preserves phase-space volume.

    Parameters
    ----------
    point : PhasePoint
        Where the step begins; its gradient is reused.
    potential : PotentialFunction
        Evaluated once, at the new position.
    step_size : Tensor, broadcastable to (..., latent_dim)
        May depend on the datum, never on position or momenta.
    """
    half_kicked = point.momenta - 0.5 * step_size * point.gradient
    position = point.position + step_size * half_kicked
    energy, gradient = potential(position)
    return PhasePoint(position, half_kicked - 0.5 * step_size * gradient, energy, gradient)


def integrate(
    potential: PotentialFunction, position: Tensor, momenta: Tensor, step_sizes: Tensor, momentum_scales: Tensor
) -> tuple[PhasePoint, Tensor]:
    """Take K leapfrog steps, scaling the momenta by alpha_k after step k (tempering).

    Tempering does not move the position, so K + 1 evaluations of the potential suffice.

    Parameters
    ----------
    potential : PotentialFunction
    position, momenta : Tensor, (..., latent_dim)
    step_sizes : Tensor, (K, ..., latent_dim) or broadcastable
    momentum_scales : Tensor, (K,)
        alpha_k; the Jacobian determinant of the whole map is ``prod(alpha) ** latent_dim``.

    Returns
    -------
    end : PhasePoint
    energy_error : Tensor, (...)
        What the steps added to H, without what tempering takes out: H_K - H_0 where nothing is tempered. Exact
        trajectories have zero; it is only watched, so no gradient flows through it.
    """
    point = start(potential, position, momenta)
    energy_error = torch.zeros_like(point.potential)
    for step_size, scale in zip(step_sizes, momentum_scales, strict=True):
        begin, point = point, leapfrog(point, potential, step_size)
        with torch.no_grad():
            energy_error = energy_error + point.energy - begin.energy
        point = point._replace(momenta=scale * point.momenta)
    return point, energy_error
