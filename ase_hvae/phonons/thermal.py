"""Energy of the harmonic motion: zero-point energy and Helmholtz free energy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import units

from ase_hvae.errors import PhononError
from ase_hvae.phonons.harmonic import PhononResult, logged_warnings


@dataclass(frozen=True)
class HarmonicEnergy:
    """What the motion of the atoms adds to the energy of a crystal.

    Attributes
    ----------
    temperature : float
        K.
    zero_point_energy : float
        eV/atom.
    free_energy : float
        Helmholtz free energy of the phonons, zero-point energy included, eV/atom; add the energy of the crystal.
    """

    temperature: float
    zero_point_energy: float
    free_energy: float


def harmonic_energy(result: PhononResult, temperature: float) -> HarmonicEnergy:
    """Zero-point and Helmholtz free energy of the phonons on the mesh.

    The three acoustic modes at Gamma are left out: their frequency is zero but for rounding. Frequencies that are
    imaginary within the tolerance of the verdict are left out too, which is an error of the mesh.

    Parameters
    ----------
    result : PhononResult
        Phonons of a stable crystal.
    temperature : float
        K; at 0 K both energies are the same.

    Raises
    ------
    PhononError
        If the crystal is unstable: an imaginary frequency has no free energy.

    References
    ----------
    Togo, J. Phys. Soc. Jpn. 92, 012001 (2023).
    """
    if not (np.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature is {temperature}; it must be finite and not negative, in K")
    if not result.stable:
        raise PhononError(
            f"no free energy: the lowest frequency is {result.min_frequency:.2f} THz (imaginary), limit "
            f"{-result.tolerance:g} THz; follow the soft mode to a stable crystal"
        )
    with logged_warnings():
        thermal: Any = result.phonon.run_thermal_properties(temperatures=[temperature], exclude_gamma_acoustic=True)
    per_atom = units.kJ / units.mol / len(result.atoms)
    free_energy = float(thermal.free_energy[0]) * per_atom
    return HarmonicEnergy(float(temperature), float(thermal.zero_point_energy) * per_atom, free_energy)
