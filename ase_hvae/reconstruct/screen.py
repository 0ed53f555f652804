"""Batched pairs and RDFs of many small crystals, and the screen that keeps the proposals nearest to a target."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ase_hvae.rdf import RDFSettings
from ase_hvae.reconstruct.propose import Batch

CHUNK = 4_000_000  # candidate pairs handled at once


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs around the first atom of each orbit, crystal by crystal.

    Attributes
    ----------
    crystal, center, neighbor : Tensor
        Shape (n_pairs,), int64: crystal and its two atoms (numbered within the crystal).
    vectors : Tensor
        Shape (n_pairs, 3): from the centre to the neighbour; Å.
    distances : Tensor
        Shape (n_pairs,); Å.
    """

    crystal: torch.Tensor
    center: torch.Tensor
    neighbor: torch.Tensor
    vectors: torch.Tensor
    distances: torch.Tensor


def find_pairs(batch: Batch, cutoff: float) -> Pairs:
    """Find all pairs closer than `cutoff` around the first atom of each orbit, all crystals at once."""
    device = batch.cells.device
    crystal, center = torch.nonzero(batch.center_weights, as_tuple=True)
    n_neighbors = batch.n_atoms[crystal]
    pair = torch.repeat_interleave(torch.arange(len(crystal), device=device), n_neighbors)
    neighbor = _count_up(n_neighbors)
    crystal, center = crystal[pair], center[pair]
    scaled = batch.scaled_positions
    difference = scaled[crystal, neighbor] - scaled[crystal, center]
    difference = difference - torch.round(difference)
    vectors = torch.einsum("pa,pab->pb", difference, batch.cells[crystal])
    reach = torch.zeros(len(batch), dtype=vectors.dtype, device=device)
    reach = reach.scatter_reduce(0, crystal, torch.linalg.vector_norm(vectors, dim=1), "amax") + cutoff
    owner, translations = _translations(batch.cells, cutoff, reach)
    n_translations = torch.bincount(owner, minlength=len(batch))
    first = torch.cumsum(n_translations, 0) - n_translations
    repeats = n_translations[crystal]
    expanded = torch.repeat_interleave(torch.arange(len(crystal), device=device), repeats)
    image = _count_up(repeats) + first[crystal][expanded]
    total = vectors[expanded] + translations[image]
    squares = (total * total).sum(1)
    same = (center == neighbor)[expanded] & (squares < 1e-12)
    keep = torch.nonzero((squares < cutoff**2) & ~same)[:, 0]
    expanded = expanded[keep]
    return Pairs(crystal[expanded], center[expanded], neighbor[expanded], total[keep], torch.sqrt(squares[keep]))


def _translations(cells: torch.Tensor, cutoff: float, reach: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (crystal, vector) of the lattice translations up to `reach` that a pair within `cutoff` may need."""
    inverse_heights = torch.linalg.vector_norm(torch.linalg.inv(cells), dim=1)
    limits = torch.floor(cutoff * inverse_heights + 0.5).long()
    sizes = 2 * limits + 1
    counts = sizes.prod(1)
    owner = torch.repeat_interleave(torch.arange(len(cells), device=cells.device), counts)
    number = _count_up(counts)
    size, limit = sizes[owner], limits[owner]
    third = number // (size[:, 0] * size[:, 1])
    second = number // size[:, 0] % size[:, 1]
    shifts = torch.stack([number % size[:, 0], second, third], 1) - limit
    vectors = torch.einsum("pa,pab->pb", shifts.to(cells.dtype), cells[owner])
    keep = (vectors * vectors).sum(1) < (reach**2)[owner]
    return owner[keep], vectors[keep]


def _count_up(counts: torch.Tensor) -> torch.Tensor:
    """Return 0..counts[0]-1, 0..counts[1]-1, ... in one row."""
    starts = torch.cumsum(counts, 0) - counts
    total = int(counts.sum())
    return torch.arange(total, device=counts.device) - torch.repeat_interleave(starts, counts)


class Smearing:
    """Linear maps between pairs and g(r) at one smearing: pairs are put on a fine grid, then convolved.

    A pair is shared by its three nearest nodes of a grid of step ``sigma / 2.5`` (quadratic B-spline, smooth in the
    distance); the variance that this adds is taken off the kernel, so that the error of g(r) stays small.

    Parameters
    ----------
    target : ndarray
        g(r) of the target on ``settings.grid``, smeared by ``settings.sigma``.
    settings : RDFSettings
        Grid and smearing of `target`.
    sigma : float
        Smearing to work at, at least that of the settings; Å.
    rmax : float, optional
        Compare up to this distance only; Å.
    """

    def __init__(
        self,
        target: np.ndarray,
        settings: RDFSettings,
        sigma: float,
        *,
        rmax: float = math.inf,
        device: str | torch.device = "cpu",
    ) -> None:
        self.sigma = max(sigma, settings.sigma)
        target, settings = _shortened(np.asarray(target, float), settings, rmax + 2 * self.sigma)
        extra = math.sqrt(self.sigma**2 - settings.sigma**2)
        self.step = self.sigma / 2.5
        rmax = min(rmax, settings.rmax)
        self.cutoff = rmax + 4 * self.sigma
        nodes = (
            np.arange(-1, math.ceil(self.cutoff / self.step) + 2) * self.step
        )  # a pair reaches one node to either side
        grid, smooth = _smoothed(target, settings, extra)
        variance = self.sigma**2 - self.step**2 / 4
        deviation = grid - nodes[:, None]
        kernel = np.exp(-0.5 * deviation**2 / variance) / np.sqrt(2 * np.pi * variance) / (4 * np.pi * grid**2)
        weights = np.where(grid < min(rmax, settings.rmax - 2 * extra), 1.0, 0.0)
        tensors = (torch.from_numpy(a).to(device) for a in (kernel, kernel * deviation / variance, smooth, weights))
        self.kernel, self.slope, self.target, self.weights = tensors
        self.grid = grid
        mean = (self.weights * self.target).sum() / self.weights.sum()
        self.scale = float((self.weights * (self.target - mean) ** 2).sum())

    @property
    def n_nodes(self) -> int:
        """Nodes of the fine grid."""
        return len(self.kernel)

    def histogram(self, pairs: Pairs, weights: torch.Tensor, n_batch: int) -> torch.Tensor:
        """Put pair weights of shape (n_pairs, n) on the fine grid, shape (n_batch, n_nodes, n)."""
        place = pairs.distances / self.step
        node = torch.round(place)
        offset = place - node
        flat = pairs.crystal * self.n_nodes + node.long() + 1
        total = weights.new_zeros(n_batch * self.n_nodes, weights.shape[1])
        for shift, share in ((-1, (0.5 - offset) ** 2 / 2), (0, 0.75 - offset**2), (1, (0.5 + offset) ** 2 / 2)):
            total.index_add_(0, flat + shift, weights * share[:, None])
        return total.reshape(n_batch, self.n_nodes, -1)

    def rdf(self, batch: Batch, pairs: Pairs) -> torch.Tensor:
        """Return g(r) on ``self.grid``, shape (n_batch, n_grid)."""
        weights = batch.center_weights[pairs.crystal, pairs.center][:, None]
        counts = self.histogram(pairs, weights, len(batch))[:, :, 0]
        return (counts @ self.kernel) * (batch.volumes / batch.n_atoms**2)[:, None]

    def pearson_distance(self, rdf: torch.Tensor) -> torch.Tensor:
        """Return 1 - Pearson correlation with the target, shape (n_batch,)."""
        share = self.weights / self.weights.sum()
        ours = rdf - (rdf * share).sum(1, keepdim=True)
        theirs = self.target - (self.target * share).sum()
        norm = ((ours**2 * share).sum(1) * (theirs**2 * share).sum()).sqrt()
        return 1 - (ours * theirs * share).sum(1) / norm.clamp(min=1e-300)


def _smoothed(target: np.ndarray, settings: RDFSettings, extra: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a grid that suits a target smeared by `extra` more, and the target there; beyond rmax it is taken as 1."""
    if extra < settings.bin_width:
        return settings.grid, target
    n_beyond = math.ceil(4 * extra / settings.bin_width)
    source = (np.arange(settings.n_bins + n_beyond) + 0.5) * settings.bin_width
    counts = np.concatenate([target, np.ones(n_beyond)]) * source**2
    step = max(settings.bin_width, extra / 2)
    grid = np.arange(1, math.floor(settings.rmax / step) + 1) * step
    kernel = np.exp(-0.5 * ((grid[:, None] - source) / extra) ** 2) / math.sqrt(2 * math.pi) / extra
    return grid, kernel @ counts * settings.bin_width / grid**2


def _shortened(target: np.ndarray, settings: RDFSettings, rmax: float) -> tuple[np.ndarray, RDFSettings]:
    """Cut a target off at `rmax`."""
    n_bins = min(settings.n_bins, math.ceil(rmax / settings.bin_width)) if math.isfinite(rmax) else settings.n_bins
    return target[:n_bins], RDFSettings(n_bins * settings.bin_width, n_bins, settings.sigma)


def min_distances(batch: Batch, cutoff: float) -> torch.Tensor:
    """Return the shortest distance of each crystal as far as it is below `cutoff`, else `cutoff`, shape (n_batch,)."""
    shortest = torch.full((len(batch),), cutoff, dtype=batch.cells.dtype, device=batch.cells.device)
    for start, part in _chunks(batch, cutoff):
        pairs = find_pairs(part, cutoff)
        piece = shortest[start : start + len(part)]
        piece.scatter_reduce_(0, pairs.crystal, pairs.distances, "amin")
    return shortest


def screen(batch: Batch, smearing: Smearing) -> torch.Tensor:
    """Return the Pearson distance of each crystal's RDF to the target, shape (n_batch,)."""
    return torch.cat(
        [
            smearing.pearson_distance(smearing.rdf(part, find_pairs(part, smearing.cutoff)))
            for _, part in _chunks(batch, smearing.cutoff)
        ]
    )


def _chunks(batch: Batch, cutoff: float) -> Iterator[tuple[int, Batch]]:
    """Split a batch so that the pairs of a part fit into memory."""
    if len(batch) == 0:
        return
    n_centers = (batch.center_weights > 0).sum(1).max()
    volume = float((batch.volumes / batch.n_atoms).min())
    per_crystal = int(n_centers) * 4 / 3 * math.pi * (cutoff + volume ** (1 / 3)) ** 3 / volume * 3
    size = max(1, int(CHUNK / per_crystal))
    for start in range(0, len(batch), size):
        yield start, batch.select(torch.arange(start, min(start + size, len(batch)), device=batch.cells.device))
