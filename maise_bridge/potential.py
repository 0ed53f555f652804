"""Energies, forces and stresses of many crystals at once from a MAISE model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from maise_bridge.descriptors import Bonds, SymmetryFunctions, species_indices
from maise_bridge.model_file import MaiseModel, read_model
from maise_bridge.neighbors import NeighborList, neighbor_list
from maise_bridge.repulsion import PREFACTOR, core_ranges, pair_repulsion


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a potential says about one structure.

    Attributes
    ----------
    energy : float
        Total energy; eV.
    energies : ndarray, shape (n_atoms,)
        Share of each atom, core repulsion included; their sum is `energy`. eV.
    repulsion : ndarray, shape (n_atoms,)
        Share of the core repulsion in `energies`; eV.
    forces : ndarray, shape (n_atoms, 3)
        eV/Å.
    virial : ndarray, shape (6,)
        dE/d(strain), xx yy zz yz xz xy; eV.
    stress : ndarray, shape (6,), or None
        `virial` / volume, ASE's order and sign; eV/Å³. None if the cell does not span space.
    extrapolation : ndarray, shape (n_atoms,)
        How far the worst input of each atom lies outside the range of the training data, in units of that range;
        0 inside.
    """

    energy: float
    energies: np.ndarray
    repulsion: np.ndarray
    forces: np.ndarray
    virial: np.ndarray
    stress: np.ndarray | None
    extrapolation: np.ndarray


class MaisePotential:
    """A MAISE neural network, evaluated natively in float64.

    Parameters
    ----------
    model : MaiseModel
        As read by :func:`maise_bridge.read_model`.
    core_repulsion : bool or float
        True: MAISE's short-range repulsion with its default of 100 eV; a number: another prefactor (eV); False: none.
    device, dtype : torch.device or str, torch.dtype
        Where and in which precision to compute; float32 is for screening only.
    """

    def __init__(
        self,
        model: MaiseModel,
        *,
        core_repulsion: bool | float = True,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.model = model
        self.species = model.species
        self.functions = SymmetryFunctions(model.basis, len(model.species), device=device, dtype=dtype)
        self.cutoff = model.basis.cutoff
        self.prefactor = PREFACTOR if core_repulsion is True else float(core_repulsion)
        self._ranges = core_ranges(model.species)
        tensors = (
            [torch.as_tensor(array, dtype=dtype, device=device) for array in arrays]
            for arrays in (model.weights, model.biases, (model.minimum, model.maximum, model.scale))
        )
        self._weights, self._biases, (self._minimum, self._maximum, self._scale) = tensors

    @classmethod
    def from_file(cls, path: str | Path, *, core_repulsion: bool | float = True) -> MaisePotential:
        """Read a model file. Raises ASE's ReadError naming file and line."""
        return cls(read_model(path), core_repulsion=core_repulsion)

    @torch.inference_mode()
    def evaluate(
        self, structures: Sequence[Atoms], *, neighbors: NeighborList | None = None, forces: bool = True
    ) -> list[Evaluation]:
        """Compute energy, forces, stress and extrapolation of some structures.

        Parameters
        ----------
        structures : sequence of Atoms
            Different sizes, species and boundary conditions may be mixed.
        neighbors : NeighborList, optional
            List of these structures with at least the model's cutoff, to reuse; made anew by default.
        forces : bool
            False: energies only; `forces`, `virial` and `stress` of the results are meaningless then.

        Returns
        -------
        list of Evaluation
            One per structure.

        Raises
        ------
        ValueError
            If a species is not covered, or a position or cell is not finite.
        """
        if not structures:
            return []
        species = species_indices(structures, self.species)
        if neighbors is None:
            neighbors = neighbor_list(structures, self.cutoff)
        bonds = self.functions.bonds(neighbors, species)
        slopes = torch.zeros_like(bonds.vectors)
        energies, extrapolation = self._network(bonds, species, slopes if forces else None)
        repulsion = self._repulsion(bonds, species, slopes)
        gradient, virials = _collect(bonds, slopes, len(species), len(structures))
        return _split(structures, energies, repulsion, -gradient, virials, extrapolation)

    def _network(self, bonds: Bonds, species: np.ndarray, slopes: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
        energies, extrapolation = np.empty(len(species)), np.empty(len(species))
        for s in range(len(self.species)):
            for centres in self.functions.chunks(bonds, np.flatnonzero(species == s)):
                chunk = self.functions.forward(bonds, centres)
                values, gradient = self._layers(chunk.descriptors, s)
                energies[centres] = values.cpu().numpy()
                outside = torch.maximum(chunk.descriptors - self._maximum[s], self._minimum[s] - chunk.descriptors)
                extrapolation[centres] = (outside * self._scale[s]).amax(1).clamp_min(0.0).cpu().numpy()
                if slopes is not None:
                    self.functions.backward(chunk, gradient, slopes)
        return energies, extrapolation

    def _layers(self, descriptors: Tensor, s: int) -> tuple[Tensor, Tensor]:
        """Energies (n,) of atoms of species s and their derivatives by the descriptors (n, n_inputs)."""
        signal = (descriptors - self._minimum[s]) * self._scale[s]
        hidden = []
        for matrix, vector in zip(self._weights[:-1], self._biases[:-1], strict=True):
            signal = torch.tanh(torch.addmm(vector[s], signal, matrix[s].T))
            hidden.append(signal)
        energies = signal @ self._weights[-1][s, 0] + self._biases[-1][s, 0]
        gradient = self._weights[-1][s].expand(len(signal), -1)
        for signal, matrix in zip(reversed(hidden), reversed(self._weights[:-1]), strict=True):
            gradient = (gradient * (1.0 - signal * signal)) @ matrix[s]
        return energies, gradient * self._scale[s]

    def _repulsion(self, bonds: Bonds, species: np.ndarray, slopes: Tensor) -> np.ndarray:
        out = np.zeros(len(species))
        near = (bonds.lengths[:-1] < self._ranges.max()).nonzero()[:, 0]
        if self.prefactor == 0.0 or len(near) == 0:
            return out
        centre, neighbour = bonds.centre[near].cpu().numpy(), bonds.neighbour[near].cpu().numpy()
        ranges = torch.as_tensor(self._ranges[species[centre], species[neighbour]]).to(bonds.lengths)
        lengths = bonds.lengths[near]
        energy, slope = pair_repulsion(lengths, ranges, self.prefactor)
        np.add.at(out, centre, energy.cpu().numpy())
        slopes.index_add_(0, near, (slope / lengths)[:, None] * bonds.vectors[near])
        return out


def _collect(bonds: Bonds, slopes: Tensor, n_atoms: int, n_structures: int) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives by positions (n_atoms, 3) and strain (n_structures, 3, 3) from those by bonds."""
    slopes, vectors = slopes[:-1], bonds.vectors[:-1]
    gradient = slopes.new_zeros((n_atoms, 3))
    gradient.index_add_(0, bonds.neighbour, slopes).index_add_(0, bonds.centre, slopes, alpha=-1)
    if n_structures == 1:
        virials = (slopes.T @ vectors)[None]
    else:
        products = (slopes[:, :, None] * vectors[:, None, :]).view(-1, 9)
        virials = slopes.new_zeros((n_structures, 9)).index_add_(0, bonds.structure, products).view(-1, 3, 3)
    return gradient.double().cpu().numpy(), virials.double().cpu().numpy()


def _split(
    structures: Sequence[Atoms],
    energies: np.ndarray,
    repulsion: np.ndarray,
    forces: np.ndarray,
    virials: np.ndarray,
    extrapolation: np.ndarray,
) -> list[Evaluation]:
    results = []
    first = 0
    for atoms, virial in zip(structures, virials, strict=True):
        part = slice(first, first + len(atoms))
        first += len(atoms)
        voigt = 0.5 * (virial + virial.T)[(0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)]
        total = energies[part] + repulsion[part]
        results.append(
            Evaluation(
                energy=float(total.sum()),
                energies=total,
                repulsion=repulsion[part],
                forces=forces[part],
                virial=voigt,
                stress=voigt / atoms.get_volume() if atoms.cell.rank == 3 else None,
                extrapolation=extrapolation[part],
            )
        )
    return results
