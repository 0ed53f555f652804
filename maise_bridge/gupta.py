"""Gupta potentials of MAISE: energies, forces and stresses of many structures at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import ReadError

from maise_bridge.gupta_file import GuptaModel
from maise_bridge.inputs import species_indices
from maise_bridge.model_file import read_model
from maise_bridge.neighbors import NeighborList, neighbor_list
from maise_bridge.potential import Evaluation, split

LONGEST_PERIODIC_CUTOFF = 30.0  # Å; MAISE's models of crystals reach 10, those of clusters 110

__all__ = ["GuptaModel", "GuptaPotential", "check_periodicity"]


class GuptaPotential:
    """A Gupta potential, evaluated natively in float64.

    The square root of an atom's density has a kink where its last neighbour leaves the cutoff; MAISE's has it too.

    Parameters
    ----------
    model : GuptaModel
        As read by :func:`maise_bridge.read_model`. There is no core repulsion.
    """

    def __init__(self, model: GuptaModel) -> None:
        self.model = model
        self.species = model.species
        self.cutoff = model.cutoff
        self._pair = np.zeros((len(model.species),) * 2, dtype=np.int64)
        for row, (a, b) in enumerate(model.pairs):
            self._pair[a, b] = self._pair[b, a] = row

    @classmethod
    def from_file(cls, path: str | Path) -> GuptaPotential:
        """Read a model file. Raises ASE's ReadError naming file and line."""
        model = read_model(path)
        if not isinstance(model, GuptaModel):
            raise ReadError(f"{path}, line 2: expected a Gupta model ('Gupta potential'), found a neural network")
        return cls(model)

    def evaluate(
        self, structures: Sequence[Atoms], *, neighbors: NeighborList | None = None, forces: bool = True
    ) -> list[Evaluation]:
        """Compute energy, forces and stress of some structures; nothing counts as extrapolation.

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
            If a species is not covered, a position or cell is not finite, or the model is one of clusters and a
            structure is periodic.
        """
        if not structures:
            return []
        species = species_indices(structures, self.species)
        check_periodicity(structures, self.cutoff)
        if neighbors is None:
            neighbors = neighbor_list(structures, self.cutoff)
        lengths = np.sqrt(np.einsum("bi,bi->b", neighbors.vectors, neighbors.vectors))
        near = np.flatnonzero(lengths < self.cutoff)
        lengths, vectors = lengths[near], neighbors.vectors[near]
        centre, neighbour = neighbors.centre[near], neighbors.neighbour[near]
        energies, slopes = self._bonds(species, centre, neighbour, lengths)
        virials = np.zeros((len(structures), 3, 3))
        pull = np.zeros((len(species), 3))
        if forces:
            with np.errstate(divide="ignore", invalid="ignore"):  # coincident atoms have no finite force
                pulls = (slopes / lengths)[:, None] * vectors
            for axis in range(3):
                pull[:, axis] = np.bincount(centre, pulls[:, axis], len(species))
                pull[:, axis] -= np.bincount(neighbour, pulls[:, axis], len(species))
                for other in range(3):
                    products = pulls[:, axis] * vectors[:, other]
                    virials[:, axis, other] = np.bincount(neighbors.structure[centre], products, len(structures))
        return split(structures, energies, pull, virials)

    def _bonds(
        self, species: np.ndarray, centre: np.ndarray, neighbour: np.ndarray, lengths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Energies of the atoms (n_atoms,) and derivatives of the total by the length of each bond (n_bonds,)."""
        rows = self.model.parameters[self._pair[species[centre], species[neighbour]]]
        a, p, b, q, r0, r_min, r_max = rows.T
        y = lengths / r0 - 1.0
        taper, taper_slope = _taper(lengths, r_min, r_max)
        repulsion = a * np.exp(-p * y)
        density = b * b * np.exp(-2.0 * q * y)
        root = np.sqrt(np.bincount(centre, density * taper, len(species)))
        energies = np.bincount(centre, repulsion * taper, len(species)) - root
        with np.errstate(divide="ignore"):
            inverse = np.where(root > 0, 0.5 / root, 0.0)[centre]
        slopes = (taper_slope - p / r0 * taper) * repulsion
        slopes -= (taper_slope - 2.0 * q / r0 * taper) * density * inverse
        return energies, slopes


def check_periodicity(structures: Sequence[Atoms], cutoff: float) -> None:
    """Refuse a model of clusters for periodic structures, before any memory is spent on its neighbours.

    Raises
    ------
    ValueError
        If the cutoff (Å) is longer than 30 Å and a structure is periodic.
    """
    for number, atoms in enumerate(structures):
        if cutoff > LONGEST_PERIODIC_CUTOFF and atoms.pbc.any():
            raise ValueError(
                f"structure {number} ({atoms.get_chemical_formula()}) is periodic, but the model is one of clusters: "
                f"it reaches {cutoff:g} Å (limit {LONGEST_PERIODIC_CUTOFF:g}); pass a bulk model (d3) or set pbc=False"
            )


def _taper(lengths: np.ndarray, r_min: np.ndarray, r_max: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factor that falls smoothly from 1 at r_min to 0 at r_max, and its derivative."""
    phase = np.pi * np.clip((lengths - r_min) / (r_max - r_min), 0.0, 1.0)
    slope = -0.5 * np.pi / (r_max - r_min) * np.sin(phase)
    return 0.5 + 0.5 * np.cos(phase), np.where(phase < np.pi, slope, 0.0)
