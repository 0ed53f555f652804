"""First shells: how many neighbours the atoms of a crystal with a target RDF have.

The total g(r) tells the mean number of neighbours only. In most crystals all atoms of a species have as many as the
mean says, or nearly, so that proposals whose atoms do are worth more than those that have the mean by accident.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ase_hvae.reconstruct.composition import Composition
from ase_hvae.reconstruct.goal import Target

SHELL_SIGMA = 0.2  # smearing at which the end of the first shell is looked for; Å
SHELL_RMAX = 6.0  # where it ends at the latest; Å
PEAK = 0.5  # height of the first shell at least, of the highest
GAP = 0.4  # g(r) after it at most, of the first shell's height
ROUNDED = 0.2  # deviation from a whole number that is taken for noise


class Coordination(NamedTuple):
    """How many neighbours atoms should have.

    Attributes
    ----------
    shells : ndarray
        Shape (n_channels,): where the first shell of a pair of species ends, 0 if none is set apart; Å.
    least, most : ndarray
        Shape (n_species, n_species): neighbours within the shell, [of an atom of this species, of that species].
    """

    shells: np.ndarray
    least: np.ndarray
    most: np.ndarray


def first_shells(target: Target, composition: Composition) -> Coordination:
    """Find the first shells of a target, and the whole numbers of neighbours that its means lie between."""
    goal = target.goal(sigma=SHELL_SIGMA, rmax=SHELL_RMAX)
    rdfs = np.atleast_2d(target.rdf)
    smooth = goal.target.reshape(len(rdfs), -1)
    grid = goal.origin + goal.step * np.arange(smooth.shape[1])
    shells = np.array([_end_of_first_peak(grid, row) for row in smooth])
    settings, n_species = target.settings, len(composition.species)
    least, most = np.zeros((2, n_species, n_species))
    volumes = settings.shell_volumes / target.limits.volume_per_atom
    for channel, pair in enumerate(composition.channels):
        inside = float(rdfs[channel] @ (volumes * (settings.grid < shells[channel])))
        for center, other in (pair, pair[::-1]):
            mean = inside * composition.fractions[other]
            place = composition.species.index(center), composition.species.index(other)
            least[place], most[place] = np.floor(mean + ROUNDED), np.ceil(mean - ROUNDED)
    return Coordination(shells, least, most)


def _end_of_first_peak(grid: np.ndarray, rdf: np.ndarray) -> float:
    """Return where g(r) is least after its first peak; 0 if it hardly falls there."""
    inner = np.arange(1, len(rdf) - 1)
    peaks = inner[(rdf[inner] >= rdf[inner - 1]) & (rdf[inner] > rdf[inner + 1]) & (rdf[inner] >= PEAK * rdf.max())]
    if len(peaks) == 0:
        return 0.0
    after = inner[(inner > peaks[0]) & (rdf[inner] <= rdf[inner + 1])]
    if len(after) == 0 or rdf[after[0]] > GAP * rdf[peaks[0]]:
        return 0.0
    return float(grid[after[0]])
