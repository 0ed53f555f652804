"""The grid of the central part of the prior, on which the spread of what a decoder can say is measured."""

from __future__ import annotations

import torch
from torch import Tensor


def central_grid(n_per_axis: int = 15, coverage: float = 0.9, latent_dim: int = 2) -> Tensor:
    """Return a grid with equal prior probability between neighbours, ``(n_per_axis^latent_dim, latent_dim)``, float64.

    Parameters
    ----------
    n_per_axis : int
        Points on each axis; 1 gives the origin.
    coverage : float
        Central part of the standard normal distribution that each axis spans, ends included.
    latent_dim : int

    References
    ----------
    Lee & Chang, Comput. Mater. Sci. 194, 110436 (2021): 15 x 15 points over the central 90 %.
    """
    if n_per_axis < 1 or latent_dim < 1:
        raise ValueError(f"n_per_axis={n_per_axis}, latent_dim={latent_dim}; both must be at least 1")
    if not 0 < coverage < 1:
        raise ValueError(f"coverage is {coverage}; it must lie strictly between 0 and 1")
    tail = (1 - coverage) / 2 if n_per_axis > 1 else 0.5
    axis = torch.special.ndtri(torch.linspace(tail, 1 - tail, n_per_axis, dtype=torch.float64))
    return torch.cartesian_prod(*[axis] * latent_dim).reshape(-1, latent_dim)
