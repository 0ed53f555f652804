"""Smeared radial distribution functions g(r) of periodic crystals, batched and differentiable.

``radial_distribution`` is the numpy-facing function; ``batch_rdf`` the torch one that it is made of. Bin centres are
``r_k = (k + 1/2) rmax / n_bins`` and every pair is smeared by a normal distribution of width ``sigma``:
``g(r_k) = sum_ij Normal(r_k; r_ij, sigma) / (4 pi r_k^2 rho N)``, over all centres and all periodic images.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import vesin
from ase import Atoms
from ase.data import atomic_numbers

from ase_hvae.errors import StructureError

N_SIGMA = 6.0  # half width of a smeared pair in units of sigma; what is cut off there is 1e-8 of the peak


@dataclass(frozen=True)
class RDFSettings:
    """Grid and smearing of an RDF.

    Parameters
    ----------
    rmax : float
        Upper end of the grid; Å.
    n_bins : int
        Number of equal bins between 0 and `rmax`; values are taken at their centres.
    sigma : float
        Standard deviation of the normal distribution that stands for a pair; Å.
    """

    rmax: float = 8.0
    n_bins: int = 200
    sigma: float = 0.06

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rmax) and self.rmax > 0):
            raise ValueError(f"rmax must be positive and finite, got {self.rmax}")
        if self.n_bins != int(self.n_bins) or self.n_bins < 1:
            raise ValueError(f"n_bins must be a positive whole number, got {self.n_bins}")
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise ValueError(f"sigma must be positive and finite, got {self.sigma}")

    @property
    def bin_width(self) -> float:
        """Distance between bin centres; Å."""
        return self.rmax / self.n_bins

    @property
    def cutoff(self) -> float:
        """Largest distance of a pair that still reaches the last bin; Å."""
        return self.rmax + N_SIGMA * self.sigma

    @property
    def grid(self) -> np.ndarray:
        """Bin centres, shape (n_bins,); Å."""
        return (np.arange(self.n_bins) + 0.5) * self.bin_width

    @property
    def shell_volumes(self) -> np.ndarray:
        """Volumes of the spherical shells of the bins, shape (n_bins,); times g(r) and density, neighbours; Å^3."""
        return 4 * np.pi * self.grid**2 * self.bin_width


@dataclass(frozen=True, eq=False)
class NeighborList:
    """Pairs of a ragged batch of crystals whose atoms are numbered through, crystal after crystal.

    Attributes
    ----------
    crystal, center, neighbor, channel : Tensor
        Shape (n_pairs,), int64: the crystal, its two atoms and the channel (pair of species) of every pair.
    shifts : Tensor
        Shape (n_pairs, 3), float64: lattice translation of the neighbour in units of the cell vectors.
    pair_counts : Tensor
        Shape (n_crystals, n_channels), float64: the number of ordered pairs of atoms of a channel in one cell, by
        which its g(r) is normalised; 0 where a species is absent.
    """

    crystal: torch.Tensor
    center: torch.Tensor
    neighbor: torch.Tensor
    channel: torch.Tensor
    shifts: torch.Tensor
    pair_counts: torch.Tensor

    def to(self, device: str | torch.device) -> NeighborList:
        """Return the same list on another device."""
        return NeighborList(**{name: value.to(device) for name, value in vars(self).items()})


def channel_pairs(species: Sequence[str]) -> list[tuple[str, str]]:
    """Return the unordered pairs of species in the order of the RDF's channels."""
    return list(itertools.combinations_with_replacement(sorted(set(species)), 2))


def channel_table(n_species: int) -> np.ndarray:
    """Return the channel of each pair of species, shape (n_species, n_species), int64; see `channel_pairs`."""
    table = np.zeros((n_species, n_species), dtype=np.int64)
    for channel, (a, b) in enumerate(itertools.combinations_with_replacement(range(n_species), 2)):
        table[a, b] = table[b, a] = channel
    return table


def neighbor_list(structures: Sequence[Atoms], cutoff: float, species: Sequence[str] | None = None) -> NeighborList:
    """Find all pairs of atoms (with their periodic images) closer than `cutoff`.

    Parameters
    ----------
    structures : sequence of Atoms
        Fully periodic crystals; not modified.
    cutoff : float
        Largest distance of a pair; Å.
    species : sequence of str, optional
        Chemical symbols that span the channels; by default all that occur.
    """
    names = _species(structures, species)
    channel_of = channel_table(len(names))
    lookup = np.full(len(atomic_numbers) + 1, -1)
    lookup[[atomic_numbers[name] for name in names]] = np.arange(len(names))
    finder = vesin.NeighborList(cutoff=cutoff, full_list=True)
    columns: list[list[np.ndarray]] = [[], [], [], [], []]
    counts = np.zeros((len(structures), channel_of.max() + 1))
    offset = 0
    for index, atoms in enumerate(structures):
        kinds = lookup[atoms.numbers]
        i, j, shifts = finder.compute(atoms.positions, atoms.cell.array, True, "ijS")
        i, j = i.astype(np.int64), j.astype(np.int64)
        rows = np.full(len(i), index), i + offset, j + offset, channel_of[kinds[i], kinds[j]], shifts.astype(float)
        for column, row in zip(columns, rows, strict=True):
            column.append(row)
        number = np.bincount(kinds, minlength=len(names))
        np.add.at(counts[index], channel_of, np.outer(number, number))
        offset += len(atoms)
    crystal, center, neighbor, channel, shift = (torch.from_numpy(np.concatenate(column)) for column in columns)
    return NeighborList(crystal, center, neighbor, channel, shift, torch.from_numpy(counts))


def smeared_histogram(
    distances: torch.Tensor, weights: torch.Tensor, rows: torch.Tensor, n_rows: int, settings: RDFSettings
) -> torch.Tensor:
    """Sum weighted normal distributions around `distances` into `n_rows` histograms at the bin centres.

    Only the bins within ``N_SIGMA`` sigma of a distance are touched. Differentiable in `distances` and `weights`.

    Parameters
    ----------
    distances, weights : Tensor
        Shape (n_pairs,); Å and any unit.
    rows : Tensor
        Shape (n_pairs,), int64: the histogram that a pair belongs to.

    Returns
    -------
    Tensor
        Shape (n_rows, n_bins); unit of `weights` per Å.
    """
    width, sigma = settings.bin_width, settings.sigma
    reach = math.ceil(N_SIGMA * sigma / width)
    padded = settings.n_bins + 3 * reach
    inside = (distances.detach() >= 0) & (distances.detach() < settings.rmax + reach * width)
    distances, weights, rows = distances[inside], weights[inside], rows[inside]
    offsets = torch.arange(-reach, reach + 1, device=distances.device)
    bins = torch.floor(distances.detach() / width).long()[:, None] + offsets
    deviation = ((bins.to(distances.dtype) + 0.5) * width - distances[:, None]) / sigma
    values = torch.exp(-0.5 * deviation**2) * (weights / (sigma * math.sqrt(2 * math.pi)))[:, None]
    flat = (rows[:, None] * padded + bins + reach).reshape(-1)
    total = values.new_zeros(n_rows * padded).index_add(0, flat, values.reshape(-1))
    return total.reshape(n_rows, padded)[:, reach : reach + settings.n_bins]


def batch_rdf(
    cells: torch.Tensor,
    scaled_positions: torch.Tensor,
    neighbors: NeighborList,
    settings: RDFSettings,
    *,
    center_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute g(r) of a ragged batch of crystals, differentiable in cells and scaled positions.

    Parameters
    ----------
    cells : Tensor
        Shape (n_crystals, 3, 3), rows a, b, c; Å.
    scaled_positions : Tensor
        Shape (n_atoms_total, 3), crystal after crystal.
    neighbors : NeighborList
        Pairs closer than ``settings.cutoff`` (more do no harm), see `neighbor_list`.
    center_weights : Tensor, optional
        Shape (n_atoms_total,): how many atoms a centre stands for; 1 by default. With the size of its orbit for one
        atom of each orbit and 0 for the others the result is the same, and pairs around the others may be left out.

    Returns
    -------
    Tensor
        Shape (n_crystals, n_channels, n_bins); 0 for a channel whose species are absent.
    """
    n_crystals, n_channels = neighbors.pair_counts.shape
    difference = scaled_positions[neighbors.neighbor] - scaled_positions[neighbors.center]
    difference = difference + neighbors.shifts.to(difference.dtype)
    distances = torch.linalg.vector_norm(torch.einsum("pa,pab->pb", difference, cells[neighbors.crystal]), dim=1)
    weights = distances.new_ones(len(scaled_positions)) if center_weights is None else center_weights
    rows = neighbors.crystal * n_channels + neighbors.channel
    total = smeared_histogram(distances, weights[neighbors.center], rows, n_crystals * n_channels, settings)
    volumes = torch.linalg.det(cells).abs()
    counts = neighbors.pair_counts.to(total.dtype)
    scale = torch.where(counts > 0, volumes[:, None] / counts.clamp(min=1), 0.0)
    grid = torch.as_tensor(settings.grid, dtype=total.dtype, device=total.device)
    return total.reshape(n_crystals, n_channels, -1) * scale[:, :, None] / (4 * math.pi * grid**2)


def radial_distribution(
    atoms: Atoms | Sequence[Atoms],
    *,
    rmax: float = 8.0,
    n_bins: int = 200,
    sigma: float = 0.06,
    species: Sequence[str] | None = None,
) -> np.ndarray:
    """Compute the smeared g(r) of one crystal or of several.

    The result does not depend on the choice of cell, orientation, origin or order of atoms.

    Parameters
    ----------
    atoms : Atoms or sequence of Atoms
        Fully periodic crystals; not modified.
    rmax, n_bins, sigma : float, int, float
        Grid and smearing, see `RDFSettings`; Å.
    species : sequence of str, optional
        Chemical symbols that span the channels; by default all that occur in `atoms`.

    Returns
    -------
    ndarray
        Shape (n_bins,) when there is one species, otherwise (n_channels, n_bins) with a channel for each unordered pair
        of the sorted species (see `channel_pairs`); a list gets a leading batch axis.

    Raises
    ------
    StructureError
        If a crystal is empty, not finite, not periodic in all directions or has no volume.
    ValueError
        If the grid makes no sense, or a structure has an element that is not in `species`.
    """
    settings = RDFSettings(rmax=rmax, n_bins=n_bins, sigma=sigma)
    structures = [atoms] if isinstance(atoms, Atoms) else list(atoms)
    if not structures:
        raise ValueError("no structures given: the RDF needs at least one")
    for index, structure in enumerate(structures):
        _check(structure, index)
    neighbors = neighbor_list(structures, settings.cutoff, species)
    cells = torch.from_numpy(np.stack([structure.cell.array for structure in structures]))
    scaled = torch.from_numpy(np.concatenate([structure.get_scaled_positions(wrap=False) for structure in structures]))
    result = batch_rdf(cells, scaled, neighbors, settings).numpy()
    if result.shape[1] == 1:
        result = result[:, 0]
    return result[0] if isinstance(atoms, Atoms) else result


def reduced(rdf: np.ndarray, number_density: float | np.ndarray, settings: RDFSettings | None = None) -> np.ndarray:
    """Return the reduced function G(r) = 4 pi r rho (g(r) - 1), in Å^-2.

    Parameters
    ----------
    rdf : ndarray
        g(r), shape (..., n_bins).
    number_density : float or ndarray
        Atoms per Å^3; an array has the leading axes of `rdf`.
    settings : RDFSettings, optional
        Grid of `rdf`; by default the default grid.
    """
    grid = (settings or RDFSettings()).grid
    rdf = np.asarray(rdf, float)
    if rdf.shape[-1] != len(grid):
        raise ValueError(f"rdf has {rdf.shape[-1]} bins, the settings {len(grid)}; pass the settings it was made with")
    return 4 * np.pi * grid * np.asarray(number_density, float)[..., None] * (rdf - 1)


def _species(structures: Sequence[Atoms], species: Sequence[str] | None) -> list[str]:
    """Return the sorted species of the channels; refuse elements that have none."""
    present = {symbol for atoms in structures for symbol in atoms.symbols}
    names = sorted(present if species is None else set(species))
    unknown = sorted(present - set(names))
    if unknown:
        raise ValueError(
            f"structures have {', '.join(unknown)}, the RDF's species are {', '.join(names)}; extend species"
        )
    return names


def _check(atoms: Atoms, index: int) -> None:
    if len(atoms) == 0:
        raise StructureError(f"structure {index} is empty; the RDF needs at least one atom")
    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
        raise StructureError(f"structure {index} has non-finite positions or cell")
    if not atoms.pbc.all():
        raise StructureError(
            f"structure {index} has pbc {atoms.pbc.tolist()}; the RDF needs all three directions periodic"
        )
    if not abs(np.linalg.det(atoms.cell.array)) > 1e-6:
        raise StructureError(f"structure {index} has a cell without volume ({atoms.cell.array.tolist()} Å)")
