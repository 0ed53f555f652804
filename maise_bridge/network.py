"""The networks in training: whitened inputs, energies and derivatives at once, folding into a MAISE model."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import block_diag
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
    def identity(cls, maximum: np.ndarray) -> Whitening:
        """Scale only, as MAISE does."""
        return cls(maximum=maximum, mean=np.zeros(len(maximum)), matrix=np.eye(len(maximum)))

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

    @classmethod
    def fit_last(cls, descriptors: np.ndarray, maximum: np.ndarray, n_first: int, *, floor: float = 1e-5) -> Whitening:
        """Scale the first inputs, and whiten the others about zero.

        Inputs that are zero stay zero, so that weights of the whitened ones change nothing where those vanish.
        """
        scaled = (descriptors / maximum)[:, n_first:]
        values, vectors = np.linalg.eigh(scaled.T @ scaled / len(scaled))
        kept = values > 1e-3 * floor * values.max()
        values = np.maximum(values[kept], floor * values.max())
        matrix = block_diag(np.eye(n_first), (vectors[:, kept] / np.sqrt(values)).T)
        return cls(maximum=maximum, mean=np.zeros(len(maximum)), matrix=matrix)

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
        self.register_buffer("fixed", torch.zeros(hidden[0], 0))

    def set_weights(self, weights: Sequence[np.ndarray], biases: Sequence[np.ndarray]) -> None:
        """Replace all weights and biases."""
        with torch.no_grad():
            for parameter, array in zip((*self.weights, *self.biases), (*weights, *biases), strict=True):
                parameter.copy_(torch.as_tensor(array))

    def freeze(self, weights: Sequence[np.ndarray], biases: Sequence[np.ndarray]) -> None:
        """Fix all but the weights of the last inputs to the first layer.

        Parameters
        ----------
        weights, biases : sequences of ndarray
            Of three layers; the first matrix, (n_hidden, n_fixed), is for the inputs that come first.
        """
        n_fixed = weights[0].shape[1]
        free = self.weights[0].detach()[:, n_fixed:].clone()
        self.fixed = torch.as_tensor(weights[0]).to(free.dtype)
        self.set_weights([self.weights[0].detach().numpy(), *weights[1:]], biases)
        self.requires_grad_(False)
        self.weights[0] = nn.Parameter(free)

    @property
    def first_layer(self) -> Tensor:
        """Weights of the first layer, (n_hidden, n_inputs)."""
        return torch.cat([self.fixed, self.weights[0]], 1) if self.fixed.shape[1] else self.weights[0]

    def forward(self, inputs: Tensor, tables: Tensor) -> tuple[Tensor, Tensor]:
        """Compute energies and their derivatives.

        Parameters
        ----------
        inputs : Tensor, shape (n_batch, n_atoms, n_inputs)
        tables : Tensor, shape (n_batch, n_atoms, n_inputs, n_columns)
            Derivatives of the inputs, columns as in :func:`maise_bridge.tables.descriptor_tables`.

        Returns
        -------
        energies : Tensor, shape (n_batch,)
        derivatives : Tensor, shape (n_batch, n_columns)
        """
        (_, w2, w3), (b1, b2, b3) = self.weights, self.biases
        w1 = self.first_layer
        h1 = torch.tanh(inputs @ w1.T + b1)
        h2 = torch.tanh(h1 @ w2.T + b2)
        energies = (h2 @ w3.T + b3).sum((1, 2))
        slope = ((((1 - h2 * h2) * w3[0]) @ w2) * (1 - h1 * h1)) @ w1
        n_batch, n_columns = len(inputs), tables.shape[-1]
        derivatives = torch.bmm(slope.reshape(n_batch, 1, -1), tables.reshape(n_batch, -1, n_columns))[:, 0]
        return energies, derivatives


class SpeciesNetworks(nn.Module):
    """A :class:`WhitenedNetwork` for each species; the energy is the sum over the atoms of all.

    Parameters
    ----------
    n_inputs : sequence of int
        Of each species.
    hidden : tuple of int
    rng : torch.Generator
    """

    def __init__(self, n_inputs: Sequence[int], hidden: Sequence[int], rng: torch.Generator) -> None:
        super().__init__()
        self.networks = nn.ModuleList(WhitenedNetwork(n, hidden, rng) for n in n_inputs)

    @property
    def members(self) -> list[WhitenedNetwork]:
        """The network of each species."""
        return list(self.networks)  # type: ignore[arg-type]

    def forward(self, inputs: Sequence[Tensor], tables: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Energies (n_batch,) and derivatives (n_batch, n_columns) of structures; one array a species, some empty."""
        parts = [
            network(*arrays)
            for network, *arrays in zip(self.members, inputs, tables, strict=True)
            if arrays[0].shape[1]
        ]
        energies, derivatives = parts[0]
        for more, slopes in parts[1:]:
            energies, derivatives = energies + more, derivatives + slopes
        return energies, derivatives

    def set_weights(self, weights: Sequence[np.ndarray], biases: Sequence[np.ndarray]) -> None:
        """Replace all weights and biases, arrays as in :class:`maise_bridge.model_file.MaiseModel`."""
        for s, network in enumerate(self.members):
            network.set_weights([array[s] for array in weights], [array[s] for array in biases])

    def freeze(self, weights: Sequence[np.ndarray], biases: Sequence[np.ndarray]) -> None:
        """Fix all but the weights of the last inputs, see :meth:`WhitenedNetwork.freeze`; first axis: species."""
        for s, network in enumerate(self.members):
            network.freeze([array[s] for array in weights], [array[s] for array in biases])

    def free_parameters(self) -> list[nn.Parameter]:
        """What is fitted."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def penalty(self, *, biases: bool = False) -> Tensor:
        """Sum of squares of the free weight matrices; with `biases`, as in MAISE, of all that is fitted."""
        free = self.free_parameters()
        return torch.stack([(array * array).sum() for array in free if biases or array.ndim == 2]).sum()

    def fold(
        self,
        whitenings: Sequence[Whitening],
        references: np.ndarray,
        *,
        species: Sequence[str],
        basis: Basis,
        info: Mapping[str, str],
    ) -> MaiseModel:
        """Write the same function as a MAISE model, whose inputs are descriptors scaled by their maximum.

        Parameters
        ----------
        whitenings : sequence of Whitening
            Of each species.
        references : ndarray, shape (n_species,)
            Energies per atom that the networks' energies are relative to; eV.
        species, basis, info
            See :meth:`maise_bridge.model_file.MaiseModel.create`.
        """
        weights: list[list[np.ndarray]] = [[], [], []]
        biases: list[list[np.ndarray]] = [[], [], []]
        for network, whitening, reference in zip(self.members, whitenings, references, strict=True):
            matrices = [matrix.detach().double().numpy() for matrix in (network.first_layer, *network.weights[1:])]
            vectors = [vector.detach().double().numpy() for vector in network.biases]
            first = matrices[0] @ whitening.matrix
            for layer, matrix in enumerate((first, *matrices[1:])):
                weights[layer].append(matrix)
            for layer, vector in enumerate((vectors[0] - first @ whitening.mean, vectors[1], vectors[2] + reference)):
                biases[layer].append(vector)
        return MaiseModel.create(
            species,
            basis,
            maximum=np.stack([whitening.maximum for whitening in whitenings]),
            weights=[np.stack(part) for part in weights],
            biases=[np.stack(part) for part in biases],
            info=info,
        )
