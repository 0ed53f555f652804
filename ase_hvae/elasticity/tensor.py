"""Algebra of elastic tensors: rotations, point groups, pressure, Born's criteria and polycrystalline averages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms, units

from ase_hvae.errors import ElasticityError

VOIGT_NAMES = ("xx", "yy", "zz", "yz", "xz", "xy")
VOIGT_PAIRS = np.array([[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]])
# Voigt component of a tensor's component (i, j).
VOIGT_INDEX = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])
# Kelvin's orthonormal components are Voigt's times these.
KELVIN = np.sqrt([1.0, 1.0, 1.0, 2.0, 2.0, 2.0])


@dataclass(frozen=True)
class Moduli:
    """Moduli of an isotropic polycrystal; v, r and h are the Voigt, Reuss and Hill averages.

    Attributes
    ----------
    bulk_v, bulk_r, bulk_h : float
        Bulk moduli, eV/Å³.
    shear_v, shear_r, shear_h : float
        Shear moduli, eV/Å³.
    young_v, young_r, young_h : float
        Young's moduli, eV/Å³.
    poisson_v, poisson_r, poisson_h : float
        Poisson's ratios.
    universal_anisotropy : float
        Zero for an isotropic crystal, else positive.

    References
    ----------
    Hill, Proc. Phys. Soc. A 65, 349 (1952); Ranganathan and Ostoja-Starzewski, Phys. Rev. Lett. 101, 055504 (2008).
    """

    bulk_v: float
    bulk_r: float
    bulk_h: float
    shear_v: float
    shear_r: float
    shear_h: float
    young_v: float
    young_r: float
    young_h: float
    poisson_v: float
    poisson_r: float
    poisson_h: float
    universal_anisotropy: float


def strain_matrix(strain: np.ndarray) -> np.ndarray:
    """Symmetric matrix of a strain whose Voigt shear components are twice those of the matrix, ``(3, 3)``."""
    return (strain * np.array([1.0, 1.0, 1.0, 0.5, 0.5, 0.5]))[VOIGT_INDEX]


def rotate_tensor(tensor: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Tensor of a crystal that is turned by x' = Q x; Voigt order, any unit, ``(6, 6)``.

    Parameters
    ----------
    tensor : np.ndarray
        Of the crystal before, ``(6, 6)``.
    rotation : np.ndarray
        Orthogonal Q, ``(3, 3)``, or several, ``(n, 3, 3)``, which give ``(n, 6, 6)``.
    """
    full = np.asarray(tensor, dtype=float)[VOIGT_INDEX[:, :, None, None], VOIGT_INDEX[None, None]]
    q = np.asarray(rotation, dtype=float)
    turned = np.einsum("...ip,...jq,...kr,...ls,pqrs->...ijkl", q, q, q, q, full, optimize=True)
    first, second = VOIGT_PAIRS
    return turned[..., first[:, None], second[:, None], first, second]


def symmetrize_tensor(tensor: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """Mean of a tensor over a point group (Cartesian, orthogonal, ``(n, 3, 3)``) and over C_ij = C_ji, ``(6, 6)``."""
    mean = rotate_tensor(tensor, rotations).mean(axis=0)
    return (mean + mean.T) / 2


def energy_tensor(tensor: np.ndarray, pressure: float) -> np.ndarray:
    """Second derivatives of the energy by the Lagrangian strain over the volume, from those of the stress by strain.

    Parameters
    ----------
    tensor : np.ndarray
        Stress-strain coefficients, eV/Å³, Voigt order, ``(6, 6)``.
    pressure : float
        Hydrostatic pressure, eV/Å³.

    Returns
    -------
    np.ndarray
        eV/Å³, ``(6, 6)``. For a cubic crystal C11 + p, C12 - p and C44 + p.

    References
    ----------
    Wallace, Phys. Rev. 162, 776 (1967).
    """
    correction = np.diag([2.0, 2, 2, 1, 1, 1])
    correction[:3, :3] -= 1
    return tensor + pressure * correction


def stability(tensor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues in Kelvin's components, ascending, ``(6,)``, and the unit strain of the lowest, ``(3, 3)``.

    They do not depend on the axes, and have the signs of those of Voigt's matrix: Born's criteria hold if all are
    positive.
    """
    kelvin = np.asarray(tensor) * np.outer(KELVIN, KELVIN)
    if not np.isfinite(kelvin).all():
        raise ElasticityError("elastic tensor is not finite")
    eigenvalues, vectors = np.linalg.eigh((kelvin + kelvin.T) / 2)
    return eigenvalues, strain_matrix(vectors[:, 0] * KELVIN)


def moduli(tensor: np.ndarray) -> Moduli:
    """Polycrystalline averages of a stable crystal's tensor (eV/Å³, Voigt order, ``(6, 6)``).

    Raises
    ------
    ElasticityError
        If the tensor is not positive definite: its compliance, and so the Reuss average, would mean nothing.
    """
    lowest = float(stability(tensor)[0][0])
    if not lowest > 0:
        raise ElasticityError(
            f"elastic tensor has an eigenvalue {lowest / units.GPa:.3g} GPa; only a positive definite one has moduli"
        )
    c, s = np.asarray(tensor, dtype=float), np.linalg.inv(tensor)
    bulk_v = c[:3, :3].sum() / 9
    bulk_r = 1 / s[:3, :3].sum()
    shear_v = (1.5 * np.trace(c[:3, :3]) - 0.5 * c[:3, :3].sum() + 3 * np.trace(c[3:, 3:])) / 15
    shear_r = 15 / (6 * np.trace(s[:3, :3]) - 2 * s[:3, :3].sum() + 3 * np.trace(s[3:, 3:]))
    bulk = {"v": bulk_v, "r": bulk_r, "h": (bulk_v + bulk_r) / 2}
    shear = {"v": shear_v, "r": shear_r, "h": (shear_v + shear_r) / 2}
    values: dict[str, float] = {}
    for name, k in bulk.items():
        g = shear[name]
        values |= {f"bulk_{name}": k, f"shear_{name}": g, f"young_{name}": 9 * k * g / (3 * k + g)}
        values |= {f"poisson_{name}": (3 * k - 2 * g) / (6 * k + 2 * g)}
    values["universal_anisotropy"] = 5 * shear_v / shear_r + bulk_v / bulk_r - 6
    return Moduli(**{name: float(value) for name, value in values.items()})


def debye_temperature(atoms: Atoms, averages: Moduli) -> float:
    """Debye temperature (K) from the mean speed of sound of the Hill averages.

    References
    ----------
    Anderson, J. Phys. Chem. Solids 24, 909 (1963).
    """
    density = atoms.get_masses().sum() / atoms.cell.volume
    transverse = np.sqrt(averages.shear_h / density)
    longitudinal = np.sqrt((averages.bulk_h + 4 / 3 * averages.shear_h) / density)
    speed = ((2 / transverse**3 + 1 / longitudinal**3) / 3) ** (-1 / 3)
    wave_number = (6 * np.pi**2 * len(atoms) / atoms.cell.volume) ** (1 / 3)
    return float(units._hbar * units.J * units.second * wave_number * speed / units.kB)
