"""Families of labelled structures, and splits that never separate a family."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist

from maise_bridge.basis import Basis
from maise_bridge.descriptors import SymmetryFunctions
from maise_bridge.inputs import species_indices
from maise_bridge.neighbors import neighbor_list

_PARENT = re.compile(r"(?:ev|rattle|strain|dimer|phonon|elastic|vacancy)_(?:lit:|mp:|aflow:)?(.+)")


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of a label set: to fit, to choose by, and to report on only."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def crystal_features(structures: Sequence[Atoms], basis: Basis, species: Sequence[str]) -> np.ndarray:
    """Mean descriptor of each crystal at one volume per atom, shape (n, n_inputs).

    Scaling all cells to the mean volume per atom makes a volume scan one point; the mean over atoms does not depend
    on the choice of cell.
    """
    functions = SymmetryFunctions(basis, len(species))
    volume = float(np.median([atoms.get_volume() / len(atoms) for atoms in structures]))
    features = np.empty((len(structures), functions.n_inputs))
    for row, atoms in enumerate(structures):
        scaled = atoms.copy()
        scaled.set_cell(atoms.cell.array * (volume * len(atoms) / atoms.get_volume()) ** (1 / 3), scale_atoms=True)
        bonds = functions.bonds(neighbor_list([scaled], functions.cutoff), species_indices([scaled], species))
        chunks = functions.chunks(bonds, np.arange(len(scaled)))
        total = sum(functions.forward(bonds, centres).descriptors.sum(0).numpy() for centres in chunks)
        features[row] = total / len(scaled)
    return features


def find_families(
    features: np.ndarray, n_atoms: np.ndarray, tags: Sequence[str], *, threshold: float = 0.08
) -> np.ndarray:
    """Number the families of structures, shape (n,).

    Structures belong together if (a) their tags name the same parent (`ev_X`, `rattle_X`), (b) their features
    differ by less than `threshold` (root mean square over inputs, each in units of half the width that holds the
    middle 68 % of the structures, so that a few odd ones change nothing for the others), or (c) one is tagged as
    rattled without naming its parent and the other is the nearest one of as many atoms.

    Parameters
    ----------
    features : ndarray, shape (n, n_inputs)
        From :func:`crystal_features`.
    n_atoms : ndarray, shape (n,)
    tags : sequence of str
    threshold : float
    """
    n = len(features)
    low, high = np.percentile(features, [16.0, 84.0], axis=0)
    spread = np.where(high > low, (high - low) / 2, features.std(0))
    distance = cdist(*(2 * [features / np.where(spread > 0, spread, 1.0)])) / np.sqrt(features.shape[1])
    links = [np.argwhere(np.triu(distance < threshold, 1))]
    parents: dict[str, int] = {}
    for row, tag in enumerate(tags):
        match = _PARENT.fullmatch(tag)
        if match:
            first = parents.setdefault(match.group(1).replace(":", "_"), row)
            links.append(np.array([[first, row]]))
        elif "rattle" in tag:
            others = np.flatnonzero((n_atoms == n_atoms[row]) & (np.arange(n) != row))
            if len(others):
                links.append(np.array([[row, others[np.argmin(distance[row, others])]]]))
    rows, columns = np.concatenate(links).T
    return connected_components(coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(n, n)), directed=False)[1]


def split_families(
    families: np.ndarray,
    *,
    validation: float = 0.1,
    test: float = 0.12,
    largest: float = 0.04,
    keep: np.ndarray | None = None,
    fold: tuple[int, int] | None = None,
    rng: np.random.Generator,
) -> Split:
    """Draw whole families for validation and test.

    Parameters
    ----------
    families : ndarray, shape (n,)
        Family number of each row.
    validation, test : float
        Shares of the rows to reach.
    largest : float
        Families holding a larger share of the rows are drawn last, the largest of all never.
    keep : ndarray of bool, shape (n,), optional
        Rows whose families stay in training.
    fold : tuple of int, optional
        Number, from 0, of a test set and how many there are: these have no family in common and hold all families that
        may be held out, in about equal parts; instead of the share `test`. The same `rng` each time. Validation rows
        come from the next test set first, so that folds do not share them if it is large enough.
    rng : numpy.random.Generator

    Raises
    ------
    ValueError
        If the shares leave nothing to train on or cannot be reached.
    """
    if min(validation, test) < 0 or validation + test >= 1:
        raise ValueError(f"validation {validation} and test {test} must be shares that leave rows to train on")
    n = len(families)
    counts = np.bincount(families)
    kept = set() if keep is None else set(families[keep].tolist())
    shuffled = [family for family in rng.permutation(len(counts)).tolist() if family not in kept]
    order = sorted(shuffled, key=lambda family: counts[family] * (counts[family] > largest * n), reverse=True)
    order = order if kept else order[1:]
    tested: list[int] = []
    if fold is not None:
        number, n_folds = fold
        tested = _fold(order, counts, number, n_folds)
        following = _fold(order, counts, (number + 1) % n_folds, n_folds)
        order = [family for family in order if family not in {*tested, *following}] + following
    parts: list[list[int]] = [tested, []]
    for part, share in zip(parts, (test if fold is None else 0.0, validation), strict=True):
        while sum(counts[part]) < share * n:
            if not order:
                raise ValueError(f"{len(counts)} families are too few for a validation set and a test set")
            part.append(order.pop())
    held = [np.flatnonzero(np.isin(families, part)) for part in parts]
    train = np.setdiff1d(np.arange(n), np.concatenate(held))
    if len(train) == 0:
        raise ValueError(f"{len(counts)} families leave nothing to train on")
    return Split(train=train, validation=held[1], test=held[0])


def _fold(families: list[int], counts: np.ndarray, number: int, n_folds: int) -> list[int]:
    """Families of one of the parts into which all are dealt, each in turn to the part with the fewest rows."""
    if not 0 <= number < n_folds or n_folds < 2:
        raise ValueError(f"fold {number} of {n_folds}: give at least two folds, and a number from 0 to one below that")
    parts: list[list[int]] = [[] for _ in range(n_folds)]
    for family in families:
        min(parts, key=lambda part: sum(counts[part])).append(family)
    return parts[number]
