"""Behler-Parrinello symmetry functions of MAISE, differentiated by hand and batched over centres.

For an angular function of a centre with neighbours j and k, everything depends on x = r_jk², s = r_ij² + r_ik² and
c = cos(theta). The functions of one centre share few radial factors E_a = exp(-eta_a (s + x)) and angular factors
A_b = (1 + lambda c)^zeta, so that all of them are entries of the small matrix Q_ab = sum_t q_t E_a A_b over the
triplets t, with q the product of the three cutoff functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor

from maise_bridge.basis import Basis
from maise_bridge.neighbors import NeighborList

_FAR = 1e6  # squared length of the bond that pads rows: farther than any cutoff
_TRIPLETS_PER_CHUNK = 20_000  # keeps the working set of a chunk in cache


@dataclass(frozen=True, eq=False)
class Bonds:
    """Bonds of a batch as tensors, sorted by centre and, within it, by species class; one padding bond at the end.

    The class of a neighbour of species b at a centre of species a is d = (b - a) mod n_species.

    Attributes
    ----------
    centre, neighbour, structure : Tensor, shape (n_bonds,)
        Atoms at both ends, and the structure they belong to.
    vectors : Tensor, shape (n_bonds + 1, 3)
        From centre to neighbour; Å.
    squares, lengths : Tensor, shape (n_bonds + 1,)
        Squared length (Å²) and length (Å).
    weights, slopes : Tensor, shape (n_bonds + 1,)
        Cutoff function fc(r), and d ln fc / d r² (1/Å²).
    start, count : ndarray, shape (n_atoms, n_species)
        Where the neighbours of one class of one centre lie.
    """

    centre: Tensor
    neighbour: Tensor
    structure: Tensor
    vectors: Tensor
    squares: Tensor
    lengths: Tensor
    weights: Tensor
    slopes: Tensor
    start: np.ndarray
    count: np.ndarray


@dataclass(frozen=True, eq=False)
class _Side:
    """Neighbours of one class of the centres of a chunk, padded to a rectangle (n_centres, n_neighbours)."""

    index: Tensor
    vectors: Tensor
    squares: Tensor
    lengths: Tensor
    weights: Tensor
    slopes: Tensor


@dataclass(frozen=True, eq=False)
class _Triplets:
    """Pairs of neighbours closer than the cutoff, padded to (n_centres, n_triplets), with their factors."""

    classes: tuple[int, int]
    flat: Tensor  # where the pair stands in (n_centres, n_left, n_right), flattened
    cosine: Tensor
    inverse: Tensor  # 1 / (r_ij r_ik)
    slope: Tensor  # d ln fc(r_jk) / dx
    radial: Tensor  # q E_a, (n_centres, n_eta, n_triplets)
    angular: Tensor  # A_b, (n_centres, n_zeta_lambda, n_triplets)
    dangular: Tensor  # dA_b / dc


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some centres with the intermediate results that differentiation needs."""

    centres: np.ndarray
    descriptors: Tensor
    sides: tuple[_Side, ...]
    pairs: tuple[Tensor, ...]  # exp(-eta (r - Rs)²) per class, (n_centres, n_radial, n_neighbours)
    triplets: tuple[_Triplets, ...]


class SymmetryFunctions:
    """Descriptors of a model of `n_species` species and their derivatives, in the order of MAISE's inputs.

    Parameters
    ----------
    basis : Basis
        Functions and cutoff.
    n_species : int
        1 to 3.
    device, dtype : torch.device or str, torch.dtype
        Where and in which precision to compute.
    """

    def __init__(
        self,
        basis: Basis,
        n_species: int = 1,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        if not 1 <= n_species <= 3:
            raise ValueError(f"n_species is {n_species}; MAISE models have 1 to 3")
        self.basis = basis
        self.n_species = n_species
        self.cutoff = basis.cutoff
        self.n_inputs = basis.n_inputs(n_species)
        self.device, self.dtype = torch.device(device), dtype
        etas, eta_of = np.unique(basis.angular[:, 0], return_inverse=True)
        self._powers, power_of = np.unique(basis.angular[:, 1:], axis=0, return_inverse=True)
        self._pick = torch.as_tensor(eta_of * len(self._powers) + power_of, device=self.device)
        self._eta = self._tensor(etas)
        self.radial = self._tensor(basis.radial)
        self.eta_of_function = self._tensor(basis.angular[:, 0])
        self.factors = torch.as_tensor(eta_of, device=self.device), torch.as_tensor(power_of, device=self.device)
        self.blocks = tuple(_input_blocks(n_species, len(basis.radial), len(basis.angular)))

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(array), dtype=self.dtype, device=self.device)

    def bonds(self, neighbors: NeighborList, species: np.ndarray) -> Bonds:
        """Prepare a neighbour list; `species` (n_atoms,) counts within the model, from 0. Too long bonds drop out."""
        centre, neighbour, vectors = neighbors.centre, neighbors.neighbour, neighbors.vectors
        if neighbors.cutoff > self.cutoff:
            near = np.flatnonzero(np.einsum("bx,bx->b", vectors, vectors) < self.cutoff**2)
            centre, neighbour, vectors = centre.take(near), neighbour.take(near), vectors.take(near, axis=0)
        row = centre * self.n_species
        if self.n_species > 1:
            row = row + (species[neighbour] - species[centre]) % self.n_species
            order = np.argsort(row, kind="stable")
            centre, neighbour, vectors, row = centre[order], neighbour[order], vectors[order], row[order]
        count = np.bincount(row, minlength=neighbors.n_atoms * self.n_species)
        start = (np.cumsum(count) - count).reshape(-1, self.n_species)
        padded = self._tensor(np.concatenate([vectors, np.zeros((1, 3))]))
        squares = (padded * padded).sum(1)
        squares[-1] = _FAR
        lengths = squares.sqrt()
        weights, slopes = _cutoff_function(squares, lengths, self.cutoff)
        return Bonds(
            centre=torch.as_tensor(centre, device=self.device),
            neighbour=torch.as_tensor(neighbour, device=self.device),
            structure=torch.as_tensor(neighbors.structure[centre], device=self.device),
            vectors=padded,
            squares=squares,
            lengths=lengths,
            weights=weights,
            slopes=slopes,
            start=start,
            count=count.reshape(-1, self.n_species),
        )

    def chunks(self, bonds: Bonds, centres: np.ndarray, *, triplets: int = _TRIPLETS_PER_CHUNK) -> Iterator[np.ndarray]:
        """Split centres into groups of similar coordination and bounded work (about `triplets` each)."""
        count = bonds.count[centres].sum(1)
        order = np.argsort(count, kind="stable")
        work = np.cumsum(1 + count[order].astype(float) ** 2 / 4)  # half of all pairs are closer than the cutoff
        yield from (
            part for part in np.split(centres[order], np.flatnonzero(np.diff(work // triplets)) + 1) if len(part)
        )

    def forward(self, bonds: Bonds, centres: np.ndarray) -> Chunk:
        """Compute the descriptors (n_centres, n_inputs) of some atoms."""
        sides = tuple(self._side(bonds, centres, d) for d in range(self.n_species))
        out = torch.empty((len(centres), self.n_inputs), dtype=self.dtype, device=self.device)
        pairs, triplets = [], []
        for classes, block in self.blocks:
            if len(classes) == 1:
                side = sides[classes[0]]
                shifted = side.lengths[:, None, :] - self.radial[:, 1, None]
                pairs.append(torch.exp(-self.radial[:, 0, None] * shifted * shifted))
                out[:, block] = (pairs[-1] @ side.weights[:, :, None])[:, :, 0]
            else:
                triplets.append(self._triplets(sides, classes))
                products = triplets[-1].radial @ triplets[-1].angular.transpose(1, 2)
                out[:, block] = products.flatten(1).index_select(1, self._pick)
        return Chunk(centres, out, sides, tuple(pairs), tuple(triplets))

    def backward(self, chunk: Chunk, gradient: Tensor, bond_gradient: Tensor) -> None:
        """Add dE/d(bond vector) to `bond_gradient` (n_bonds + 1, 3), given dE/d(descriptors) of the chunk."""
        number = 0
        for classes, block in self.blocks:
            if len(classes) == 1:
                side, functions = chunk.sides[classes[0]], chunk.pairs[classes[0]]
                self._pair_backward(side, functions, gradient[:, block], bond_gradient)
            else:
                self._angular_backward(chunk.sides, chunk.triplets[number], gradient[:, block], bond_gradient)
                number += 1

    def _side(self, bonds: Bonds, centres: np.ndarray, d: int) -> _Side:
        start, count = bonds.start[centres, d], bonds.count[centres, d]
        place = np.arange(max(1, count.max()))
        padding = len(bonds.squares) - 1
        index = torch.as_tensor(np.where(place < count[:, None], start[:, None] + place, padding), device=self.device)
        flat, shape = index.flatten(), index.shape
        return _Side(
            index=flat,
            vectors=bonds.vectors.index_select(0, flat).view(*shape, 3),
            squares=bonds.squares.index_select(0, flat).view(shape),
            lengths=bonds.lengths.index_select(0, flat).view(shape),
            weights=bonds.weights.index_select(0, flat).view(shape),
            slopes=bonds.slopes.index_select(0, flat).view(shape),
        )

    def _triplets(self, sides: tuple[_Side, ...], classes: tuple[int, ...]) -> _Triplets:
        left, right = sides[classes[0]], sides[classes[1]]
        both = left.squares[:, :, None] + right.squares[:, None, :]
        opposite = torch.baddbmm(both, left.vectors, right.vectors.transpose(1, 2), alpha=-2.0)
        near = opposite < self.cutoff**2
        if classes[0] == classes[1]:
            near &= torch.ones(near.shape[1:], dtype=torch.bool, device=self.device).triu(1)
        flat, valid = _padded_indices(near)
        inverse = (1.0 / left.lengths)[:, :, None] * (1.0 / right.lengths)[:, None, :]
        weight = left.weights[:, :, None] * right.weights[:, None, :]
        s, x, inverse, weight = (
            dense.view(-1).index_select(0, flat.view(-1)).view(flat.shape)
            for dense in (both, opposite, inverse, weight)
        )
        if valid is not None:
            weight = weight * valid
            x = torch.where(valid, x, 1.0)
        x = x.clamp_min(1e-12)
        cosine = 0.5 * (s - x) * inverse
        weight_x, slope = _cutoff_function(x, x.sqrt(), self.cutoff)
        angular, dangular = self._angular_factors(cosine)
        radial = torch.exp(-self._eta[:, None] * (s + x)[:, None, :]).mul_((weight * weight_x)[:, None, :])
        return _Triplets((classes[0], classes[1]), flat, cosine, inverse, slope, radial, angular, dangular)

    def _angular_factors(self, cosine: Tensor) -> tuple[Tensor, Tensor]:
        """2 · 2^(1-zeta) (1 + lambda c)^zeta and its derivative by c, (n_centres, n_powers, n_triplets)."""
        shape = (cosine.shape[0], len(self._powers), cosine.shape[1])
        angular, dangular = cosine.new_empty(shape), cosine.new_empty(shape)
        known: dict[tuple[float, int], Tensor] = {}
        for b, (zeta, sign) in enumerate(self._powers):
            base = known.setdefault((sign, 1), 1.0 + sign * cosine)
            scale = 2.0 * 2.0 ** (1.0 - zeta)
            if zeta == int(zeta) and zeta >= 1:
                lower = _integer_power(base, int(zeta) - 1, sign, known)
            else:
                lower = base.clamp_min(1e-300) ** (zeta - 1.0)
            torch.mul(lower, scale * zeta * sign, out=dangular[:, b])
            torch.mul(lower, base, out=angular[:, b]).mul_(scale)
        return angular, dangular

    def _pair_backward(self, side: _Side, functions: Tensor, gradient: Tensor, bond_gradient: Tensor) -> None:
        weighted = gradient[:, :, None] * functions
        total = weighted.sum(1)
        shifted = (weighted * (-2.0 * self.radial[:, 0, None])).sum(1) * side.lengths
        shifted = shifted - (weighted * (-2.0 * self.radial[:, 0] * self.radial[:, 1])[:, None]).sum(1)
        # d/dr = fc (total 2 r slope + shifted); along the unit vector
        along = side.weights * (2.0 * total * side.slopes + shifted / side.lengths)
        bond_gradient.index_add_(0, side.index, (along[:, :, None] * side.vectors).view(-1, 3))

    def _angular_backward(
        self, sides: tuple[_Side, ...], triplets: _Triplets, gradient: Tensor, bond_gradient: Tensor
    ) -> None:
        left, right = sides[triplets.classes[0]], sides[triplets.classes[1]]
        n, n_left, n_right = len(gradient), left.squares.shape[1], right.squares.shape[1]
        matrix = gradient.new_zeros((n, len(self._eta) * len(self._powers)))
        matrix.index_add_(1, self._pick, gradient)
        matrix = matrix.view(n, len(self._eta), len(self._powers))
        product = (matrix @ triplets.angular).mul_(triplets.radial)
        total = product.sum(1)
        stretch = -(self._eta @ product)  # d/ds at fixed x and c
        tilt = (matrix.transpose(1, 2) @ triplets.radial).mul_(triplets.dangular).sum(1)  # d/dc
        opposite = stretch + total * triplets.slope  # d/dx
        tilt_dot = tilt * triplets.inverse  # d/d(d_ij · d_ik) at fixed lengths

        def dense(values: Tensor) -> Tensor:
            out = values.new_zeros(n * n_left * n_right)
            return out.scatter_add_(0, triplets.flat.view(-1), values.reshape(-1)).view(n, n_left, n_right)

        cross = dense(tilt_dot - 2.0 * opposite)
        lengths = dense(stretch + opposite)
        weights = dense(total)
        turns = dense(tilt * triplets.cosine)
        for dim, side, other, mixed in ((2, left, right, cross), (1, right, left, cross.transpose(1, 2))):
            scalar = 2.0 * (lengths.sum(dim) + weights.sum(dim) * side.slopes) - turns.sum(dim) / side.squares
            vectors = torch.baddbmm(scalar[:, :, None] * side.vectors, mixed, other.vectors)
            bond_gradient.index_add_(0, side.index, vectors.view(-1, 3))


def species_indices(structures: Sequence[Atoms], species: Sequence[str]) -> np.ndarray:
    """Place in `species` of every atom of some structures, (n_atoms,). Raises ValueError naming what is missing."""
    place = np.full(len(atomic_numbers), -1)
    place[[atomic_numbers[symbol] for symbol in species]] = np.arange(len(species))
    numbers = np.concatenate([atoms.numbers for atoms in structures])
    found = place[numbers]
    if np.any(found < 0):
        missing = sorted({chemical_symbols[number] for number in numbers[found < 0]})
        raise ValueError(f"structure has {', '.join(missing)}; the model covers {', '.join(species)}")
    return found


def _input_blocks(n_species: int, n_radial: int, n_angular: int) -> Iterator[tuple[tuple[int, ...], slice]]:
    """Classes of the one or two neighbours of each block of inputs, in MAISE's order, with its columns."""
    order: list[tuple[int, ...]] = [(0,), (0, 0), (1,), (0, 1), (1, 1), (2,), (0, 2), (2, 2), (1, 2)]
    column = 0
    for classes in order:
        if max(classes) < n_species:
            width = n_radial if len(classes) == 1 else n_angular
            yield classes, slice(column, column + width)
            column += width


def _cutoff_function(squares: Tensor, lengths: Tensor, cutoff: float) -> tuple[Tensor, Tensor]:
    """Cosine cutoff fc(r) and d ln fc / d r², both zero beyond the cutoff."""
    angle = (math.pi / cutoff) * lengths
    cosine = torch.cos(angle)
    weight = 0.5 + 0.5 * cosine
    slope = torch.sin(angle) / ((1.0 + cosine).clamp_min(1e-30) * lengths) * (-0.5 * math.pi / cutoff)
    inside = squares < cutoff * cutoff
    return weight * inside, slope * inside


def _integer_power(base: Tensor, exponent: int, sign: float, known: dict[tuple[float, int], Tensor]) -> Tensor:
    """base**exponent by repeated squaring, squares kept in `known`."""
    if exponent == 0:
        return torch.ones_like(base)
    if (sign, exponent) not in known:
        half = _integer_power(base, exponent // 2, sign, known)
        known[sign, exponent] = half * half * base if exponent % 2 else half * half
    return known[sign, exponent]


def _padded_indices(near: Tensor) -> tuple[Tensor, Tensor | None]:
    """Places of the true entries of each row of `near`, and which of them are no padding (None: all)."""
    n, size = len(near), near[0].numel()
    if near.device.type == "cpu":
        flat = torch.from_numpy(np.flatnonzero(near.numpy()))
    else:
        flat = near.flatten().nonzero()[:, 0]
    count = near.flatten(1).sum(1)
    longest = int(count.max())
    if longest * n == len(flat):
        return flat.view(n, longest), None
    valid = torch.arange(longest, device=near.device) < count[:, None]
    first = torch.arange(n, device=near.device)[:, None] * size
    return first.expand(n, longest).contiguous().masked_scatter_(valid, flat), valid
