"""The mean of several networks, as one network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.linalg import block_diag

from maise_bridge.model_file import MaiseModel


def merge_models(models: Sequence[MaiseModel], *, info: Mapping[str, str] | None = None) -> MaiseModel:
    """Return the model whose energy is the mean of the energies of some models with the same inputs.

    The layers of the members stand side by side (the inner weight matrices are block diagonal), so that the result is
    an ordinary model file with wider layers.

    Parameters
    ----------
    models : sequence of MaiseModel
        Same species, basis, ranges and number of layers.
    info : mapping, optional
        Header entries of the result.

    Raises
    ------
    ValueError
        If there is no model or their inputs or layers differ.
    """
    if not models:
        raise ValueError("no models to merge")
    first = models[0]
    for model in models[1:]:
        if (model.species, model.basis.text, len(model.weights)) != (
            first.species,
            first.basis.text,
            len(first.weights),
        ) or not np.array_equal(model.scale, first.scale):
            raise ValueError("models differ in species, basis, input ranges or number of layers; they cannot be merged")
    species = range(len(first.species))
    last = len(first.weights) - 1
    weights, biases = [], []
    for layer in range(last + 1):
        parts = [[model.weights[layer][s] for model in models] for s in species]
        if layer == 0:
            merged = [np.concatenate(part) for part in parts]
        elif layer == last:
            merged = [np.concatenate(part, axis=1) / len(models) for part in parts]
        else:
            merged = [block_diag(*part) for part in parts]
        weights.append(np.stack(merged))
        offsets = [model.biases[layer] for model in models]
        biases.append(np.mean(offsets, axis=0) if layer == last else np.concatenate(offsets, axis=1))
    return MaiseModel.create(
        first.species, first.basis, maximum=first.maximum, weights=weights, biases=biases, info=info
    )
