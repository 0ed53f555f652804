"""The screen that keeps the proposals nearest to a target, and exact quantities of crystals in bulk."""

from __future__ import annotations

import math

import numpy as np

from ase_hvae.rdf import N_SIGMA, RDFSettings
from ase_hvae.reconstruct.kernels import rdfs, shortest_distances
from ase_hvae.reconstruct.tables import Crystals

HANDICAP = 0.03  # Pearson distance that a free coordinate is hoped to gain in steering
MOST_HANDICAPS = 6  # more free coordinates than this gain no more
BEST_OF_TEMPLATE = 6  # most proposals of one template that are steered


def choose(crystals: Crystals, distances: np.ndarray, n_chosen: int) -> np.ndarray:
    """Return the positions of the proposals to steer: the nearest to the target, few of each template.

    Parameters
    ----------
    crystals : Crystals
        Proposals.
    distances : ndarray
        Shape (n_crystals,): their Pearson distances, infinite for those that are out.
    n_chosen : int
        Most positions to return.
    """
    tables, template = crystals.tables, crystals.template
    n_free = tables.n_free[template]
    order = np.argsort(distances - HANDICAP * np.minimum(n_free, MOST_HANDICAPS), kind="stable")
    order = order[np.isfinite(distances[order])]
    _, rank = _rank_within(template[order])
    most = np.minimum(tables.n_free + tables.n_strains, BEST_OF_TEMPLATE)
    return order[rank < most[template[order]]][:n_chosen]


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


def _rank_within(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the groups and, for each entry, how many entries of its group come before it."""
    order = np.argsort(groups, kind="stable")
    names, first, counts = np.unique(groups[order], return_index=True, return_counts=True)
    rank = np.empty(len(groups), dtype=np.int64)
    rank[order] = np.arange(len(groups)) - np.repeat(first, counts)
    return names, rank
