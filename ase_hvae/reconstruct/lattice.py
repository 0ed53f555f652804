"""Which distances can be lattice translations of a crystal that has a target g(r).

A translation and its opposite give every atom two neighbours of its own species at one distance, as many as six to
twelve atoms of a cell have between them otherwise, so that the target shows where there can be none.
"""

from __future__ import annotations

import numpy as np

from ase_hvae.reconstruct.composition import Composition
from ase_hvae.reconstruct.goal import Target

SPACING = 0.01  # of tabulated lengths; Å
ALIKE = 0.06  # difference of translations that count as equally long; Å
MULTIPLES = 6  # translations of equal length that are told apart, as the three of a cube
MISSING = 0.01  # share of a translation's peak that may exceed the target's g(r), for rounding
LENGTH = 3.0  # a translation of this length costs as much as its peak exceeds the target, longer ones less; Å


def unlikely_translations(target: Target, composition: Composition) -> np.ndarray:
    """Tabulate how far the neighbours by lattice translations exceed those that the target has.

    Parameters
    ----------
    target : Target
        Taken at its own smearing, or at the width of its bins if that is more.
    composition : Composition
        Translations have to be there in the g(r) of every species with itself.

    Returns
    -------
    ndarray
        Shape (MULTIPLES, n_lengths): loss of each of 1, 2, ... translations (opposite ones being one) of a length, at
        steps of `SPACING`; 0 where the target has them.
    """
    settings = target.settings
    goal = target.goal(sigma=max(settings.sigma, settings.bin_width))
    rdfs = goal.target.reshape(len(np.atleast_2d(target.rdf)), -1)
    grid = goal.origin + goal.step * np.arange(rdfs.shape[1])
    density = 4 * np.pi * grid**2 / target.limits.volume_per_atom
    lengths = (np.arange(int(grid[-1] / SPACING)) + 0.5) * SPACING
    peaks = np.exp(-0.5 * ((grid - lengths[:, None]) / goal.sigma) ** 2) / goal.sigma / np.sqrt(2 * np.pi)
    neighbors = 2 * np.arange(1, MULTIPLES + 1)[:, None, None] * peaks
    missing = np.zeros(neighbors.shape[:2])
    for channel, (one, other) in enumerate(composition.channels):
        if one == other:
            excess = np.clip(neighbors - density * composition.fractions[one] * rdfs[channel], 0, None)
            missing = np.maximum(missing, (excess**2).sum(2) / (neighbors**2).sum(2))
    return np.where(missing > MISSING, missing * LENGTH / lengths, 0.0)
