"""Relax many crystals at once on ASE's Frechet cell coordinates, one batched evaluation a step.

The coordinates of a crystal are its positions in the undeformed cell and n log F, for n atoms and the deformation F:
cell = cell_0 F^T, positions = x_0 F^T. Each crystal has its own optimizer, converges by itself and makes room for the
next one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from maise_bridge.bounds import Bounds, no_constraints
from maise_bridge.neighbors import NeighborList, NeighborListCache
from maise_bridge.step_rules import Bfgs, Fire, StepRule
from maise_bridge.symmetry_projection import Operations, projector

OPTIMIZERS: Mapping[str, type[StepRule]] = {"FIRE": Fire, "BFGS": Bfgs}


class Evaluated(Protocol):
    """What a potential says about one structure, as :class:`maise_bridge.potential.Evaluation` has it.

    The forces are derivatives of `free_energy`, which differs from `energy` for electrons with a width.
    """

    @property
    def energy(self) -> float:
        """eV."""

    @property
    def free_energy(self) -> float:
        """eV."""

    @property
    def forces(self) -> np.ndarray:
        """Shape (n_atoms, 3); eV/Å."""

    @property
    def virial(self) -> np.ndarray:
        """Shape (6,); eV."""

    @property
    def stress(self) -> np.ndarray | None:
        """Shape (6,); eV/Å³."""

    @property
    def extrapolation(self) -> np.ndarray | None:
        """Shape (n_atoms,)."""


class Potential(Protocol):
    """What is needed of a potential, as :class:`maise_bridge.MaisePotential` has it."""

    cutoff: float

    def evaluate(self, structures: Sequence[Atoms], *, neighbors: NeighborList | None = None) -> Sequence[Evaluated]:
        """Energies, forces and stresses of some structures."""


@dataclass(frozen=True, eq=False)
class Relaxed:
    """End of one relaxation.

    Attributes
    ----------
    index : int
        Place of the crystal in the sequence that was handed in.
    atoms : Atoms
        Relaxed copy; a ``SinglePointCalculator`` holds energy (eV), forces (eV/Å) and stress (eV/Å³).
    evaluation : Evaluation
        All that the potential says about it.
    energy_initial : float
        Energy of the start; eV.
    fmax : float
        Largest force norm over atoms and cell rows, eV/Å; of the symmetric part where a symmetry is kept.
    converged : bool
        Whether `fmax` is below the limit.
    n_steps : int
        Steps taken.
    failure : str or None
        Why the relaxation was stopped: bounds left, or numbers that are not finite. `atoms` are the last ones then.
    """

    index: int
    atoms: Atoms
    evaluation: Evaluated
    energy_initial: float
    fmax: float
    converged: bool
    n_steps: int
    failure: str | None


def batch_relax(
    structures: Sequence[Atoms],
    potential: Potential,
    *,
    fmax: float = 0.01,
    max_steps: int = 500,
    optimizer: str = "BFGS",
    scalar_pressure: float = 0.0,
    bounds: Bounds | None = None,
    batch_size: int = 64,
    symmetry: Sequence[Operations | None] | None = None,
) -> Iterator[Relaxed]:
    """Relax positions and cells to local minima of the enthalpy; results come as they are ready, not in order.

    Every crystal has an optimizer of its own, which does not notice what else is in the batch.

    Parameters
    ----------
    structures : sequence of Atoms
        Crystals of any sizes; not modified.
    potential : MaisePotential
        Or another with its `cutoff` and `evaluate`.
    fmax : float
        Largest force norm, over atoms and cell rows, at convergence; eV/Å.
    max_steps : int
        Step limit of each crystal; not converging within it is no error.
    optimizer : {"BFGS", "FIRE"}
        BFGS never settles for a rise of the enthalpy, see :class:`maise_bridge.step_rules.Bfgs`. FIRE takes the steps
        of ASE's FIRE on FrechetCellFilter, three times as many. From far away they may end in different minima.
    scalar_pressure : float
        Hydrostatic pressure; eV/Å³.
    bounds : Bounds, optional
        Limits on volume, cell lengths and distances.
    batch_size : int
        Crystals in flight.
    symmetry : sequence of Operations or None, optional
        Space group that each crystal keeps, None for those that are free. The minima are those within the group; they
        may be saddles outside of it, which :func:`maise_bridge.symmetry_release.release` finds out.

    Yields
    ------
    Relaxed

    Raises
    ------
    ValueError
        If an option makes no sense, or a structure is no crystal of the potential's species, has constraints or does
        not have its symmetry; before any step.

    References
    ----------
    Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006).
    """
    if not (np.isfinite(fmax) and fmax > 0):
        raise ValueError(f"fmax is {fmax}; it must be a positive force in eV/Å")
    if max_steps < 0 or batch_size < 1:
        raise ValueError(f"max_steps is {max_steps}, batch_size {batch_size}; steps from 0, batches from 1 crystal")
    if not np.isfinite(scalar_pressure):
        raise ValueError(f"scalar_pressure is {scalar_pressure}; it must be finite, in eV/Å³")
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer is {optimizer!r}; choose one of {', '.join(OPTIMIZERS)}")
    for number, atoms in enumerate(structures):
        if not (np.isfinite(atoms.cell.array).all() and atoms.cell.rank == 3 and atoms.pbc.all()):
            raise ValueError(f"structure {number} ({atoms.symbols}) is no crystal: three finite cell vectors, pbc=True")
        if atoms.constraints:
            raise ValueError(f"structure {number} ({atoms.symbols}) {no_constraints(atoms)}")
    projectors = _projectors(structures, symmetry)
    waiting = (
        _Flight(index, atoms, OPTIMIZERS[optimizer](), onto)
        for index, (atoms, onto) in enumerate(zip(structures, projectors, strict=True))
    )
    return _relaxations(waiting, potential, fmax, max_steps, scalar_pressure, bounds or Bounds(), batch_size)


def _projectors(structures: Sequence[Atoms], symmetry: Sequence[Operations | None] | None) -> list[np.ndarray | None]:
    if symmetry is None:
        return [None] * len(structures)
    if len(symmetry) != len(structures):
        raise ValueError(f"symmetry has {len(symmetry)} entries for {len(structures)} structures; one each, or None")
    return [None if kept is None else projector(atoms, kept) for atoms, kept in zip(structures, symmetry, strict=True)]


def _relaxations(
    waiting: Iterator[_Flight],
    potential: Potential,
    fmax: float,
    max_steps: int,
    pressure: float,
    bounds: Bounds,
    batch_size: int,
) -> Iterator[Relaxed]:
    cache = NeighborListCache(potential.cutoff)
    batch = _Batch([])
    while True:
        fresh = list(itertools.islice(waiting, batch_size - len(batch.flights)))
        if fresh:
            batch = _Batch([*batch.flights, *fresh])
        if not batch.flights:
            return
        neighbors = cache.get(batch.atoms)
        evaluations = potential.evaluate(batch.atoms, neighbors=neighbors)
        forces, enthalpies = batch.forces(evaluations, pressure)
        largest = batch.largest(forces)
        failures = batch.failures(evaluations, neighbors, bounds)
        going = []
        for number, flight in enumerate(batch.flights):
            if flight.n_steps == 0:
                flight.energy_initial = evaluations[number].energy
            converged = failures[number] is None and bool(largest[number] < fmax)
            if failures[number] is None and not converged and flight.n_steps < max_steps:
                going.append(number)
            else:
                yield flight.end(evaluations[number], float(largest[number]), converged, failures[number])
        steps = [batch.flights[n].rule.step(forces[batch.rows(n)], enthalpies[n]) for n in going]
        if len(going) < len(batch.flights):
            batch = _Batch([batch.flights[number] for number in going])
        batch.move(steps)


class _Flight:
    """One crystal on its way: its coordinates and its optimizer."""

    def __init__(self, index: int, atoms: Atoms, rule: StepRule, onto: np.ndarray | None) -> None:
        self.index = index
        self.atoms = atoms.copy()
        self.atoms.calc = None
        self.cell = atoms.cell.array.copy()
        self.coordinates = np.concatenate([atoms.positions, np.zeros((3, 3))])
        self.rule = rule
        self.projector = onto
        self.n_steps = 0
        self.energy_initial = np.nan

    def end(self, evaluation: Evaluated, fmax: float, converged: bool, failure: str | None) -> Relaxed:
        """Return the crystal as relaxed, with the results of its last evaluation."""
        stress = evaluation.stress
        self.atoms.calc = SinglePointCalculator(
            self.atoms, energy=evaluation.energy, forces=evaluation.forces, stress=stress
        )
        return Relaxed(
            index=self.index,
            atoms=self.atoms,
            evaluation=evaluation,
            energy_initial=self.energy_initial,
            fmax=fmax,
            converged=converged,
            n_steps=self.n_steps,
            failure=failure,
        )


class _Batch:
    """Crystals in flight, their coordinates below each other."""

    def __init__(self, flights: list[_Flight]) -> None:
        self.flights = flights
        self.atoms = [flight.atoms for flight in flights]
        self.sizes = np.array([len(atoms) for atoms in self.atoms], dtype=int)
        self.first = np.concatenate([[0], np.cumsum(self.sizes + 3)])
        self.owner = np.repeat(np.arange(len(flights)), self.sizes + 3)
        self.is_cell = np.zeros(self.first[-1], dtype=bool)
        for offset in (1, 2, 3):
            self.is_cell[self.first[1:] - offset] = True
        self.initial_cells = np.array([flight.cell for flight in flights]).reshape(-1, 3, 3)

    def rows(self, number: int) -> slice:
        """Rows of one crystal's coordinates."""
        return slice(self.first[number], self.first[number + 1])

    def forces(self, evaluations: Sequence[Evaluated], pressure: float) -> tuple[np.ndarray, np.ndarray]:
        """Minus the gradient of the enthalpies by the coordinates, symmetric where asked for, and the enthalpies."""
        logarithms = self._logarithms()
        deformations = _expm(logarithms)
        virials = np.array([evaluation.virial[[0, 5, 4, 5, 1, 3, 4, 3, 2]] for evaluation in evaluations])
        volumes = np.abs(np.linalg.det(np.array([atoms.cell.array for atoms in self.atoms])))
        virials = -virials.reshape(-1, 3, 3) - pressure * volumes[:, None, None] * np.eye(3)
        blocks = np.zeros((len(self.flights), 6, 6))
        blocks[:, :3, :3] = blocks[:, 3:, 3:] = np.swapaxes(logarithms, 1, 2)
        blocks[:, :3, 3:] = virials @ np.linalg.inv(np.swapaxes(deformations, 1, 2))
        out = np.empty((len(self.owner), 3))
        on_atoms = np.concatenate([evaluation.forces for evaluation in evaluations])
        out[~self.is_cell] = np.einsum("ni,nij->nj", on_atoms, deformations[self.owner[~self.is_cell]])
        out[self.is_cell] = (_expm(blocks)[:, :3, 3:] / self.sizes[:, None, None]).reshape(-1, 3)
        for number, flight in enumerate(self.flights):
            if flight.projector is not None:
                rows = self.rows(number)
                out[rows] = (flight.projector @ out[rows].ravel()).reshape(-1, 3)
        return out, np.array([evaluation.free_energy for evaluation in evaluations]) + pressure * volumes

    def largest(self, forces: np.ndarray) -> np.ndarray:
        """Largest norm of a row of each crystal."""
        return np.sqrt(np.maximum.reduceat(np.einsum("nx,nx->n", forces, forces), self.first[:-1]))

    def failures(self, evaluations: Sequence[Evaluated], neighbors: NeighborList, bounds: Bounds) -> list[str | None]:
        """What ends the relaxation of each crystal before its time."""
        bonds, (_, squares) = neighbors.topology, neighbors.measured
        shortest = np.full(len(self.flights), np.inf)
        np.minimum.at(shortest, bonds.structure[bonds.centre], np.sqrt(squares))
        cells = np.array([atoms.cell.array for atoms in self.atoms])
        ratios = np.linalg.det(cells) / np.linalg.det(self.initial_cells)
        stretches = (np.linalg.norm(cells, axis=2) / np.linalg.norm(self.initial_cells, axis=2)).max(axis=1)
        out: list[str | None] = []
        for number, evaluation in enumerate(evaluations):
            reason = bounds.violation(ratios[number], stretches[number], shortest[number])
            if reason is None and not (np.isfinite(evaluation.energy) and np.isfinite(evaluation.forces).all()):
                reason = "energy or forces are not finite"
            out.append(f"{reason} (after {self.flights[number].n_steps} steps)" if reason else None)
        return out

    def move(self, steps: Sequence[np.ndarray]) -> None:
        """Take a step with each crystal: coordinates, then positions and cell."""
        if not self.flights:
            return
        for flight, step in zip(self.flights, steps, strict=True):
            flight.coordinates = flight.coordinates + step
            flight.n_steps += 1
        deformations = _expm(self._logarithms())
        cells = self.initial_cells @ np.swapaxes(deformations, 1, 2)
        for flight, cell, deformation in zip(self.flights, cells, deformations, strict=True):
            flight.atoms.cell[:] = cell
            flight.atoms.positions[:] = flight.coordinates[:-3] @ deformation.T

    def _logarithms(self) -> np.ndarray:
        """Log F of each crystal, (n, 3, 3)."""
        rows = np.array([flight.coordinates[-3:] for flight in self.flights]).reshape(-1, 3, 3)
        return rows / self.sizes[:, None, None]


def _expm(matrices: np.ndarray) -> np.ndarray:
    """Exponentials of small matrices (n, m, m): Taylor series of scaled-down matrices, squared up again."""
    norms = np.abs(matrices).sum(axis=2).max(axis=1)
    n_squarings = np.ceil(np.log2(np.maximum(norms, 1e-300) / 0.25)).clip(0, 60)  # NaN stays NaN
    scaled = matrices * 0.5 ** n_squarings[:, None, None]
    term = np.broadcast_to(np.eye(matrices.shape[-1]), matrices.shape)
    result = term.copy()
    for order in range(1, 13):  # 0.25^13 / 13! = 2e-18
        term = term @ scaled / order
        result += term
    for number in range(int(np.nanmax(n_squarings, initial=0))):
        more = n_squarings > number
        result[more] = result[more] @ result[more]
    return result
