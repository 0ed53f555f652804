"""Descriptors and network by torch: other devices and precisions, and any basis."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from maise_bridge.descriptors import Bonds, SymmetryFunctions
from maise_bridge.model_file import MaiseModel
from maise_bridge.neighbors import NeighborList


class TorchNetwork:
    """A model on a torch device.

    Parameters
    ----------
    model : MaiseModel
        Any basis.
    device, dtype : torch.device or str, torch.dtype, optional
        Where and in which precision to compute; float64 by default.
    """

    def __init__(self, model: MaiseModel, *, device: torch.device | str, dtype: torch.dtype | None = None) -> None:
        self.model = model
        self.functions = SymmetryFunctions(model.basis, len(model.species), device=device, dtype=dtype or torch.float64)
        self._weights, self._biases, ranges = (
            [torch.as_tensor(array, dtype=self.functions.dtype, device=self.functions.device) for array in arrays]
            for arrays in (model.weights, model.biases, (model.minimum, model.maximum, model.scale))
        )
        self._minimum, self._maximum, self._scale = ranges

    @torch.inference_mode()
    def __call__(
        self, neighbors: NeighborList, species: np.ndarray, forces: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Energies, extrapolation and derivatives, see :class:`maise_bridge.potential.Network`."""
        bonds = self.functions.bonds(neighbors, species)
        slopes = torch.zeros_like(bonds.vectors)
        energies, extrapolation = np.empty(len(species)), np.empty(len(species))
        for s in range(len(self.model.species)):
            for centres in self.functions.chunks(bonds, np.flatnonzero(species == s)):
                chunk = self.functions.forward(bonds, centres)
                values, gradient = self._layers(chunk.descriptors, s)
                energies[centres] = values.cpu().numpy()
                outside = torch.maximum(chunk.descriptors - self._maximum[s], self._minimum[s] - chunk.descriptors)
                extrapolation[centres] = (outside * self._scale[s]).amax(1).clamp_min(0.0).cpu().numpy()
                if forces:
                    self.functions.backward(chunk, gradient, slopes)
        return energies, extrapolation, *_collect(bonds, slopes, len(species), len(neighbors.cells))

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
