"""Descriptors of one structure with their derivatives by every atom and strain: the input of training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from maise_bridge.basis import Basis
from maise_bridge.descriptors import Bonds, Side, SymmetryFunctions
from maise_bridge.inputs import species_indices
from maise_bridge.neighbors import neighbor_list

_TRIPLETS_PER_CHUNK = 8_000
_VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


@torch.inference_mode()
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
            for d, other in dict.fromkeys((classes, classes[::-1])) if len(classes) == 2 else ((classes[0], None),):
                side = chunk.sides[d]
                table = (
                    _pair_table(functions, side)
                    if other is None
                    else _angular_table(functions, side, chunk.sides[other])
                )
                _scatter(bonds, side, centres, table, derivatives[:, block])
    return values, derivatives


def _pair_table(functions: SymmetryFunctions, side: Side) -> Tensor:
    """dG/d(bond vector) of the pair functions, (n_centres, n_neighbours, n_radial, 3)."""
    eta, shift = functions.radial.unbind(1)
    lengths = side.lengths[..., None]
    values = torch.exp(-eta * (lengths - shift) ** 2) * side.weights[..., None]
    along = 2.0 * values * (side.slopes[..., None] - eta * (lengths - shift) / lengths)
    return (along[..., None] * side.vectors[:, :, None]).contiguous()


def _angular_table(functions: SymmetryFunctions, side: Side, other: Side) -> Tensor:
    """dG/d(bond vector) of the angular functions by the bonds of one side, (n_centres, n_neighbours, n_angular, 3).

    Each bond is one row of triplets: it is paired with all bonds of the other side of the same centre.
    """
    n, n_bonds = side.squares.shape
    n_others = other.squares.shape[1]
    partner = torch.arange(n).repeat_interleave(n_bonds)
    rows = Side(side.index, *(field.reshape(n * n_bonds, 1, *field.shape[2:]) for field in _fields(side)))
    columns = Side(
        other.index.view(n, n_others)[partner].flatten(), *(field.index_select(0, partner) for field in _fields(other))
    )
    triplets = functions.triplets(rows, columns, distinct=side is other)
    vectors = columns.vectors.view(-1, 3).index_select(0, triplets.flat.view(-1)).view(*triplets.flat.shape, 3)
    d_j, d_k = rows.vectors.transpose(1, 2), vectors.transpose(1, 2).contiguous()
    slope, inverse = triplets.slope[:, None], triplets.inverse[:, None]
    value_weights = 2.0 * (d_j * (slope + rows.slopes[:, None]) - d_k * slope)
    eta_weights = 2.0 * d_k - 4.0 * d_j
    tilt_weights = d_k * inverse - d_j * (triplets.cosine[:, None] / rows.squares[:, None])
    eta, scale = functions.eta_of_function[:, None], functions.prefactor_of_function[:, None]
    table = _weighted(functions, triplets.radial, triplets.angular, value_weights) * scale
    table += _weighted(functions, triplets.radial, triplets.angular, eta_weights) * (scale * eta)
    tilted = _weighted(functions, triplets.radial, triplets.dangular, tilt_weights)
    table += tilted * functions.dprefactor_of_function[:, None]
    return table.reshape(n, n_bonds, -1, 3).contiguous()


def _fields(side: Side) -> tuple[Tensor, ...]:
    return side.vectors, side.squares, side.lengths, side.weights, side.slopes


def _weighted(functions: SymmetryFunctions, radial: Tensor, angular: Tensor, weights: Tensor) -> Tensor:
    """Sum of weights times E_a A_b over the triplets of each row, for each function: (n_rows, n_angular, 3)."""
    n, n_eta, n_triplets = radial.shape
    weighted = (weights[:, :, None] * radial[:, None]).view(n, 3 * n_eta, n_triplets)
    products = torch.bmm(weighted, angular.transpose(1, 2)).view(n, 3, -1)
    return products.index_select(2, functions.pick).transpose(1, 2)


def _scatter(bonds: Bonds, side: Side, centres: np.ndarray, table: Tensor, out: np.ndarray) -> None:
    """Add derivatives by bonds, (n_centres, n_neighbours, n_functions, 3), to those by atoms and strain."""
    n, n_bonds, n_functions, _ = table.shape
    n_atoms = (out.shape[2] - 6) // 3
    neighbour = torch.cat([bonds.neighbour, bonds.neighbour.new_zeros(1)])[side.index]
    target = torch.arange(n).repeat_interleave(n_bonds) * n_atoms + neighbour
    by_atom = table.new_zeros((n * n_atoms, n_functions, 3)).index_add_(0, target, table.view(-1, n_functions, 3))
    rows = np.arange(n)
    displacement = by_atom.view(n, n_atoms, n_functions, 3).numpy()
    displacement[rows, centres] -= table.sum(1).numpy()
    out[centres, :, : 3 * n_atoms] += displacement.transpose(0, 2, 1, 3).reshape(n, n_functions, 3 * n_atoms)
    strain = torch.bmm(table.view(n, n_bonds, -1).transpose(1, 2), side.vectors).view(n, n_functions, 3, 3).numpy()
    for column, (x, y) in enumerate(_VOIGT):
        out[centres, :, 3 * n_atoms + column] += 0.5 * (strain[..., x, y] + strain[..., y, x])
