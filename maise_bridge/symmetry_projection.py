"""Space groups that relaxations keep: forces on atoms and cell are projected onto their symmetric part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms

_TOLERANCE = 1e-3  # Å; deviations of this size are rounding of files, larger ones are another structure


@dataclass(frozen=True, eq=False)
class Operations:
    """Operations x' = R x + t of a space group in fractional coordinates of a crystal's cell; the whole group.

    Attributes
    ----------
    rotations : ndarray, shape (n, 3, 3)
        Whole numbers.
    translations : ndarray, shape (n, 3)
    """

    rotations: np.ndarray
    translations: np.ndarray


def symmetrized(atoms: Atoms, *, symprec: float = 0.01) -> tuple[Atoms, Operations]:
    """Copy of a crystal idealised to its space group as ASE does it, and its operations; no other cell is chosen.

    Of a supercell they are the operations that map its own lattice onto itself; only a primitive cell has all of them.

    Parameters
    ----------
    atoms : Atoms
        Not modified.
    symprec : float
        Distance tolerance of the search; Å.

    Raises
    ------
    ValueError
        If the crystal is not finite, right-handed and periodic: spglib, which ASE asks, crashes or errs on others.
    """
    from ase.spacegroup.symmetrize import prep_symmetry, refine_symmetry

    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all() and atoms.pbc.all()):
        raise ValueError(f"{atoms.symbols} is no finite crystal, pbc {atoms.pbc.tolist()}; it has no space group")
    determinant = np.linalg.det(atoms.cell.array)
    if not determinant > 0:
        raise ValueError(f"{atoms.symbols} has a cell of determinant {determinant:.4g} Å³; swap two cell vectors")
    if not (np.isfinite(symprec) and symprec > 0):
        raise ValueError(f"symprec is {symprec}; it must be a positive length in Å")
    ideal = atoms.copy()
    refine_symmetry(ideal, symprec)
    rotations, translations, _ = prep_symmetry(ideal, 1e-4)
    return ideal, Operations(rotations, translations)


def projector(atoms: Atoms, operations: Operations) -> np.ndarray:
    """Projector onto the symmetric ones among all changes of a crystal.

    It acts on the coordinates of :mod:`maise_bridge.batch_relax`, positions in the undeformed cell and log F. There the
    operations are the same orthogonal matrices Q all the way: an atom's row x becomes Q x of its image, log F becomes
    Q log F Q^T.

    Parameters
    ----------
    atoms : Atoms
        The crystal before it is deformed.
    operations : Operations
        A group that the crystal has.

    Returns
    -------
    ndarray, shape (3 n_atoms + 9, 3 n_atoms + 9)
        Symmetric, its square is itself.

    Raises
    ------
    ValueError
        If the crystal does not have one of the operations within 0.001 Å, or they are no group.
    """
    n_atoms, columns = len(atoms), atoms.cell.array.T
    out = np.zeros((3 * n_atoms + 9,) * 2)
    on_atoms, on_cell = out[:-9, :-9].reshape(n_atoms, 3, n_atoms, 3), out[-9:, -9:]
    for number, (rotation, translation) in enumerate(zip(operations.rotations, operations.translations, strict=True)):
        turned = columns @ rotation @ np.linalg.inv(columns)
        left, _, right = np.linalg.svd(turned)
        orthogonal = left @ right
        if np.abs((turned - orthogonal) @ columns).max() > _TOLERANCE:
            raise ValueError(f"the lattice of {atoms.symbols} does not have operation {number}; symmetrize it first")
        images = _images(atoms, rotation, translation, number)
        on_atoms[images, :, np.arange(n_atoms), :] += orthogonal
        on_cell += np.kron(orthogonal, orthogonal)
    out /= len(operations.rotations)
    if np.abs(out @ out - out).max() > 1e-6:
        raise ValueError(
            f"the {len(operations.rotations)} operations of {atoms.symbols} are no group; pass all of them"
        )
    return out


def _images(atoms: Atoms, rotation: np.ndarray, translation: np.ndarray, number: int) -> np.ndarray:
    """Which atom each atom is taken to, (n_atoms,)."""
    scaled = atoms.get_scaled_positions(wrap=False)
    shifts = (scaled @ rotation.T + translation)[:, None] - scaled
    shifts -= np.round(shifts)
    distances = np.linalg.norm(shifts @ atoms.cell.array, axis=2)
    distances[atoms.numbers[:, None] != atoms.numbers] = np.inf
    images = distances.argmin(axis=1)
    farthest = float(distances.min(axis=1).max())
    if farthest > _TOLERANCE or len(np.unique(images)) < len(atoms):
        raise ValueError(
            f"{atoms.symbols} does not have operation {number}: an atom is taken {farthest:.3g} Å from the next of its "
            f"species, limit {_TOLERANCE:g} Å; symmetrize it first"
        )
    return images
