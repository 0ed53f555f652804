"""Behler-Parrinello symmetry functions of MAISE, differentiated by hand and batched over centres.

For an angular function of a centre with neighbours j and k, everything depends on x = r_jk², s = r_ij² + r_ik² and
c = cos(theta). The functions of one centre share few radial factors E_a = exp(-eta_a (s + x)) and angular factors
A_b = (1 + lambda c)^zeta, so that all of them are entries of the small matrix Q_ab = sum_t q_t E_a A_b over the
triplets t, with q the product of the three cutoff functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maise_bridge.basis import Basis
from maise_bridge.inputs import input_blocks
from maise_bridge.neighbors import NeighborList

_FAR = 1e6  # squared length of the bond that pads rows: farther than any cutoff
_TRIPLETS_PER_CHUNK = 30_000  # bounds memory (some 10 MB) and keeps the working set near the cache


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
    scalars : Tensor, shape (4, n_bonds + 1)
        Squared length (Å²), length (Å), cutoff function fc, and d ln fc / d r² (1/Å²).
    start, count : ndarray, shape (n_atoms, n_species)
        Where the neighbours of one class of one centre lie.
    """

    centre: Tensor
    neighbour: Tensor
    structure: Tensor
    vectors: Tensor
    scalars: Tensor
    start: np.ndarray
    count: np.ndarray

    @property
    def lengths(self) -> Tensor:
        """Lengths (n_bonds + 1,); Å."""
        return self.scalars[1]


@dataclass(frozen=True, eq=False)
class Side:
    """Neighbours of one class of the centres of a chunk, padded to a rectangle (n_centres, n_neighbours)."""

    index: Tensor  # number of the bond, flat
    vectors: Tensor
    squares: Tensor
    lengths: Tensor
    weights: Tensor
    slopes: Tensor


@dataclass(frozen=True, eq=False)
class Triplets:
    """Pairs of neighbours closer than the cutoff, padded to (n_centres, n_triplets), with their factors.

    `radial` is q E_a, (n_centres, n_eta, n_triplets); `angular` is A_b and `dangular` is (1 + lambda c)^(zeta - 1),
    both (n_centres, n_zeta * n_lambda, n_triplets).
    """

    flat: Tensor  # place of the pair in (n_centres, n_left, n_right), flattened
    cosine: Tensor
    inverse: Tensor  # 1 / (r_ij r_ik)
    slope: Tensor  # d ln fc(r_jk) / dx
    radial: Tensor
    angular: Tensor
    dangular: Tensor


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some centres with the intermediate results that differentiation needs."""

    centres: np.ndarray
    descriptors: Tensor
    sides: tuple[Side, ...]
    pairs: tuple[Tensor, ...]  # exp(-eta (r - Rs)²) per class, (n_centres, n_radial, n_neighbours)
    triplets: tuple[Triplets, ...]


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
        self.blocks = tuple(input_blocks(n_species, len(basis.radial), len(basis.angular)))
        self.radial = self._tensor(basis.radial)
        etas, eta_of = np.unique(basis.angular[:, 0], return_inverse=True)
        self._zetas, zeta_of = np.unique(basis.angular[:, 1], return_inverse=True)
        signs, sign_of = np.unique(basis.angular[:, 2], return_inverse=True)
        power_of = zeta_of * len(signs) + sign_of
        self._etas, self._signs = self._tensor(etas), self._tensor(signs)
        zetas = np.repeat(self._zetas, len(signs))
        self._prefactors = self._tensor(2.0 * 2.0 ** (1.0 - zetas))
        self._dprefactors = self._tensor(zetas * np.tile(signs, len(self._zetas)))
        self.pick = torch.as_tensor(eta_of * len(zetas) + power_of, device=self.device)
        self.eta_of_function = self._tensor(basis.angular[:, 0])
        self.prefactor_of_function = self._prefactors[power_of]
        self.dprefactor_of_function = (self._prefactors * self._dprefactors)[power_of]

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(array), dtype=self.dtype, device=self.device)

    def bonds(self, neighbors: NeighborList, species: np.ndarray) -> Bonds:
        """Prepare a neighbour list; `species` (n_atoms,) counts within the model, from 0. Too long bonds drop out."""
        centre, neighbour, vectors = neighbors.centre, neighbors.neighbour, neighbors.vectors
        if neighbors.cutoff > self.cutoff:
            near = np.flatnonzero(np.einsum("bx,bx->b", vectors, vectors) < self.cutoff**2)
            centre, neighbour, vectors = centre.take(near), neighbour.take(near), vectors.take(near, axis=0)
        row = centre
        if self.n_species > 1:
            row = centre * self.n_species + (species[neighbour] - species[centre]) % self.n_species
            order = np.argsort(row, kind="stable")
            centre, neighbour, vectors, row = centre[order], neighbour[order], vectors[order], row[order]
        count = np.bincount(row, minlength=neighbors.n_atoms * self.n_species)
        padded = self._tensor(np.concatenate([vectors, np.zeros((1, 3))]))
        scalars = padded.new_empty((4, len(padded)))
        torch.linalg.vecdot(padded, padded, out=scalars[0])
        scalars[0, -1] = _FAR
        _cutoff_function(scalars[0], self.cutoff, scalars[1:])
        scalars[2:, -1] = 0.0
        return Bonds(
            centre=torch.as_tensor(centre, device=self.device),
            neighbour=torch.as_tensor(neighbour, device=self.device),
            structure=torch.as_tensor(neighbors.structure[centre], device=self.device),
            vectors=padded,
            scalars=scalars,
            start=(np.cumsum(count) - count).reshape(-1, self.n_species),
            count=count.reshape(-1, self.n_species),
        )

    def chunks(self, bonds: Bonds, centres: np.ndarray, *, triplets: int = _TRIPLETS_PER_CHUNK) -> Iterator[np.ndarray]:
        """Split centres into groups of similar coordination and bounded work (about `triplets` each)."""
        count = bonds.count[centres].sum(1)
        order = np.argsort(count, kind="stable")
        work = np.cumsum(1 + count[order].astype(float) ** 2 / 4)  # half of all pairs are closer than the cutoff
        n_chunks = np.ceil(work[-1] / triplets) if len(work) else 1
        number = np.floor(work * n_chunks / (work[-1:] * (1 + 1e-9)))
        yield from (part for part in np.split(centres[order], np.flatnonzero(np.diff(number)) + 1) if len(part))

    def forward(self, bonds: Bonds, centres: np.ndarray) -> Chunk:
        """Compute the descriptors (n_centres, n_inputs) of some atoms."""
        sides = tuple(self._side(bonds, centres, d) for d in range(self.n_species))
        out = torch.empty((len(centres), self.n_inputs), dtype=self.dtype, device=self.device)
        pairs, triplets = [], []
        for classes, block in self.blocks:
            if len(classes) == 1:
                side = sides[classes[0]]
                shifted = side.lengths[:, None, :] - self.radial[:, 1, None]
                pairs.append(shifted.square_().mul_(-self.radial[:, 0, None]).exp_())
                out[:, block] = torch.bmm(pairs[-1], side.weights[:, :, None])[:, :, 0]
            else:
                left, right = sides[classes[0]], sides[classes[1]]
                triplets.append(self.triplets(left, right, ordered=left is right))
                products = torch.bmm(triplets[-1].radial, triplets[-1].angular.transpose(1, 2)).mul_(self._prefactors)
                out[:, block] = products.view(len(centres), -1).index_select(1, self.pick)
        return Chunk(centres, out, sides, tuple(pairs), tuple(triplets))

    def backward(self, chunk: Chunk, gradient: Tensor, bond_gradient: Tensor) -> None:
        """Add dE/d(bond vector) to `bond_gradient` (n_bonds + 1, 3), given dE/d(descriptors) of the chunk."""
        pairs, triplets = iter(chunk.pairs), iter(chunk.triplets)
        for classes, block in self.blocks:
            if len(classes) == 1:
                self._pair_backward(chunk.sides[classes[0]], next(pairs), gradient[:, block], bond_gradient)
            else:
                left, right = chunk.sides[classes[0]], chunk.sides[classes[1]]
                self._angular_backward(left, right, next(triplets), gradient[:, block], bond_gradient)

    def _side(self, bonds: Bonds, centres: np.ndarray, d: int) -> Side:
        start, count = bonds.start[centres, d], bonds.count[centres, d]
        place = np.arange(max(1, count.max()))
        padding = bonds.scalars.shape[1] - 1
        index = np.where(place < count[:, None], start[:, None] + place, padding)
        flat = torch.as_tensor(index, device=self.device).view(-1)
        scalars = bonds.scalars.index_select(1, flat).view(4, *index.shape)
        vectors = bonds.vectors.index_select(0, flat).view(*index.shape, 3)
        return Side(flat, vectors, *scalars.unbind(0))

    def triplets(self, left: Side, right: Side, *, ordered: bool = False, distinct: bool = False) -> Triplets:
        """Find the pairs of a bond on the left and one on the right of each row, and compute their factors.

        `ordered`: left and right are the same bonds, take each pair once; `distinct`: take no bond with itself.
        """
        shape = (*left.squares.shape, right.squares.shape[1])
        dense = left.squares.new_empty((4, *shape))
        torch.add(left.squares[:, :, None], right.squares[:, None, :], out=dense[0])
        torch.baddbmm(dense[0], left.vectors, right.vectors.transpose(1, 2), alpha=-2.0, out=dense[1])
        torch.mul(left.lengths[:, :, None], right.lengths[:, None, :], out=dense[2])
        torch.mul(left.weights[:, :, None], right.weights[:, None, :], out=dense[3])
        near = dense[1] < self.cutoff**2
        if ordered:
            near.logical_and_(torch.ones(shape[1:], dtype=torch.bool, device=self.device).triu_(1))
        elif distinct:
            near.logical_and_(left.index.view(shape[:2])[:, :, None] != right.index.view(shape[0], 1, -1))
        flat, valid = _padded_indices(near)
        s, x, lengths, weight = dense.view(4, -1).index_select(1, flat.view(-1)).view(4, *flat.shape).unbind(0)
        if valid is not None:
            weight.mul_(valid)
            x.masked_fill_(~valid, 1.0)
        x.clamp_min_(1e-12)
        cutoff = x.new_empty((3, *x.shape))
        _cutoff_function(x, self.cutoff, cutoff)
        inverse = lengths.reciprocal_()
        cosine = (s - x).mul_(inverse).mul_(0.5)
        radial = torch.mul(s.add_(x)[:, None, :], -self._etas[:, None]).exp_()
        radial.mul_(weight.mul_(cutoff[1])[:, None, :])
        angular, dangular = self._angular_factors(cosine)
        return Triplets(flat, cosine, inverse, cutoff[2], radial, angular, dangular)

    def _angular_factors(self, cosine: Tensor) -> tuple[Tensor, Tensor]:
        """(1 + lambda c)^zeta and (1 + lambda c)^(zeta - 1), each (n_centres, n_zeta * n_lambda, n_triplets)."""
        n, n_triplets = cosine.shape
        base = torch.mul(cosine[:, None, :], self._signs[:, None]).add_(1.0)
        out = base.new_empty((2, n, len(self._zetas), len(self._signs), n_triplets))
        known = {0: torch.ones_like(base), 1: base}
        for number, zeta in enumerate(self._zetas):
            if zeta == int(zeta) and zeta >= 1:
                out[1, :, number] = lower = _integer_power(int(zeta) - 1, known)
            else:
                out[1, :, number] = lower = base.clamp_min(1e-300) ** (zeta - 1.0)
            torch.mul(lower, base, out=out[0, :, number])
        angular, dangular = out.view(2, n, len(self._prefactors), n_triplets).unbind(0)
        return angular, dangular

    def _pair_backward(self, side: Side, functions: Tensor, gradient: Tensor, bond_gradient: Tensor) -> None:
        eta, shift = self.radial.unbind(1)
        # with a shift, d/dr² of exp(-eta (r - Rs)²) is -eta (1 - Rs / r) times it
        matrix = torch.stack([gradient, gradient * eta, gradient * (eta * shift)], 1)
        total, stretched, shifted = torch.bmm(matrix, functions).unbind(1)
        along = side.weights * (total * side.slopes - stretched + shifted / side.lengths) * 2.0
        bond_gradient.index_add_(0, side.index, (along[:, :, None] * side.vectors).view(-1, 3))

    def _angular_backward(
        self, left: Side, right: Side, triplets: Triplets, gradient: Tensor, bond_gradient: Tensor
    ) -> None:
        shape = (*left.squares.shape, right.squares.shape[1])
        matrix = gradient.new_zeros((len(gradient), len(self._etas) * len(self._prefactors)))
        matrix = matrix.index_add_(1, self.pick, gradient).view(len(gradient), len(self._etas), len(self._prefactors))
        matrix.mul_(self._prefactors)
        product = torch.bmm(matrix, triplets.angular).mul_(triplets.radial)
        values = product.new_empty((4, *product[:, 0].shape))
        cross, lengths, weights, turns = values.unbind(0)
        torch.sum(product, 1, out=weights)
        torch.matmul(self._etas, product, out=lengths).neg_()  # d/ds at fixed x and c
        tilt = torch.bmm((matrix * self._dprefactors).transpose(1, 2), triplets.radial)
        tilt = tilt.mul_(triplets.dangular).sum(1)  # d/dc
        opposite = torch.addcmul(lengths, weights, triplets.slope)  # d/dx
        torch.mul(tilt, triplets.inverse, out=cross).sub_(opposite, alpha=2.0)
        lengths.add_(opposite)
        torch.mul(tilt, triplets.cosine, out=turns)
        dense = values.new_zeros((4, math.prod(shape)))
        dense.scatter_add_(1, triplets.flat.view(1, -1).expand(4, -1), values.view(4, -1))
        dense = dense.view(4, *shape)
        for dim, side, other, mixed in ((3, left, right, dense[0]), (2, right, left, dense[0].transpose(1, 2))):
            lengths, weights, turns = dense[1:].sum(dim).unbind(0)
            scalar = torch.addcmul(lengths, weights, side.slopes).mul_(2.0).sub_(turns / side.squares)
            vectors = torch.baddbmm(scalar[:, :, None] * side.vectors, mixed, other.vectors)
            bond_gradient.index_add_(0, side.index, vectors.view(-1, 3))


def _cutoff_function(squares: Tensor, cutoff: float, out: Tensor) -> None:
    """Fill `out` with r, fc(r) = cos²(pi r / 2 Rc) and d ln fc / d r², given r² below Rc²."""
    lengths, weights, slopes = out.unbind(0)
    torch.sqrt(squares, out=lengths)
    half_angle = lengths * (0.5 * math.pi / cutoff)
    torch.cos(half_angle, out=weights)
    torch.sin(half_angle, out=slopes).div_(weights).div_(lengths).mul_(-0.5 * math.pi / cutoff)
    weights.square_()


def _integer_power(exponent: int, known: dict[int, Tensor]) -> Tensor:
    """Power of ``known[1]`` by repeated squaring; intermediate powers are added to `known`."""
    if exponent not in known:
        half = _integer_power(exponent // 2, known)
        known[exponent] = half * half * known[1] if exponent % 2 else half * half
    return known[exponent]


def _padded_indices(near: Tensor) -> tuple[Tensor, Tensor | None]:
    """Places of the true entries of each row of `near`, and which of them are no padding (None: all)."""
    n, size = len(near), near[0].numel()
    if near.device.type == "cpu":
        places = np.flatnonzero(near.numpy())
        count = np.diff(np.searchsorted(places, np.arange(n + 1) * size))
    else:
        places = near.flatten().nonzero()[:, 0].cpu().numpy()
        count = near.flatten(1).sum(1).cpu().numpy()
    longest = int(count.max())
    if longest * n == len(places):
        return torch.as_tensor(places, device=near.device).view(n, longest), None
    valid = np.arange(longest) < count[:, None]
    flat = np.repeat(np.arange(n)[:, None] * size, longest, axis=1)
    flat[valid] = places
    return torch.as_tensor(flat, device=near.device), torch.as_tensor(valid, device=near.device)
