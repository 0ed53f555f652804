"""Crystals relaxed within their space group, set free: is there a lower minimum of lower symmetry nearby?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from maise_bridge.batch_relax import Potential, Relaxed, batch_relax


def release(
    ends: Sequence[Relaxed],
    potential: Potential,
    *,
    seed: int = 0,
    displacement: float = 0.02,
    strain: float = 0.005,
    tolerance: float = 1e-3,
    **options: Any,
) -> Iterator[Relaxed]:
    """Disturb relaxed crystals a little and relax on without symmetry; keep what is lower, else the crystal as it was.

    Parameters
    ----------
    ends : sequence of Relaxed
        Of :func:`maise_bridge.batch_relax.batch_relax` with `symmetry`; not modified. What has failed is returned.
    potential : MaisePotential
        The one that relaxed them.
    seed : int
        The crystal of index i is disturbed by numbers of ``SeedSequence(seed, spawn_key=(i,))``.
    displacement, strain : float
        Standard deviations of the displacements (Å) and of the elements of the strain.
    tolerance : float
        Enthalpy by which a crystal must fall to lose its symmetry; eV/atom.
    **options
        Of `batch_relax`, as they were for `ends`.

    Yields
    ------
    Relaxed
        `n_steps` counts both relaxations; `energy_initial` is that of the first start.
    """
    free = [end for end in ends if end.failure is None]
    yield from (end for end in ends if end.failure is not None)
    disturbed = []
    for end in free:
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(end.index,)))
        atoms = end.atoms.copy()
        atoms.positions += displacement * rng.normal(size=(len(atoms), 3))
        change = strain * rng.normal(size=(3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.5 * (change + change.T)), scale_atoms=True)
        disturbed.append(atoms)
    pressure = options.get("scalar_pressure", 0.0)
    for after in batch_relax(disturbed, potential, **options):
        before = free[after.index]
        fall = (_enthalpy(before, pressure) - _enthalpy(after, pressure)) / len(before.atoms)
        kept = after if after.failure is None and fall > tolerance else before
        yield dataclasses.replace(
            kept,
            index=before.index,
            energy_initial=before.energy_initial,
            n_steps=before.n_steps + after.n_steps,
        )


def _enthalpy(end: Relaxed, pressure: float) -> float:
    return end.evaluation.energy + pressure * end.atoms.get_volume()
