"""Energies, forces and stresses of many crystals at once from a MAISE model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from ase import Atoms

from maise_bridge import kernels
from maise_bridge.compiled import CompiledNetwork
from maise_bridge.inputs import species_indices
from maise_bridge.model_file import MaiseModel, read_network
from maise_bridge.neighbors import NeighborList, neighbor_list
from maise_bridge.repulsion import PREFACTOR, core_ranges, pair_repulsion

if TYPE_CHECKING:
    import torch


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

    @property
    def free_energy(self) -> float:
        """The energy whose derivatives the forces are: `energy`."""
        return self.energy


class MaisePotential:
    """A MAISE neural network, evaluated natively.

    On the CPU in float64 everything runs compiled in one thread; other devices and precisions, and bases that MAISE's
    models do not use, are served by torch.

    Parameters
    ----------
    model : MaiseModel
        As read by :func:`maise_bridge.read_model`.
    core_repulsion : bool or float
        True: MAISE's short-range repulsion with its default of 100 eV; a number: another prefactor (eV); False: none.
    device, dtype : torch.device or str, torch.dtype, optional
        Where and in which precision torch is to compute the network's part; float32 is for screening only. By default
        the compiled code is used.
    """

    def __init__(
        self,
        model: MaiseModel,
        *,
        core_repulsion: bool | float = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.model = model
        self.species = model.species
        self.cutoff = model.basis.cutoff
        self.prefactor = PREFACTOR if core_repulsion is True else float(core_repulsion)
        self._ranges = core_ranges(model.species)
        self._network: Network
        if device is None and dtype is None and kernels.fits(model.basis.angular):
            self._network = CompiledNetwork(model)
        else:
            from maise_bridge.torch_network import TorchNetwork

            self._network = TorchNetwork(model, device=device or "cpu", dtype=dtype)

    @classmethod
    def from_file(cls, path: str | Path, *, core_repulsion: bool | float = True) -> MaisePotential:
        """Read the model file of a network. Raises ASE's ReadError naming file and line."""
        return cls(read_network(path), core_repulsion=core_repulsion)

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
        with np.errstate(divide="ignore", invalid="ignore"):  # coincident atoms have no finite energy; callers see that
            energies, extrapolation, gradient, virials = self._network(neighbors, species, forces)
            repulsion = self._add_repulsion(neighbors, species, gradient, virials)
        return split(structures, energies, -gradient, virials, repulsion=repulsion, extrapolation=extrapolation)

    def _add_repulsion(
        self, neighbors: NeighborList, species: np.ndarray, gradient: np.ndarray, virials: np.ndarray
    ) -> np.ndarray:
        """Core repulsion of each atom, (n_atoms,) in eV; its derivatives are added to `gradient` and `virials`."""
        out = np.zeros(len(species))
        vectors, squares = neighbors.measured
        near = np.flatnonzero(squares < self._ranges.max() ** 2)
        if self.prefactor == 0.0 or len(near) == 0:
            return out
        bonds, lengths = neighbors.topology, np.sqrt(squares[near])
        centre, neighbour = bonds.centre[near], bonds.neighbour[near]
        energy, slope = pair_repulsion(lengths, self._ranges[species[centre], species[neighbour]], self.prefactor)
        np.add.at(out, centre, energy)
        np.add.at(out, neighbour, energy)
        slope /= lengths  # by r², of both ends of the bond
        kernels.collect(centre, neighbour, bonds.structure, vectors[near], slope, gradient, virials)
        return out


class Network(Protocol):
    """Descriptors and network of a model."""

    def __call__(
        self, neighbors: NeighborList, species: np.ndarray, forces: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Energy and extrapolation of each atom (n_atoms,), dE/d(positions) (n_atoms, 3), dE/d(strain) (n, 3, 3).

        `species` (n_atoms,) are the places of the atoms' species in the model. Without `forces`, derivatives are zero.
        """


def split(
    structures: Sequence[Atoms],
    energies: np.ndarray,
    forces: np.ndarray,
    virials: np.ndarray,
    *,
    repulsion: np.ndarray | None = None,
    extrapolation: np.ndarray | None = None,
) -> list[Evaluation]:
    """Results of single structures from those of the atoms of a batch.

    Parameters
    ----------
    structures : sequence of Atoms
        The batch.
    energies, forces : ndarray, shapes (n_atoms,), (n_atoms, 3)
        Without the core repulsion, and with it; eV, eV/Å.
    virials : ndarray, shape (n_structures, 3, 3)
        dE/d(strain); eV.
    repulsion, extrapolation : ndarray, shape (n_atoms,), optional
        See :class:`Evaluation`; zero by default.
    """
    repulsion = np.zeros(len(energies)) if repulsion is None else repulsion
    extrapolation = np.zeros(len(energies)) if extrapolation is None else extrapolation
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
