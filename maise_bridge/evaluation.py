"""How far a potential is from labels, by energy window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from maise_bridge.batch_relax import Potential
from maise_bridge.dataset import Labels

WINDOWS = (0.5, 1.0, 1.5, np.inf)  # eV/atom above the lowest label
_BATCH = 32


@dataclass(frozen=True)
class WindowErrors:
    """Root mean square errors over rows up to some energy above the lowest.

    Attributes
    ----------
    window : float
        eV/atom above `lowest`.
    n_rows : int
    energy : float
        eV/atom.
    forces : float
        Of components; eV/Å.
    stress : float
        Of components, NaN without labels; eV/Å³.
    """

    window: float
    n_rows: int
    energy: float
    forces: float
    stress: float

    def as_dict(self) -> dict[str, float]:
        """Plain numbers."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Residuals:
    """Model minus label.

    Attributes
    ----------
    energies_per_atom : ndarray, shape (n,)
        eV/atom.
    forces : tuple of ndarray, shapes (n_atoms, 3)
        eV/Å.
    stresses : ndarray, shape (n, 6)
        NaN where not labelled; eV/Å³.
    """

    energies_per_atom: np.ndarray
    forces: tuple[np.ndarray, ...]
    stresses: np.ndarray


def residuals(potential: Potential, labels: Labels) -> Residuals:
    """Evaluate a potential on labelled structures."""
    energies, forces, stresses = [], [], []
    for first in range(0, len(labels), _BATCH):
        for evaluation in potential.evaluate(labels.structures[first : first + _BATCH]):
            energies.append(evaluation.energy)
            forces.append(evaluation.forces)
            stresses.append(evaluation.stress)
    return Residuals(
        energies_per_atom=(np.array(energies) - labels.energies) / labels.n_atoms,
        forces=tuple(got - wanted for got, wanted in zip(forces, labels.forces, strict=True)),
        stresses=np.array(stresses) - labels.stresses,
    )


def window_errors(
    errors: Residuals, labels: Labels, *, lowest: float, windows: Sequence[float] = WINDOWS
) -> list[WindowErrors]:
    """Root mean square errors up to each window (eV/atom) above `lowest` (eV/atom); empty windows are left out."""
    above = labels.energies_per_atom - lowest
    result = []
    for window in windows:
        rows = np.flatnonzero(above <= window)
        if len(rows) == 0:
            continue
        forces = np.concatenate([errors.forces[row].ravel() for row in rows])
        stresses = errors.stresses[rows]
        known = stresses[np.isfinite(stresses)]
        result.append(
            WindowErrors(
                window=float(window),
                n_rows=len(rows),
                energy=_rms(errors.energies_per_atom[rows]),
                forces=_rms(forces),
                stress=_rms(known) if len(known) else float("nan"),
            )
        )
    return result


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values * values)))
