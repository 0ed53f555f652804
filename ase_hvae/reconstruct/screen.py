"""The screen that keeps the proposals nearest to a target, and exact quantities of crystals in bulk."""

from __future__ import annotations

import math

import numpy as np

from ase_hvae.rdf import N_SIGMA, RDFSettings
from ase_hvae.reconstruct.kernels import rdfs, shortest_distances
from ase_hvae.reconstruct.tables import Crystals

SHARE = 0.5  # of the proposals that are steered
BEST_OF_TEMPLATE = 16  # most proposals of one template that are steered


def choose(crystals: Crystals, losses: np.ndarray) -> np.ndarray:
    """Return the positions of the proposals to steer, the best first: a share of those with as many free parameters.

    More free parameters make lower losses, right or wrong, so that losses are compared among equals. At most
    `BEST_OF_TEMPLATE` are of one template, so that none takes the places of others.

    Parameters
    ----------
    crystals : Crystals
        Proposals.
    losses : ndarray
        Shape (n_crystals,): infinite for those that are out.
    """
    order = np.argsort(losses, kind="stable")
    template = crystals.template[order]
    freedom = (crystals.tables.n_free + crystals.tables.n_strains)[template]
    most = np.ceil(SHARE * np.bincount(freedom))
    chosen = (_rank_within(freedom) < most[freedom]) & (_rank_within(template) < BEST_OF_TEMPLATE)
    return order[chosen & np.isfinite(losses[order])]


def exact_rdfs(crystals: Crystals, settings: RDFSettings) -> np.ndarray:
    """Return g(r) as `ase_hvae.rdf.radial_distribution` does, shape (n_crystals, n_channels * n_bins)."""
    width = settings.bin_width
    n_side = math.ceil(N_SIGMA * settings.sigma / width)
    arrays = crystals.tables, crystals.template, crystals.cells, crystals.coordinates
    return rdfs(*arrays, settings.cutoff, width / 2, width, settings.n_bins, settings.sigma, n_side)


def min_distances(crystals: Crystals, cutoff: float) -> np.ndarray:
    """Return the shortest distance in each channel, shape (n_crystals, n_channels); Å.

    It is `cutoff` where there is none below, and 0 if a crystal is unsound.
    """
    return shortest_distances(crystals.tables, crystals.template, crystals.cells, crystals.coordinates, cutoff)


def _rank_within(groups: np.ndarray) -> np.ndarray:
    """Return, for each entry, how many entries of its group come before it."""
    order = np.argsort(groups, kind="stable")
    _, first, counts = np.unique(groups[order], return_index=True, return_counts=True)
    rank = np.empty(len(groups), dtype=np.int64)
    rank[order] = np.arange(len(groups)) - np.repeat(first, counts)
    return rank
