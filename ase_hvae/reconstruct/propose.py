"""Proposals: random crystals of given space groups, and the padded batch that carries them through screen and steer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from ase import Atoms

from ase_hvae.reconstruct.wyckoff import Template

MAX_ANGLE = 30.0  # largest deviation of a free cell angle from 90 degrees in a proposal


@dataclass(frozen=True, eq=False)
class Batch:
    """Crystals of possibly different templates, padded to the largest.

    Attributes
    ----------
    templates : tuple of Template
        One per crystal.
    cells : Tensor
        Shape (n_batch, 3, 3): primitive cells, rows a, b, c; Å.
    coordinates : Tensor
        Shape (n_batch, n_free): free coordinates, padded with 0.
    matrix, offset : Tensor
        Shapes (n_batch, n_atoms, 3, n_free) and (n_batch, n_atoms, 3): scaled positions are ``matrix u + offset``.
    strains : Tensor
        Shape (n_batch, n_strains, 3, 3): strains that keep the point group, padded with 0.
    n_atoms : Tensor
        Shape (n_batch,), int64.
    center_weights : Tensor
        Shape (n_batch, n_atoms): size of the orbit for the first atom of each orbit, 0 for the others.
    """

    templates: tuple[Template, ...]
    cells: torch.Tensor
    coordinates: torch.Tensor
    matrix: torch.Tensor
    offset: torch.Tensor
    strains: torch.Tensor
    n_atoms: torch.Tensor
    center_weights: torch.Tensor

    def __len__(self) -> int:
        return len(self.templates)

    @property
    def scaled_positions(self) -> torch.Tensor:
        """Scaled positions, shape (n_batch, n_atoms, 3), not wrapped; rows of padding mean nothing."""
        return torch.einsum("bnkp,bp->bnk", self.matrix, self.coordinates) + self.offset

    @property
    def volumes(self) -> torch.Tensor:
        """Volumes of the primitive cells, shape (n_batch,); Å^3."""
        return torch.linalg.det(self.cells).abs()

    def select(self, index: torch.Tensor) -> Batch:
        """Return the crystals at the integer positions `index`, with no more padding than they need."""
        templates = tuple(self.templates[i] for i in index.tolist())
        n_atoms = max((entry.n_atoms for entry in templates), default=1)
        n_free = max((entry.n_free for entry in templates), default=0) or 1
        n_strains = max((len(entry.strains) for entry in templates), default=1)
        return Batch(
            templates,
            self.cells[index],
            self.coordinates[index, :n_free],
            self.matrix[index, :n_atoms, :, :n_free],
            self.offset[index, :n_atoms],
            self.strains[index, :n_strains],
            self.n_atoms[index],
            self.center_weights[index, :n_atoms],
        )

    def moved(self, cells: torch.Tensor, coordinates: torch.Tensor) -> Batch:
        """Return the same templates with other cells and free coordinates."""
        return replace(self, cells=cells, coordinates=coordinates)

    def atoms(self, index: int, species: str) -> Atoms:
        """Return one crystal as Atoms with wrapped positions and a right-handed cell."""
        n_atoms = int(self.n_atoms[index])
        scaled = self.scaled_positions[index, :n_atoms].cpu().numpy()
        cell = self.cells[index].cpu().numpy()
        return Atoms([species] * n_atoms, scaled_positions=scaled % 1.0, cell=cell, pbc=True)


def pack(
    templates: Sequence[Template],
    cells: Sequence[np.ndarray],
    coordinates: Sequence[np.ndarray],
    device: str | torch.device = "cpu",
) -> Batch:
    """Pad crystals, each given by template, primitive cell and free coordinates, into one batch."""
    n_batch = len(templates)
    n_atoms = max(entry.n_atoms for entry in templates)
    n_free = max(1, *(entry.n_free for entry in templates))
    n_strains = max(len(entry.strains) for entry in templates)
    matrix = np.zeros((n_batch, n_atoms, 3, n_free))
    offset = np.zeros((n_batch, n_atoms, 3))
    strains = np.zeros((n_batch, n_strains, 3, 3))
    weights = np.zeros((n_batch, n_atoms))
    free = np.zeros((n_batch, n_free))
    for row, (entry, u) in enumerate(zip(templates, coordinates, strict=True)):
        matrix[row, : entry.n_atoms, :, : entry.n_free] = entry.matrix
        offset[row, : entry.n_atoms] = entry.offset
        strains[row, : len(entry.strains)] = entry.strains
        weights[row, np.cumsum(entry.orbit_sizes) - entry.orbit_sizes] = entry.orbit_sizes
        free[row, : len(u)] = u
    counts = np.array([entry.n_atoms for entry in templates])
    arrays = (np.stack(cells), free, matrix, offset, strains, counts, weights)
    return Batch(tuple(templates), *(torch.from_numpy(array).to(device) for array in arrays))


def draw_cell(entry: Template, volume: float, min_distance: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a primitive cell of a template's crystal family.

    Lattice vectors of the conventional cell are at least `min_distance` long, which bounds the aspect ratio.

    Parameters
    ----------
    entry : Template
        Space group.
    volume : float
        Volume of the primitive cell; Å^3.
    min_distance : float
        Shortest allowed lattice vector; Å.

    Returns
    -------
    ndarray
        Shape (3, 3), right-handed, rows a, b, c; Å.
    """
    conventional, shape = volume / np.linalg.det(entry.group.primitive), np.eye(3)
    family = entry.group.family
    if family == "hexagonal":
        shape[1, :2] = -0.5, np.sqrt(0.75)
    elif family == "monoclinic":
        shape[2] = _tilted(rng)
    elif family == "triclinic":
        shape = _triclinic(rng)
    unit = np.linalg.det(shape)
    slack = max(np.log(conventional / unit / min_distance**3), 0.0)  # how much longer than the limit, all axes together
    logs = slack * _shares(family, rng)
    lengths = np.exp(logs - logs.mean()) * (conventional / unit) ** (1 / 3)
    return entry.group.primitive @ (lengths[:, None] * shape)


def propose(
    templates: Sequence[Template],
    n_each: int,
    volume_per_atom: float,
    volume_tolerance: float,
    min_distance: float,
    rng: np.random.Generator,
) -> Batch:
    """Draw `n_each` random crystals of every template within the window of volumes."""
    drawn: list[Template] = []
    cells: list[np.ndarray] = []
    coordinates: list[np.ndarray] = []
    for entry in templates:
        for _ in range(n_each):
            volume = entry.n_atoms * volume_per_atom * (1 + volume_tolerance * rng.uniform(-1, 1))
            drawn.append(entry)
            cells.append(draw_cell(entry, volume, min_distance, rng))
            coordinates.append(rng.random((entry.n_free,)))
    return pack(drawn, cells, coordinates)


def _shares(family: str, rng: np.random.Generator) -> np.ndarray:
    """Return how the slack is shared among the three axes (sums to 1)."""
    if family == "cubic":
        return np.full(3, 1 / 3)
    if family in ("tetragonal", "hexagonal"):
        share = rng.beta(1.5, 1.5)
        return np.array([(1 - share) / 2, (1 - share) / 2, share])
    return rng.dirichlet([2.0, 2.0, 2.0])


def _tilted(rng: np.random.Generator) -> np.ndarray:
    angle = np.radians(90 + MAX_ANGLE * rng.uniform(-1, 1))
    return np.array([np.cos(angle), 0.0, np.sin(angle)])


def _triclinic(rng: np.random.Generator) -> np.ndarray:
    """Return unit row vectors with random angles."""
    alpha, beta, gamma = np.cos(np.radians(90 + MAX_ANGLE * rng.uniform(-1, 1, 3)))
    b = np.array([gamma, np.sqrt(1 - gamma**2), 0])
    c = np.array([beta, (alpha - beta * gamma) / b[1], 0])
    c[2] = np.sqrt(max(1 - c @ c, 0.05))
    return np.array([[1.0, 0, 0], b, c])
