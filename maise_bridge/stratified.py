"""Stratified training: what a model of several species takes over from models of fewer, and keeps.

Hajinazar, Shao, Kolmogorov, Phys. Rev. B 95, 014114 (2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maise_bridge.basis import Basis
from maise_bridge.inputs import input_blocks
from maise_bridge.model_file import MaiseModel


@dataclass(frozen=True, eq=False)
class FrozenNetworks:
    """All weights of networks but those of the last inputs to the first layer.

    Attributes
    ----------
    species : tuple of str
    basis : Basis
    n_first : int
        Inputs whose weights are fixed; they come first.
    maximum : ndarray, shape (n_species, n_first)
        Their ranges.
    weights : tuple of ndarray, shapes (n_species, n_out, n_in)
        Of three layers; n_in of the first is n_first.
    biases : tuple of ndarray, shapes (n_species, n_out)
    """

    species: tuple[str, ...]
    basis: Basis
    n_first: int
    maximum: np.ndarray
    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]

    @property
    def hidden(self) -> tuple[int, int]:
        """Widths of the hidden layers."""
        return self.weights[0].shape[1], self.weights[1].shape[1]


def freeze_models(models: Sequence[MaiseModel]) -> FrozenNetworks:
    """Take over models of the elements of a binary, or of the three binaries of a ternary.

    A species of a binary keeps its elemental network; only the weights of inputs that see the other species are free.
    A species of a ternary keeps its networks of both binaries, which must agree in what is elemental; only
    the weights of angular functions of its two partners are free.

    Parameters
    ----------
    models : sequence of MaiseModel
        Two of one species, in the order that the species of the new model will have; or three of two species.

    Raises
    ------
    ValueError
        If these are not such models, or they differ in basis, layers or elemental parts.
    """
    species = tuple(dict.fromkeys(symbol for model in models for symbol in model.species))
    sizes = [len(model.species) for model in models]
    pairs = {frozenset(model.species) for model in models}
    if not (sizes == [1, 1] and len(species) == 2) and not (sizes == [2, 2, 2] and len(species) == len(pairs) == 3):
        found = ", ".join("-".join(model.species) for model in models)
        raise ValueError(f"models of {found}; give two of one element each, or the three binaries of three elements")
    first = models[0]
    for model in models:
        if model.basis.text != first.basis.text or model.architecture[1:] != first.architecture[1:]:
            raise ValueError(
                f"models of {'-'.join(first.species)} ({first.architecture}) and {'-'.join(model.species)} "
                f"({model.architecture}) differ in basis or layers; train them alike"
            )
        if len(model.weights) != 3 or model.minimum.any():
            raise ValueError(f"model of {'-'.join(model.species)}: two hidden layers and ranges from 0 are needed")
    parts = [_species_part(symbol, species, models) for symbol in species]
    return FrozenNetworks(
        species=species,
        basis=first.basis,
        n_first=len(parts[0][0]),
        maximum=np.stack([maximum for maximum, _, _ in parts]),
        weights=tuple(np.stack(layer) for layer in zip(*(weights for _, weights, _ in parts), strict=True)),
        biases=tuple(np.stack(layer) for layer in zip(*(biases for _, _, biases in parts), strict=True)),
    )


def _species_part(
    symbol: str, species: Sequence[str], models: Sequence[MaiseModel]
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Ranges, weights and biases of the network of a species."""
    place = species.index(symbol)
    partners = [species[(place + d) % len(species)] for d in range(1, len(species))]
    own = [model for model in models if symbol in model.species]
    networks = {}
    for model in own:
        s = model.species.index(symbol)
        others = [name for name in model.species if name != symbol]
        arrays = [matrix[s] for matrix in model.weights], [vector[s] for vector in model.biases], model.maximum[s]
        networks[others[0] if others else symbol] = arrays
    weights, biases, maximum = next(iter(networks.values()))
    if len(models) == 2:
        return maximum, list(weights), list(biases)
    n_radial, n_angular = len(own[0].basis.radial), len(own[0].basis.angular)
    _check_elemental(symbol, list(networks.values()), n_radial + n_angular)
    source = dict(input_blocks(2, n_radial, n_angular))
    columns, ranges = [], []
    for classes, _ in input_blocks(3, n_radial, n_angular):
        if classes == (1, 2):
            continue
        matrices, _, own_ranges = networks[partners[max(max(classes), 1) - 1]]
        block = source[tuple(min(d, 1) for d in classes)]
        columns.append(matrices[0][:, block])
        ranges.append(own_ranges[block])
    return np.concatenate(ranges), [np.concatenate(columns, axis=1), *weights[1:]], list(biases)


def _check_elemental(symbol: str, networks: Sequence[tuple], n_own: int) -> None:
    """The binaries of an element must have its elemental network in common."""
    first, second = (
        [weights[0][:, :n_own], *weights[1:], *biases, maximum[:n_own]] for weights, biases, maximum in networks
    )
    if not all(np.array_equal(one, other) for one, other in zip(first, second, strict=True)):
        raise ValueError(f"two binaries of {symbol} have different elemental parts; train both from one model of it")
