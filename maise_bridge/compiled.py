"""Symmetry functions and network of a model on one processor core: the engine of :class:`maise_bridge.MaisePotential`.

The compiled loops and the formulas behind them are in :mod:`maise_bridge.kernels`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maise_bridge import kernels
from maise_bridge.basis import Basis
from maise_bridge.inputs import input_blocks
from maise_bridge.model_file import MaiseModel
from maise_bridge.neighbors import NeighborList
from maise_bridge.topology import Topology


@dataclass(frozen=True, eq=False)
class Shells:
    """Functions of the length of each bond that symmetry functions are made of.

    Attributes
    ----------
    squares, inverse, near : ndarray, shape (n_bonds,)
        r² (Å²), 1/r (1/Å), and whether r is below the cutoff.
    damping : ndarray, shape (n_bonds,)
        d ln fc / d r²; 1/Å².
    pairs : ndarray, shape (n_bonds, n_radial)
        exp(-eta (r - Rs)²) fc(r).
    radial : ndarray, shape (n_bonds, LANES)
        exp(-eta r²) fc(r) for the eta of the angular functions.
    """

    squares: np.ndarray
    inverse: np.ndarray
    near: np.ndarray
    damping: np.ndarray
    pairs: np.ndarray
    radial: np.ndarray


class CompiledFunctions:
    """Descriptors of all atoms of a batch, and the derivatives of what is made of them.

    Parameters
    ----------
    basis : Basis
        Its functions must fit, see :func:`maise_bridge.kernels.fits`.
    n_species : int
        1 to 3.
    """

    def __init__(self, basis: Basis, n_species: int) -> None:
        self.basis, self.n_species = basis, n_species
        self.n_inputs = basis.n_inputs(n_species)
        blocks = list(input_blocks(n_species, len(basis.radial), len(basis.angular)))
        self._pair_columns = [columns for classes, columns in blocks if len(classes) == 1]
        angular = [(classes, columns) for classes, columns in blocks if len(classes) == 2]
        self._angular_columns = [columns for _, columns in angular]
        self._tables = _table_numbers(n_species, [classes for classes, _ in angular])
        etas, lanes = np.unique(basis.angular[:, 0], return_inverse=True)
        self._etas = np.zeros((1, kernels.LANES))
        self._etas[0, : len(etas)] = etas
        # where each angular function stands in a table, and the factor in front of it
        powers = [kernels.POWERS.index((zeta, sign)) for _, zeta, sign in basis.angular.tolist()]
        self._places = np.array(powers, dtype=np.int64) * kernels.LANES + lanes
        self._factors = 4.0 * 0.5 ** basis.angular[:, 1]

    def shells(self, squares: np.ndarray) -> Shells:
        """Evaluate all functions of r, given r² (n_bonds,) in Å²."""
        cutoff = self.basis.cutoff
        lengths = np.sqrt(squares)
        near = squares < cutoff * cutoff
        angle = (0.5 * np.pi / cutoff) * np.where(near, lengths, 0.0)
        cosine = np.cos(angle)
        weights = np.where(near, cosine * cosine, 0.0)
        damping = (-0.5 * np.pi / cutoff) * np.sin(angle) / cosine
        inverse = 1.0 / lengths
        damping[near] *= inverse[near]
        eta, shift = self.basis.radial.T
        pairs = np.exp(-eta * np.square(lengths[:, None] - shift)) * weights[:, None]
        radial = np.exp(-self._etas * squares[:, None]) * weights[:, None]
        return Shells(squares, inverse, near, damping, pairs, radial)

    def forward(self, bonds: Topology, shells: Shells, species: np.ndarray) -> np.ndarray:
        """Descriptors (n_atoms, n_inputs) in MAISE's order; `species` (n_atoms,) counts within the model, from 0."""
        n_atoms = len(species)
        pairs = np.zeros((n_atoms, self.n_species, len(self.basis.radial)))
        kernels.add_pairs(bonds.centre, bonds.neighbour, species, self.n_species, shells.pairs, pairs)
        tables = self._new_tables(n_atoms)
        with kernels.superwords():
            kernels.add_triangles(*self._triangles(bonds, shells, species), tables)
        tables = tables.reshape(n_atoms, len(self._angular_columns), -1)
        out = np.empty((n_atoms, self.n_inputs))
        for number, columns in enumerate(self._pair_columns):
            out[:, columns] = pairs[:, number]
        for number, columns in enumerate(self._angular_columns):
            out[:, columns] = tables[:, number, self._places] * self._factors
        return out

    def backward(self, bonds: Topology, shells: Shells, species: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """dE/d(r²) of every bond (n_bonds,), given dE/d(descriptors) (n_atoms, n_inputs)."""
        eta, shift = self.basis.radial.T
        slopes = np.zeros(len(bonds.centre))
        stretch = shells.damping[:, None] - eta * (1.0 - shift * shells.inverse[:, None])
        pairs = np.stack([gradient[:, columns] for columns in self._pair_columns], axis=1)
        kernels.differentiate_pairs(
            bonds.centre, bonds.neighbour, species, self.n_species, shells.pairs * stretch, pairs, slopes
        )
        tables = self._new_tables(len(species))
        by_block = tables.reshape(len(species), len(self._angular_columns), -1)
        for number, columns in enumerate(self._angular_columns):
            by_block[:, number, self._places] = gradient[:, columns] * self._factors
        with kernels.superwords():
            kernels.differentiate_triangles(
                *self._triangles(bonds, shells, species), self._etas, shells.damping, tables, slopes
            )
        return slopes

    def _new_tables(self, n_atoms: int) -> np.ndarray:
        return np.zeros((n_atoms * len(self._angular_columns) * len(kernels.POWERS), kernels.LANES))

    def _triangles(self, bonds: Topology, shells: Shells, species: np.ndarray) -> tuple[np.ndarray, ...]:
        """What both loops over triangles begin with."""
        geometry = (shells.squares, shells.inverse, shells.near, shells.radial)
        return bonds.centre, bonds.neighbour, species, self._tables, *bonds.triangles, *geometry


class CompiledNetwork:
    """Descriptors by compiled loops, layers by numpy."""

    def __init__(self, model: MaiseModel) -> None:
        self.model = model
        self.functions = CompiledFunctions(model.basis, len(model.species))

    def __call__(
        self, neighbors: NeighborList, species: np.ndarray, forces: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Energies, extrapolation and derivatives, see :class:`maise_bridge.potential.Network`."""
        bonds = neighbors.topology
        vectors, squares = neighbors.measured
        shells = self.functions.shells(squares)
        descriptors = self.functions.forward(bonds, shells, species)
        energies, extrapolation = np.empty(len(species)), np.empty(len(species))
        by_inputs = np.empty_like(descriptors)
        for s in np.unique(species):
            centres = np.flatnonzero(species == s)
            inputs = descriptors[centres]
            energies[centres], by_inputs[centres] = _layers(self.model, s, inputs)
            extrapolation[centres] = _extrapolation(self.model, s, inputs)
        gradient, virials = np.zeros((len(species), 3)), np.zeros((len(neighbors.cells), 3, 3))
        if forces:
            slopes = self.functions.backward(bonds, shells, species, by_inputs)
            kernels.collect(bonds.centre, bonds.neighbour, bonds.structure, vectors, slopes, gradient, virials)
        return energies, extrapolation, gradient, virials


def _layers(model: MaiseModel, s: int, descriptors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energies (n,) of atoms of species s and their derivatives by the descriptors (n, n_inputs)."""
    signal = (descriptors - model.minimum[s]) * model.scale[s]
    hidden = []
    for matrix, vector in zip(model.weights, model.biases, strict=True):
        outcome = np.tile(vector[s], (len(signal), 1))
        kernels.add_product(signal, matrix[s], outcome)
        signal = np.tanh(outcome)
        hidden.append(signal)
    gradient = np.tile(model.weights[-1][s, 0], (len(signal), 1))
    for signal, matrix in zip(reversed(hidden[:-1]), reversed(model.weights[:-1]), strict=True):
        before = np.zeros((len(signal), matrix.shape[2]))
        kernels.add_transposed_product(gradient * (1.0 - signal * signal), matrix[s], before)
        gradient = before
    return outcome[:, 0], gradient * model.scale[s]


def _extrapolation(model: MaiseModel, s: int, descriptors: np.ndarray) -> np.ndarray:
    """How far the worst input of each atom of species s lies outside the training data, in units of its range; (n,)."""
    outside = np.maximum(descriptors - model.maximum[s], model.minimum[s] - descriptors) * model.scale[s]
    return np.maximum(outside.max(axis=1), 0.0)


def _table_numbers(n_species: int, blocks: list[tuple[int, ...]]) -> np.ndarray:
    """Number of the block of angular inputs for a centre and two neighbours, (n_species, n_species, n_species)."""
    numbers = np.empty((n_species,) * 3, dtype=np.int64)
    for a, b, c in np.ndindex(numbers.shape):
        numbers[a, b, c] = blocks.index(tuple(sorted(((b - a) % n_species, (c - a) % n_species))))
    return numbers
