"""Active selection: structures that a committee of models disagrees about, or that it was not trained for."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from scipy.spatial.distance import cdist
from scipy.stats import rankdata

from maise_bridge.basis import Basis
from maise_bridge.descriptors import SymmetryFunctions
from maise_bridge.inputs import species_indices
from maise_bridge.labelling import structure_id
from maise_bridge.model_file import MaiseModel
from maise_bridge.neighbors import neighbor_list
from maise_bridge.potential import MaisePotential
from maise_bridge.sampling import CLOSEST, check_crystals, shortest_distances, too_close

logger = logging.getLogger(__name__)
TOLERANCE = 0.01  # of an input's range, outside of which an atom counts
OVERSAMPLING = 5  # urgent structures among which the diverse ones are looked for, per structure wanted
_BATCH = 64
_SAME = 1e-6  # distance of features of one crystal


@dataclass(frozen=True, eq=False)
class Opinion:
    """What a committee says about structures.

    Attributes
    ----------
    disagreement : ndarray, shape (n,)
        Largest standard deviation of an atom's force over the members; eV/Å.
    energy_spread : ndarray, shape (n,)
        Standard deviation of the energy over the members; eV/atom.
    extrapolation : ndarray, shape (n,)
        How far an atom lies outside the training data, at most over atoms and members, in units of an input's range.
    """

    disagreement: np.ndarray
    energy_spread: np.ndarray
    extrapolation: np.ndarray

    @property
    def urgency(self) -> np.ndarray:
        """From 0 to 1, (n,): the largest of the ranks by forces, by energy and, outside the ranges, by extrapolation.

        Energies count because atoms at sites of high symmetry feel no force, whatever the models say.
        """
        outside = np.where(self.extrapolation > TOLERANCE, self.extrapolation, 0.0)
        ranks = [
            np.where(values > 0, rankdata(values), 0) for values in (self.disagreement, self.energy_spread, outside)
        ]
        return np.max(ranks, axis=0) / len(outside)


def ask_committee(structures: Sequence[Atoms], committee: Sequence[MaiseModel]) -> Opinion:
    """Evaluate structures by all members of a committee.

    Parameters
    ----------
    structures : sequence of Atoms
    committee : sequence of MaiseModel
        At least two, which cover the species.

    Returns
    -------
    Opinion
        Not finite where atoms coincide.

    Raises
    ------
    ValueError
        If there are fewer than two members, or they do not cover a species.
    """
    if len(committee) < 2:
        raise ValueError(f"a committee of {len(committee)} cannot disagree; give at least two models")
    forces: list[list[np.ndarray]] = []
    energies, extrapolations = [], []
    for model in committee:
        potential = MaisePotential(model)
        found = []
        for first in range(0, len(structures), _BATCH):
            found += potential.evaluate(structures[first : first + _BATCH])
        forces.append([evaluation.forces for evaluation in found])
        energies.append([evaluation.energy / len(evaluation.forces) for evaluation in found])
        extrapolations.append([float(evaluation.extrapolation.max()) for evaluation in found])
    with np.errstate(invalid="ignore"):
        return Opinion(
            disagreement=np.array([_force_spread(members) for members in zip(*forces, strict=True)]),
            energy_spread=np.std(energies, axis=0),
            extrapolation=np.max(extrapolations, axis=0),
        )


def mean_descriptors(structures: Sequence[Atoms], basis: Basis, species: Sequence[str]) -> np.ndarray:
    """Sum of the descriptors of the atoms of each species, by the number of all atoms, (n, n_species * n_inputs)."""
    functions = SymmetryFunctions(basis, len(species))
    features = np.zeros((len(structures), len(species), functions.n_inputs))
    for row, atoms in enumerate(structures):
        kinds = species_indices([atoms], species)
        bonds = functions.bonds(neighbor_list([atoms], functions.cutoff), kinds)
        for centres in functions.chunks(bonds, np.arange(len(atoms))):
            np.add.at(features[row], kinds[centres], functions.forward(bonds, centres).descriptors.numpy())
        features[row] /= len(atoms)
    return features.reshape(len(structures), -1)


def farthest_points(features: np.ndarray, n: int, *, start: np.ndarray | None = None) -> list[int]:
    """Choose rows of an array, each as far as possible from those chosen before.

    Parameters
    ----------
    features : ndarray, shape (n_rows, n_features)
    n : int
        Rows to choose; fewer are returned if the others repeat chosen ones.
    start : ndarray, shape (n_start, n_features), optional
        Points chosen already; without any the first row comes first.

    Returns
    -------
    list of int
    """
    if start is not None and len(start):
        distance = cdist(features, start).min(axis=1)
    else:
        distance = np.full(len(features), np.inf)
    chosen: list[int] = []
    while len(chosen) < min(n, len(features)):
        row = int(np.argmax(distance))
        if distance[row] < _SAME:
            break
        chosen.append(row)
        distance = np.minimum(distance, cdist(features, features[row : row + 1])[:, 0])
    return chosen


def select_structures(
    structures: Sequence[Atoms],
    committee: Sequence[MaiseModel],
    n: int,
    *,
    known: Sequence[Atoms] = (),
    max_atoms: int | None = None,
    closest: float = CLOSEST,
) -> list[Atoms]:
    """Choose structures to label: urgent ones that differ from each other and from known ones.

    The most urgent ones by the committee (`OVERSAMPLING` times as many as wanted) are thinned out by farthest points
    in the space of mean descriptors, scaled to unit variance. The choice does not depend on the order of `structures`.

    Parameters
    ----------
    structures : sequence of Atoms
        Crystals, for instance the candidates of a run.
    committee : sequence of MaiseModel
        At least two; the descriptors are those of the first.
    n : int
        Structures wanted; there are fewer if the others are copies.
    known : sequence of Atoms
        Labelled already: what lies near to them is chosen late, copies of them never.
    max_atoms : int, optional
        Larger structures are left out.
    closest : float
        Structures with shorter distances are left out, see :func:`maise_bridge.sampling.sample_pool`.

    Returns
    -------
    list of Atoms
        The most distinct first, with `disagreement`, `energy_spread` and `extrapolation` of :class:`Opinion` in
        `info`, and with a `config_type` if there was none.

    Raises
    ------
    ValueError
        If `n` is not positive, the committee too small or for other species, or no structure is left to choose from
        or one is no crystal.
    """
    if n < 1:
        raise ValueError(f"{n} structures are to be selected; give at least 1")
    check_crystals(structures, "structure")
    check_crystals(known, "known structure")
    limits = shortest_distances(known)
    suitable = [atoms for atoms in structures if max_atoms is None or len(atoms) <= max_atoms]
    suitable = [atoms for atoms in suitable if not too_close(atoms, limits, closest)]
    if len(suitable) < len(structures):
        logger.info("%d structures are too large or too close and left out", len(structures) - len(suitable))
    if not suitable:
        raise ValueError(f"all {len(structures)} structures are too large or have atoms too close; nothing to choose")
    suitable.sort(key=structure_id)
    opinion = ask_committee(suitable, committee)
    urgency = np.where(np.isfinite(opinion.disagreement), opinion.urgency, -1.0)
    rows = np.argsort(-urgency, kind="stable")[: n * OVERSAMPLING]
    model = committee[0]
    features = mean_descriptors([suitable[row] for row in rows], model.basis, model.species)
    start = mean_descriptors(known, model.basis, model.species) if known else features[:0]
    spread = np.concatenate([features, start]).std(axis=0)
    scale = 1.0 / np.where(spread > 0, spread, 1.0) / np.sqrt(features.shape[1])
    chosen = farthest_points(features * scale, n, start=start * scale)
    return [_marked(suitable[rows[place]], opinion, int(rows[place])) for place in chosen]


def _force_spread(members: Sequence[np.ndarray]) -> float:
    """Largest over atoms of the root mean square distance of the members' forces from their mean; eV/Å."""
    forces = np.stack(members)
    variance = ((forces - forces.mean(axis=0)) ** 2).sum(axis=-1).mean(axis=0)
    return float(np.sqrt(variance.max()))


def _marked(atoms: Atoms, opinion: Opinion, row: int) -> Atoms:
    marked = Atoms(atoms.numbers, cell=atoms.cell, positions=atoms.positions, pbc=True)
    tag = str(atoms.info.get("config_type", "")).strip()
    marked.info = {
        "config_type": tag or f"active_{atoms.get_chemical_formula()}",
        "disagreement": float(opinion.disagreement[row]),
        "energy_spread": float(opinion.energy_spread[row]),
        "extrapolation": float(opinion.extrapolation[row]),
    }
    return marked
