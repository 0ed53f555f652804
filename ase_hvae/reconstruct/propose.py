"""Proposals: random crystals of the templates that a prior draws, more of those with more freedom."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ase_hvae.reconstruct.descent import Goal
from ase_hvae.reconstruct.drawing import draw
from ase_hvae.reconstruct.tables import Crystals, tabulate
from ase_hvae.reconstruct.wyckoff import Template

DOUBLINGS = 6  # twice as many proposals for each of the first free parameters of a template


def n_proposals_of(entry: Template) -> int:
    """Return how many proposals of a template are drawn at once; the volume is no free parameter."""
    return int(2 ** min(entry.n_free + len(entry.strains) - 1, DOUBLINGS))


def propose(
    templates: Iterator[Template], n_proposals: int, goal: Goal, volume_tolerance: float, rng: np.random.Generator
) -> tuple[Crystals, np.ndarray]:
    """Draw random crystals of the next templates within the window of volumes.

    Parameters
    ----------
    templates : iterator of Template
        Taken from until there are enough; one that comes twice gets twice as many proposals.
    n_proposals : int
        Total; the last template gets fewer if need be.
    goal : Goal
        What to compare with, and the limits.
    volume_tolerance : float
        Relative half-width of the window of volumes.
    rng : numpy Generator
        All randomness comes from it.

    Returns
    -------
    crystals : Crystals
    losses : ndarray
        Shape (n_proposals,): loss against the goal, infinite for crystals with overlapping atoms.
    """
    rows: dict[int, int] = {}
    drawn: list[Template] = []
    template: list[np.ndarray] = []
    left = n_proposals
    while left > 0:
        entry = next(templates)
        if id(entry) not in rows:
            rows[id(entry)] = len(drawn)
            drawn.append(entry)
        template.append(np.full(min(n_proposals_of(entry), left), rows[id(entry)]))
        left -= len(template[-1])
    tables, numbers = tabulate(drawn), np.concatenate(template)
    cells = np.zeros((n_proposals, 3, 3))
    coordinates = np.zeros((n_proposals, int(tables.n_free.max())))
    seed = np.uint64(rng.integers(2**63))
    losses = draw(tables, numbers, seed, 0, goal, volume_tolerance, cells, coordinates)
    return Crystals(tuple(drawn), tables, numbers, cells, coordinates), losses
