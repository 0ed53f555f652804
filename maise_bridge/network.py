"""The network in training: whitened inputs, energies and derivatives at once, folding into a MAISE model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from maise_bridge.basis import Basis
from maise_bridge.model_file import MaiseModel


@dataclass(frozen=True, eq=False)
class Whitening:
    """Affine map of scaled inputs to uncorrelated ones, x = matrix @ (G / maximum - mean).

    MAISE's inputs, scaled to their ranges, are nearly collinear; a network on x trains well and is the same network.

    Attributes
    ----------
    maximum, mean : ndarray, shape (n_inputs,)
        Largest value of each input, and mean of the scaled inputs.
    matrix : ndarray, shape (n_components, n_inputs)
    """

    maximum: np.ndarray
    mean: np.ndarray
    matrix: np.ndarray

    @classmethod
    def fit(cls, descriptors: np.ndarray, maximum: np.ndarray, *, floor: float = 1e-5) -> Whitening:
        """Whiten by the covariance of descriptors (n_atoms, n_inputs).

        Eigenvalues below `floor` of the largest are raised to it, so that noise in them is not blown up; components
        a thousand times smaller still are dropped.
        """
        scaled = descriptors / maximum
        mean = scaled.mean(0)
        values, vectors = np.linalg.eigh(np.cov(scaled.T))
        kept = values > 1e-3 * floor * values.max()
        values = np.maximum(values[kept], floor * values.max())
        return cls(maximum=maximum, mean=mean, matrix=(vectors[:, kept] / np.sqrt(values)).T)

    def inputs(self, descriptors: np.ndarray) -> np.ndarray:
        """Map descriptors (..., n_inputs)."""
        return (descriptors / self.maximum - self.mean) @ self.matrix.T

    def derivatives(self, tables: np.ndarray) -> np.ndarray:
        """Map derivatives of descriptors (n_atoms, n_inputs, ...)."""
        matrix = self.matrix / self.maximum
        return np.matmul(matrix, tables)


class WhitenedNetwork(nn.Module):
    """Two tanh layers and a linear one on whitened inputs; energies relative to a reference per atom.

    Parameters
    ----------
    n_inputs : int
    hidden : tuple of int
        Widths of the two hidden layers.
    rng : torch.Generator
        Source of the initial weights.
    """

    def __init__(self, n_inputs: int, hidden: Sequence[int], rng: torch.Generator) -> None:
        super().__init__()
        if len(hidden) != 2 or min(hidden) < 1:
            raise ValueError(f"hidden is {tuple(hidden)}; two layers of at least one neuron are needed")
        widths = (n_inputs, *hidden, 1)
        pairs = list(itertools.pairwise(widths))
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(n_out, n_in, generator=rng) / n_in**0.5) for n_in, n_out in pairs
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(n_out)) for _, n_out in pairs)

    def forward(self, inputs: Tensor, tables: Tensor) -> tuple[Tensor, Tensor]:
        """Compute energies and their derivatives.

        Parameters
        ----------
        inputs : Tensor, shape (n_batch, n_atoms, n_inputs)
        tables : Tensor, shape (n_batch, n_atoms, n_inputs, 3 n_atoms + 6)
            Derivatives of the inputs, columns as in :func:`maise_bridge.tables.descriptor_tables`.

        Returns
        -------
        energies : Tensor, shape (n_batch,)
        derivatives : Tensor, shape (n_batch, 3 n_atoms + 6)
        """
        (w1, w2, w3), (b1, b2, b3) = self.weights, self.biases
        h1 = torch.tanh(inputs @ w1.T + b1)
        h2 = torch.tanh(h1 @ w2.T + b2)
        energies = (h2 @ w3.T + b3).sum((1, 2))
        slope = ((((1 - h2 * h2) * w3[0]) @ w2) * (1 - h1 * h1)) @ w1
        n_batch, n_columns = len(inputs), tables.shape[-1]
        derivatives = torch.bmm(slope.reshape(n_batch, 1, -1), tables.reshape(n_batch, -1, n_columns))[:, 0]
        return energies, derivatives

    def penalty(self) -> Tensor:
        """Sum of squares of the weight matrices; biases go free."""
        return torch.stack([(matrix * matrix).sum() for matrix in self.weights]).sum()

    def fold(
        self, whitening: Whitening, reference: float, *, species: Sequence[str], basis: Basis, info: dict[str, str]
    ) -> MaiseModel:
        """Write the same function as a MAISE model, whose inputs are descriptors scaled by their maximum.

        Parameters
        ----------
        whitening : Whitening
        reference : float
            Energy per atom that the network's energies are relative to; eV.
        species, basis, info
            See :meth:`maise_bridge.model_file.MaiseModel.create`.
        """
        weights = [matrix.detach().double().numpy() for matrix in self.weights]
        biases = [vector.detach().double().numpy() for vector in self.biases]
        first = weights[0] @ whitening.matrix
        weights = [first, *weights[1:]]
        biases = [biases[0] - first @ whitening.mean, biases[1], biases[2] + reference]
        return MaiseModel.create(
            species,
            basis,
            maximum=whitening.maximum[None],
            weights=[matrix[None] for matrix in weights],
            biases=[vector[None] for vector in biases],
            info=info,
        )
