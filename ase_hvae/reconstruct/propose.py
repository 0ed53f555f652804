"""Proposals: random crystals of the templates that a prior draws, more of those with more freedom."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ase_hvae.reconstruct.coordination import Coordination
from ase_hvae.reconstruct.descent import Goal
from ase_hvae.reconstruct.drawing import draw
from ase_hvae.reconstruct.tables import Crystals, tabulate
from ase_hvae.reconstruct.wyckoff import Template

DOUBLINGS = 6  # twice as many proposals for each of the first free parameters of a template
HOPEFUL, HALVING = 23, 4  # half as many for so many more free parameters than this: dear to build, hardly ever right
STRICT_SHARE = 0.75  # of the templates' turns in which all atoms of a species are to have as many neighbours
STRICTNESS = 0.5  # loss for one neighbour too many or too few at every atom then


def n_proposals_of(entry: Template) -> int:
    """Return how many proposals of a template are drawn at once; the volume is no free parameter."""
    freedom = entry.n_free + len(entry.strains) - 1
    return round(2 ** min(freedom, DOUBLINGS, max(0.0, DOUBLINGS - (freedom - HOPEFUL) / HALVING)))


def propose(
    templates: Iterator[Template],
    n_proposals: int,
    goal: Goal,
    coordination: Coordination,
    unlikely: np.ndarray,
    volume_tolerance: float,
    rng: np.random.Generator,
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
    coordination : Coordination
        Neighbours that atoms should have; crystals in which species have sites of several kinds need not.
    unlikely : ndarray
        Lattice translations that the target has not, the table of `ase_hvae.reconstruct.lattice`.
    volume_tolerance : float
        Relative half-width of the window of volumes.
    rng : numpy Generator
        All randomness comes from it.

    Returns
    -------
    crystals : Crystals
    losses : ndarray
        Shape (n_proposals,): loss against goal and coordination, infinite for crystals with overlapping atoms.
    """
    rows: dict[int, int] = {}
    drawn: list[Template] = []
    template: list[np.ndarray] = []
    strictness: list[np.ndarray] = []
    left = n_proposals
    while left > 0:
        entry = next(templates)
        if id(entry) not in rows:
            rows[id(entry)] = len(drawn)
            drawn.append(entry)
        template.append(np.full(min(n_proposals_of(entry), left), rows[id(entry)]))
        strictness.append(np.full(len(template[-1]), STRICTNESS if rng.random() < STRICT_SHARE else 0.0))
        left -= len(template[-1])
    tables, numbers, strict = tabulate(drawn), np.concatenate(template), np.concatenate(strictness)
    cells = np.zeros((n_proposals, 3, 3))
    coordinates = np.zeros((n_proposals, int(tables.n_free.max())))
    seed = np.uint64(rng.integers(2**63))
    losses = draw(tables, numbers, strict, seed, 0, goal, coordination, unlikely, volume_tolerance, cells, coordinates)
    return Crystals(tuple(drawn), tables, numbers, cells, coordinates), losses
