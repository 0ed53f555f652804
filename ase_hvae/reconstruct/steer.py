"""Steer crystals inside their space groups until their RDF is the target's, at smaller and smaller smearing.

The free parameters of a crystal are the free Wyckoff coordinates and the symmetric strains that keep its point group;
`ase_hvae.reconstruct.descent` has the loss and its descent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ase_hvae.reconstruct.descent import Goal, descend
from ase_hvae.reconstruct.goal import Target
from ase_hvae.reconstruct.tables import Crystals


@dataclass(frozen=True)
class Stage:
    """Steps at one smearing, and how many crystals go on.

    Attributes
    ----------
    sigma : float
        Smearing, at least that of the target; Å.
    rmax : float
        Distances compared; Å.
    n_steps : int
        Levenberg-Marquardt steps.
    keep : float
        Crystals that go on after it, those of lowest loss, in units of the number wanted at the end.
    each_atom : bool
        Whether each atom should have the target around it, instead of the crystal on average.
    """

    sigma: float
    rmax: float
    n_steps: int
    keep: float
    each_atom: bool = False


STAGES = (
    Stage(0.5, 4.0, 5, 12.0, each_atom=True),
    Stage(0.35, 4.0, 4, 8.0, each_atom=True),
    Stage(0.35, 5.0, 3, 6.0),
    Stage(0.35, 6.0, 5, 2.5),
    Stage(0.2, 8.0, 8, 1.5),
    Stage(0.12, 10.0, 8, 1.0),
    Stage(0.0, np.inf, 10, 1.0),
)


@dataclass(frozen=True, eq=False)
class Steered:
    """Where steering ended.

    Attributes
    ----------
    crystals : Crystals
    loss : ndarray
        Shape (n_crystals,): loss at the last smearing.
    kept : ndarray
        Shape (n_crystals,), int64: positions of the crystals in what was passed in.
    n_unsound : int
        Crystals that were flat, not finite or had coinciding atoms at the start, and were left out.
    n_refused : int
        Steps that were not taken because they led there.
    """

    crystals: Crystals
    loss: np.ndarray
    kept: np.ndarray
    n_unsound: int
    n_refused: int


def steer(
    crystals: Crystals,
    target: Target,
    *,
    n_kept: int | None = None,
    stages: Sequence[Stage] = STAGES,
) -> Steered:
    """Move crystals until their RDF is the target's; each crystal's way depends on no other.

    Parameters
    ----------
    crystals : Crystals
        Crystals to start from; not modified.
    target : Target
        g(r) and limits.
    n_kept : int, optional
        Crystals that reach the end; by default none is given up.
    stages : sequence of Stage
        Smearings, ranges and steps, one after the other.
    """
    kept = np.arange(len(crystals))
    loss = np.zeros(len(crystals))
    n_unsound = n_refused = 0
    for stage in stages:
        goal = target.goal(sigma=stage.sigma, rmax=stage.rmax, each_atom=stage.each_atom)
        crystals, loss, refused = descend_all(crystals, goal, stage.n_steps)
        n_refused += refused
        sound = np.isfinite(loss)
        n_unsound += int((~sound).sum())
        best = np.flatnonzero(sound)
        if n_kept is not None:
            best = best[np.argsort(loss[best], kind="stable")[: max(1, round(stage.keep * n_kept))]]
        crystals, loss, kept = crystals.select(best), loss[best], kept[best]
    return Steered(crystals, loss, kept, n_unsound, n_refused)


def descend_all(crystals: Crystals, goal: Goal, n_steps: int) -> tuple[Crystals, np.ndarray, int]:
    """Descend at one smearing; crystals, losses (NaN if unsound) and the number of refused steps."""
    cells, coordinates = crystals.cells.copy(), crystals.coordinates.copy()
    loss, n_refused = descend(crystals.tables, crystals.template, cells, coordinates, goal, n_steps)
    return crystals.moved(cells, coordinates), loss, int(n_refused.sum())
