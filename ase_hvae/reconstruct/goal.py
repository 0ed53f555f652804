"""What crystals are measured against: a target RDF at a chosen smearing and range, and limits beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ase_hvae.rdf import RDFSettings
from ase_hvae.reconstruct.descent import Goal

N_SIGMA = 3.5  # half width of a smeared pair in units of sigma while steering


@dataclass(frozen=True, eq=False)
class Limits:
    """What crystals have to obey beside the RDF.

    Attributes
    ----------
    min_distance : float or ndarray
        Distances below this are pushed apart, one or that of each channel, shape (n_channels,); Å.
    volume_per_atom : float
        Å^3.
    volume_tolerance : float
        Allowed relative deviation from `volume_per_atom`; the last tenth of it already costs.
    """

    min_distance: float | np.ndarray
    volume_per_atom: float
    volume_tolerance: float


@dataclass(frozen=True, eq=False)
class Target:
    """The g(r) that crystals should have, and limits beside it.

    Attributes
    ----------
    rdf : ndarray
        g(r), shape (n_bins,) or, with several species, (n_channels, n_bins), on ``settings.grid`` and smeared by
        ``settings.sigma``; beyond that it is taken as 1.
    settings : RDFSettings
    limits : Limits
    """

    rdf: np.ndarray
    settings: RDFSettings
    limits: Limits

    def goal(self, *, sigma: float = 0.0, rmax: float = math.inf, each_atom: bool = False) -> Goal:
        """Smear the target further and cut it off.

        Parameters
        ----------
        sigma : float
            Smearing to work at, at least that of the settings; Å.
        rmax : float
            Compare up to this distance only; Å.
        each_atom : bool
            Compare what each atom sees around it instead of the mean over the crystal.
        """
        settings, limits = self.settings, self.limits
        sigma = max(sigma, settings.sigma)
        extra = math.sqrt(sigma**2 - settings.sigma**2)
        if extra < settings.bin_width:
            grid, values, step = settings.grid, np.atleast_2d(self.rdf), settings.bin_width
        else:
            step = max(settings.bin_width, extra / 2)
            grid = np.arange(1, math.floor(settings.rmax / step) + 1) * step
            values = np.stack([_smoothed(rdf, settings, extra, grid) for rdf in np.atleast_2d(self.rdf)])
        inside = grid < min(rmax, settings.rmax - 2 * extra)
        shortest = np.array(np.broadcast_to(np.asarray(limits.min_distance, float), len(values)))
        grid, values = grid[inside], values[:, inside].ravel()
        n_side = math.ceil(N_SIGMA * sigma / step)
        scale = float(((values - values.mean()) ** 2).sum())
        return Goal(
            origin=float(grid[0]),
            step=float(step),
            sigma=float(sigma),
            n_side=n_side,
            cutoff=float(grid[-1] + (n_side + 0.5) * step),
            target=np.ascontiguousarray(values),
            weights=np.full(len(values), 1 / max(scale, 1e-12)),
            each_atom=each_atom,
            min_distance=shortest,
            volume_per_atom=float(limits.volume_per_atom),
            free_volume=0.9 * math.log1p(limits.volume_tolerance),  # the rest is for the compromise with the RDF
        )


def _smoothed(target: np.ndarray, settings: RDFSettings, extra: float, grid: np.ndarray) -> np.ndarray:
    """Return the target at the points of `grid`, smeared by `extra` more."""
    n_beyond = math.ceil(4 * extra / settings.bin_width)
    source = (np.arange(settings.n_bins + n_beyond) + 0.5) * settings.bin_width
    counts = np.concatenate([target, np.ones(n_beyond)]) * source**2
    kernel = np.exp(-0.5 * ((grid[:, None] - source) / extra) ** 2) / math.sqrt(2 * math.pi) / extra
    return kernel @ counts * settings.bin_width / grid**2
