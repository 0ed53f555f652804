"""Descriptors of one structure with their derivatives by every atom and strain: the input of training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from maise_bridge.basis import Basis
from maise_bridge.descriptors import Bonds, Chunk, SymmetryFunctions, species_indices
from maise_bridge.neighbors import neighbor_list

_TRIPLETS_PER_CHUNK = 4_000
_VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


def descriptor_tables(atoms: Atoms, basis: Basis, species: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Compute unscaled descriptors and their derivatives by displacements and strain.

    With g = dE/dG, shape (n_atoms, n_inputs), of any function of the descriptors:
    ``derivative = np.einsum("il,ilz->z", g, dG)``; ``forces = -derivative[:-6].reshape(-1, 3)``;
    ``stress = derivative[-6:] / atoms.get_volume()`` in ASE's order and sign.

    Parameters
    ----------
    atoms : Atoms
        Any boundary conditions; not modified.
    basis : Basis
        Symmetry functions.
    species : sequence of str
        Chemical symbols of the model in its order; ``atoms`` may hold some of them only.

    Returns
    -------
    G : ndarray, shape (n_atoms, n_inputs)
        Descriptors, in MAISE's order of inputs, before any scaling.
    dG : ndarray, shape (n_atoms, n_inputs, 3 n_atoms + 6)
        Derivatives. Column 3 j + x: by Cartesian coordinate x of atom j with all its periodic images (1/Å). The
        last six: by the strain components xx yy zz yz xz xy, with positions following the cell,
        cell -> cell @ (1 + eps). The off-diagonal ones are derivatives by the engineering shear gamma, where
        eps_yz = eps_zy = gamma / 2, so that dE/dgamma_yz / V is the stress component yz.

    Raises
    ------
    ValueError
        If ``atoms`` holds a species that is not in ``species``.
    """
    numbers = species_indices([atoms], species)
    functions = SymmetryFunctions(basis, len(species))
    bonds = functions.bonds(neighbor_list([atoms], functions.cutoff), numbers)
    n_atoms = len(atoms)
    values = np.empty((n_atoms, functions.n_inputs))
    derivatives = np.zeros((n_atoms, functions.n_inputs, 3 * n_atoms + 6))
    for centres in functions.chunks(bonds, np.arange(n_atoms), triplets=_TRIPLETS_PER_CHUNK):
        chunk = functions.forward(bonds, centres)
        values[centres] = chunk.descriptors.numpy()
        for classes, block in functions.blocks:
            sides = [chunk.sides[d] for d in classes]
            by_bond = _pair_table(functions, chunk, classes[0]) if len(classes) == 1 else None
            for number, side in enumerate(sides):
                table = by_bond if by_bond is not None else _angular_table(functions, chunk, classes, number)
                _scatter(bonds, side.index, centres, table, derivatives[:, block])
    return values, derivatives


def _pair_table(functions: SymmetryFunctions, chunk: Chunk, d: int) -> Tensor:
    """dG/d(bond vector) of the pair functions, (n_centres, n_radial, n_neighbours, 3)."""
    side, values = chunk.sides[d], chunk.pairs[d]
    eta, shift = functions.radial[:, 0, None], functions.radial[:, 1, None]
    lengths = side.lengths[:, None, :]
    along = values * side.weights[:, None] * 2.0 * (side.slopes[:, None] - eta * (lengths - shift) / lengths)
    return along[..., None] * side.vectors[:, None]


def _angular_table(functions: SymmetryFunctions, chunk: Chunk, classes: tuple[int, ...], number: int) -> Tensor:
    """dG/d(bond vector) of angular functions by the left or right bond, (n_centres, n_angular, n_neighbours, 3)."""
    triplets = next(item for item in chunk.triplets if item.classes == classes)
    side, other = chunk.sides[classes[number]], chunk.sides[classes[1 - number]]
    eta_of, power_of = functions.factors
    n, n_left, n_right = len(chunk.centres), *(chunk.sides[d].squares.shape[1] for d in classes)
    places = triplets.flat - (torch.arange(n) * (n_left * n_right))[:, None]

    def dense(values: Tensor) -> Tensor:
        out = values.new_zeros((n, len(eta_of), n_left * n_right))
        out.scatter_add_(2, places[:, None].expand_as(values), values)
        full = out.view(n, len(eta_of), n_left, n_right)
        return full if number == 0 else full.transpose(2, 3)

    radial = triplets.radial.index_select(1, eta_of)
    values = radial * triplets.angular.index_select(1, power_of) * functions.prefactor_of_function[:, None]
    tilt = radial * triplets.dangular.index_select(1, power_of) * functions.dprefactor_of_function[:, None]
    stretch = values * -functions.eta_of_function[:, None]
    opposite = stretch + values * triplets.slope[:, None]
    mixed = dense(tilt * triplets.inverse[:, None] - 2.0 * opposite)
    scalar = 2.0 * (dense(stretch + opposite).sum(3) + dense(values).sum(3) * side.slopes[:, None])
    scalar -= dense(tilt * triplets.cosine[:, None]).sum(3) / side.squares[:, None]
    return scalar[..., None] * side.vectors[:, None] + mixed @ other.vectors[:, None]


def _scatter(bonds: Bonds, index: Tensor, centres: np.ndarray, table: Tensor, out: np.ndarray) -> None:
    """Add derivatives by bonds, (n_centres, n_functions, n_neighbours, 3), to those by atoms and strain."""
    places = index.view(len(centres), -1)
    n_atoms = (out.shape[2] - 6) // 3
    vectors = bonds.vectors[places]
    strain = torch.einsum("cfkx,cky->cfxy", table, vectors).numpy()
    neighbour = torch.cat([bonds.neighbour, bonds.neighbour.new_zeros(1)])[places]
    by_atom = table.new_zeros((*table.shape[:2], n_atoms, 3))
    by_atom.scatter_add_(2, neighbour[:, None, :, None].expand_as(table), table)
    rows = np.arange(len(centres))
    displacement = by_atom.numpy()
    displacement[rows, :, centres] -= table.sum(2).numpy()
    out[centres, :, : 3 * n_atoms] += displacement.reshape(*table.shape[:2], 3 * n_atoms)
    for column, (x, y) in enumerate(_VOIGT):
        out[centres, :, 3 * n_atoms + column] += 0.5 * (strain[..., x, y] + strain[..., y, x])
