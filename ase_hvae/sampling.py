"""Points of the latent space to decode: the grid of the central part of the prior, the prior, around crystals."""

from __future__ import annotations

import numpy as np

from ase_hvae.hvae import central_grid


def sample_grid(n_per_axis: int = 15, coverage: float = 0.9, latent_dim: int = 2) -> np.ndarray:
    """Return the grid of the central part of the prior, ``(n_per_axis^latent_dim, latent_dim)``.

    See `ase_hvae.hvae.central_grid`; the defaults are the 225 points of Lee & Chang (2021).
    """
    return central_grid(n_per_axis, coverage, latent_dim).numpy()


def sample_prior(n: int, latent_dim: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ``(n, latent_dim)`` points from the standard normal prior."""
    return rng.standard_normal((_count(n), latent_dim))


def sample_around(mean: np.ndarray, std: np.ndarray | float, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ``(n, latent_dim)`` points from N(mean, diag std^2), for instance around the latent of one crystal.

    Parameters
    ----------
    mean : ndarray, (latent_dim,)
    std : ndarray, (latent_dim,) or float
        Not negative; zero repeats the mean.
    """
    mean, std = np.asarray(mean, float), np.asarray(std, float)
    if mean.ndim != 1 or not (np.isfinite(mean).all() and np.isfinite(std).all() and (std >= 0).all()):
        raise ValueError(f"mean {mean} and std {std} must be finite, mean (latent_dim,), std not negative")
    return mean + std * rng.standard_normal((_count(n), len(mean)))


def sample_posterior(means: np.ndarray, stds: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ``(n, latent_dim)`` points from the aggregated posterior: a random crystal's q0(z|x) each.

    Parameters
    ----------
    means, stds : ndarray, (n_crystals, latent_dim)
        As the model's card lists them for the crystals that it was trained on.
    """
    means, stds = np.asarray(means, float), np.asarray(stds, float)
    if means.ndim != 2 or means.shape != stds.shape or len(means) == 0:
        raise ValueError(f"means {means.shape} and stds {stds.shape} must both be (n_crystals, latent_dim)")
    chosen = rng.integers(len(means), size=_count(n))
    return means[chosen] + stds[chosen] * rng.standard_normal((n, means.shape[1]))


def _count(n: int) -> int:
    if n < 1:
        raise ValueError(f"n is {n}; at least 1 point is needed")
    return n
