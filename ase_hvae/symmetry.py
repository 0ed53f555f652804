"""Space groups: find them, build crystals from them, idealise crystals to them.

The only importer of spglib. spglib kills the process on non-finite input and accepts left-handed cells silently, so
every call goes through :func:`_spglib_cell`, which refuses both.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import spglib
import spglib.error
from ase import Atoms
from ase.data import chemical_symbols
from ase.geometry import cellpar_to_cell

from ase_hvae.errors import StructureError, SymmetryError

logger = logging.getLogger(__name__)

# Failures are exceptions here; what spglib prints on stderr about the attempts before them is noise.
spglib.error.OLD_ERROR_HANDLING = False
os.environ.setdefault("SPGLIB_WARNING", "OFF")

N_HALL_NUMBERS = 530


@dataclass(frozen=True, eq=False)
class SymmetryInfo:
    """Space group of a crystal.

    Attributes
    ----------
    number : int
        International number, 1 to 230.
    symbol : str
        Short Hermann-Mauguin symbol, e.g. ``"Fd-3m"``.
    hall_number : int
        spglib's serial number of the setting, 1 to 530.
    point_group : str
        Hermann-Mauguin symbol of the point group.
    wyckoff_letters : tuple of str
        Wyckoff letter of each atom, length n_atoms.
    orbits : np.ndarray
        Index of the first atom of each atom's orbit, ``(n_atoms,)``.
    wyckoff_sites : tuple of (str, str)
        Chemical symbol and Wyckoff position (multiplicity in the conventional cell, letter) of each orbit, sorted.
    n_primitive : int
        Atoms in the primitive cell.
    n_operations : int
        Operations of the primitive cell, the order of the point group; a supercell has no fewer.
    symprec : float
        Distance tolerance of the search, Å.
    """

    number: int
    symbol: str
    hall_number: int
    point_group: str
    wyckoff_letters: tuple[str, ...]
    orbits: np.ndarray
    wyckoff_sites: tuple[tuple[str, str], ...]
    n_primitive: int
    n_operations: int
    symprec: float


@dataclass(frozen=True, eq=False)
class SymmetryResult:
    """A crystal idealised to its space group.

    Attributes
    ----------
    atoms : Atoms
        Standardised primitive cell, right-handed, idealised; carries no calculator.
    number, symbol, hall_number : int, str, int
        Space group of ``atoms``, confirmed at a tight tolerance.
    wyckoff_sites : tuple of (str, str)
        Chemical symbol and Wyckoff position of each orbit, sorted.
    symprec : float
        Tolerance that was used, Å; at most the one asked for.
    """

    atoms: Atoms
    number: int
    symbol: str
    hall_number: int
    wyckoff_sites: tuple[tuple[str, str], ...]
    symprec: float


def operations(hall_number: int) -> tuple[np.ndarray, np.ndarray]:
    """Operations x' = R x + t of a space-group setting, in fractional coordinates of the conventional cell.

    Parameters
    ----------
    hall_number : int
        spglib's serial number of the setting, 1 to 530.

    Returns
    -------
    rotations : np.ndarray
        Integers, ``(n_operations, 3, 3)``; lattice centrings count as operations.
    translations : np.ndarray
        ``(n_operations, 3)``, within [0, 1).
    """
    if not 1 <= hall_number <= N_HALL_NUMBERS:
        raise ValueError(f"hall_number is {hall_number}; it must lie between 1 and {N_HALL_NUMBERS}")
    found = spglib.get_symmetry_from_database(int(hall_number))
    if found is None:
        raise SymmetryError(f"spglib has no operations for hall_number {hall_number}")
    return found["rotations"].astype(int), found["translations"]


def build_crystal(
    hall_number: int,
    cellpar: Sequence[float],
    sites: Sequence[tuple[int, Sequence[float]]],
    *,
    tolerance: float = 0.02,
) -> Atoms:
    """Build the conventional cell of a crystal from its space group, lattice and one atom per orbit.

    Parameters
    ----------
    hall_number : int
        spglib's serial number of the setting, 1 to 530.
    cellpar : sequence of float
        a, b, c in Å and alpha, beta, gamma in degrees of the conventional cell.
    sites : sequence of (int, sequence of float)
        Atomic number and fractional coordinates of one representative per orbit.
    tolerance : float
        Images of a representative closer than this (Å) are one atom on a special position; it is moved onto it.

    Returns
    -------
    Atoms
        Conventional cell; ``atoms.arrays["orbit"]`` holds the index of each atom's site.

    Raises
    ------
    SymmetryError
        If the lattice does not have the symmetry of the setting.
    """
    rotations, translations = operations(hall_number)
    cell = cellpar_to_cell(cellpar)
    _check_lattice(hall_number, cell, rotations)
    if not sites:
        raise StructureError("a crystal needs at least one site; sites is empty")
    positions, numbers, orbit = [], [], []
    for index, (number, xyz) in enumerate(sites):
        images = _orbit(np.asarray(xyz, dtype=float), rotations, translations, cell, tolerance)
        positions.append(images)
        numbers += [int(number)] * len(images)
        orbit += [index] * len(images)
    atoms = Atoms(numbers=numbers, scaled_positions=np.concatenate(positions), cell=cell, pbc=True)
    atoms.set_array("orbit", np.array(orbit))
    return atoms


def space_group(atoms: Atoms, *, symprec: float = 0.01) -> SymmetryInfo:
    """Find the space group and Wyckoff positions of a crystal.

    Parameters
    ----------
    atoms : Atoms
        Periodic crystal, any cell.
    symprec : float
        Distance tolerance, Å.

    Raises
    ------
    StructureError
        If the crystal is empty, not finite, not periodic or left-handed.
    SymmetryError
        If spglib finds no group, e.g. because atoms lie closer than ``symprec``.
    """
    dataset = _call(spglib.get_symmetry_dataset, atoms, symprec)
    orbits = np.asarray(dataset.crystallographic_orbits)
    n_conventional = len(dataset.std_types)
    sites = []
    for first in np.unique(orbits):
        multiplicity = round(np.count_nonzero(orbits == first) * n_conventional / len(atoms))
        sites.append((chemical_symbols[atoms.numbers[first]], f"{multiplicity}{dataset.wyckoffs[first]}"))
    n_primitive = len(np.unique(dataset.mapping_to_primitive))
    return SymmetryInfo(
        number=int(dataset.number),
        symbol=str(dataset.international),
        hall_number=int(dataset.hall_number),
        point_group=str(dataset.pointgroup),
        wyckoff_letters=tuple(str(letter) for letter in dataset.wyckoffs),
        orbits=orbits,
        wyckoff_sites=tuple(sorted(sites, key=_site_order)),
        n_primitive=n_primitive,
        n_operations=len(operations(dataset.hall_number)[0]) * n_primitive // n_conventional,
        symprec=symprec,
    )


def rotations(atoms: Atoms, *, symprec: float = 0.01) -> np.ndarray:
    """Distinct rotations x' = R x of a crystal in fractional coordinates of its cell, integers, ``(n, 3, 3)``."""
    dataset = _call(spglib.get_symmetry_dataset, atoms, symprec)
    return np.unique(np.asarray(dataset.rotations, dtype=int), axis=0)


def cartesian_rotations(atoms: Atoms, *, symprec: float = 0.01) -> np.ndarray:
    """Point group of a crystal as orthogonal matrices, x' = Q x in the axes of ``atoms``, ``(n, 3, 3)``.

    They do not depend on the choice of cell: those of a supercell are found from the primitive cell.
    """
    small = primitive(atoms, symprec=symprec)
    columns = small.cell[:].T
    turned = columns @ rotations(small, symprec=symprec) @ np.linalg.inv(columns)
    left, _, right = np.linalg.svd(turned)  # the nearest orthogonal matrices: a lattice has its symmetry to symprec
    return left @ right


def wyckoff_sites(atoms: Atoms, *, symprec: float = 0.01) -> tuple[int, tuple[str, ...]]:
    """Space-group number and the Wyckoff position of every orbit, e.g. ``(227, ("8a",))`` for diamond.

    With several species the symbol follows, e.g. ``(225, ("4b Cl", "4a Na"))``. Multiplicities count the atoms in the
    conventional cell of spglib's default setting (unique axis b, hexagonal axes).
    """
    info = space_group(atoms, symprec=symprec)
    several = len({symbol for symbol, _ in info.wyckoff_sites}) > 1
    return info.number, tuple(f"{site} {symbol}" if several else site for symbol, site in info.wyckoff_sites)


def primitive(atoms: Atoms, *, symprec: float = 0.01, idealize: bool = False) -> Atoms:
    """Primitive cell of a crystal, right-handed.

    Parameters
    ----------
    atoms : Atoms
        Periodic crystal, any cell; not modified.
    symprec : float
        Distance tolerance, Å.
    idealize : bool
        Rotate the lattice to the standard orientation and remove deviations from the space group.

    Returns
    -------
    Atoms
        Primitive cell in spglib's standard choice of basis, with the ``info`` of ``atoms``.
    """
    cell, scaled_positions, numbers = _call(
        spglib.standardize_cell, atoms, symprec, to_primitive=True, no_idealize=not idealize
    )
    result = Atoms(numbers=numbers, scaled_positions=scaled_positions, cell=cell, pbc=True, info=dict(atoms.info))
    if result.cell.volume <= 0 or result.cell.handedness != 1:
        raise SymmetryError(f"spglib made a left-handed primitive cell of {atoms.symbols.get_chemical_formula()}")
    return result


def symmetrize(atoms: Atoms, *, symprec: float = 0.1) -> SymmetryResult:
    """Idealise a crystal to the highest space group that holds within a tolerance.

    A loose tolerance may name a group that the idealised crystal does not have. The group is therefore confirmed at a
    tenth of the tolerance (at most 0.001 Å) on the idealised cell; if it fails, the tolerance is halved, to 1e-4 Å.

    Parameters
    ----------
    atoms : Atoms
        Periodic crystal, any cell; not modified.
    symprec : float
        Largest distance tolerance, Å.

    Returns
    -------
    SymmetryResult
        Primitive, standardised and right-handed; its volume per atom is within 10 % of that of ``atoms``.

    Raises
    ------
    SymmetryError
        If no tolerance gives a consistent group.
    """
    _spglib_cell(atoms, symprec)
    tolerance, reason = symprec, ""
    while tolerance >= min(symprec, 1e-4):
        try:
            found = space_group(atoms, symprec=tolerance)
            ideal = primitive(atoms, symprec=tolerance, idealize=True)
            confirmed = space_group(ideal, symprec=min(1e-3, tolerance / 10))
            reason = _inconsistency(atoms, ideal, found, confirmed)
        except SymmetryError as error:
            reason = str(error)
        if not reason:
            return SymmetryResult(
                atoms=ideal,
                number=confirmed.number,
                symbol=confirmed.symbol,
                hall_number=confirmed.hall_number,
                wyckoff_sites=confirmed.wyckoff_sites,
                symprec=tolerance,
            )
        logger.debug("symmetrize at %.1e Å: %s", tolerance, reason)
        tolerance /= 2
    raise SymmetryError(f"no space group holds at any tolerance from {symprec:g} Å down to 1e-4 Å: {reason}")


def _inconsistency(atoms: Atoms, ideal: Atoms, found: SymmetryInfo, confirmed: SymmetryInfo) -> str:
    """Why the idealised cell is not the crystal in its space group; empty if it is."""
    if confirmed.n_primitive != len(ideal) or confirmed.n_operations < found.n_operations:
        return f"idealised cell has {confirmed.symbol} instead of {found.symbol}"
    ratio = (ideal.cell.volume / len(ideal)) / (atoms.cell.volume / len(atoms))
    if not 0.9 < ratio < 1.1:
        return f"idealising to {found.symbol} changes the volume per atom by a factor {ratio:.3f}"
    return ""


def _site_order(site: tuple[str, str]) -> tuple[str, int, str]:
    """Sort key: element, multiplicity, letter."""
    symbol, position = site
    return symbol, int(position[:-1]), position[-1]


def _check_lattice(hall_number: int, cell: np.ndarray, rotations: np.ndarray) -> None:
    """Refuse a lattice whose metric the rotations do not keep."""
    if not np.isfinite(cell).all() or np.linalg.det(cell) <= 0:
        raise StructureError(f"cell {cell.tolist()} is not finite and right-handed")
    metric = cell @ cell.T
    deviation = np.abs(rotations.transpose(0, 2, 1) @ metric @ rotations - metric).max()
    if deviation > 1e-3 * np.abs(metric).max():
        raise SymmetryError(
            f"the lattice does not have the symmetry of hall_number {hall_number}: "
            f"its metric changes by {deviation:.3g} Å² under the operations; check the setting"
        )


def _orbit(
    xyz: np.ndarray, rotations: np.ndarray, translations: np.ndarray, cell: np.ndarray, tolerance: float
) -> np.ndarray:
    """Distinct images of one point, within [0, 1); the point is first moved onto its special position."""
    if xyz.shape != (3,) or not np.isfinite(xyz).all():
        raise StructureError(f"fractional coordinates must be three finite numbers, not {xyz.tolist()}")
    images = rotations @ xyz + translations
    shifts = images - xyz
    shifts -= np.round(shifts)
    coincide = np.linalg.norm(shifts @ cell, axis=1) < tolerance
    special = xyz + shifts[coincide].mean(axis=0)
    images = rotations @ special + translations
    distinct: list[np.ndarray] = []
    for image in images:
        if distinct:
            delta = np.array(distinct) - image
            delta -= np.round(delta)
            if np.linalg.norm(delta @ cell, axis=1).min() < tolerance:
                continue
        distinct.append(image)
    if len(images) % len(distinct):
        raise SymmetryError(
            f"{xyz.tolist()} has {len(distinct)} images, which does not divide {len(images)} operations; "
            "it lies too near a special position: give more digits"
        )
    wrapped = np.array(distinct) % 1.0
    wrapped[np.isclose(wrapped, 1.0, atol=1e-12)] = 0.0
    return wrapped


def _spglib_cell(atoms: Atoms, symprec: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(cell, scaled positions, numbers) after the checks without which spglib crashes or lies."""
    if not (np.isfinite(symprec) and symprec > 0):
        raise ValueError(f"symprec is {symprec}; it must be a positive length in Å")
    if len(atoms) == 0:
        raise StructureError("structure is empty; a space group needs at least one atom")
    cell = np.array(atoms.cell, dtype=float)
    if not (np.isfinite(cell).all() and np.isfinite(atoms.positions).all()):
        raise StructureError("structure has a non-finite cell or position; spglib cannot take it")
    if not atoms.pbc.all():
        raise StructureError(f"structure has pbc {atoms.pbc.tolist()}; a space group needs three periodic directions")
    volume = float(np.linalg.det(cell))
    if not 1e-3 * len(atoms) <= volume < np.inf:
        raise StructureError(f"cell has det {volume:.4g} Å³; a right-handed cell with room for its atoms is needed")
    return cell, atoms.get_scaled_positions(wrap=True), np.array(atoms.numbers, dtype="intc")


def _call(function: Callable[..., Any], atoms: Atoms, symprec: float, **options: Any) -> Any:
    """Call spglib on checked input and turn its failures into SymmetryError."""
    cell = _spglib_cell(atoms, symprec)
    try:
        result = function(cell, symprec=symprec, **options)
    except spglib.SpglibError as error:
        raise SymmetryError(f"spglib failed at symprec {symprec:g} Å: {error}") from error
    if result is None:
        raise SymmetryError(f"spglib found no symmetry at symprec {symprec:g} Å")
    return result
