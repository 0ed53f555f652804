"""Compiled loops over the pairs of one crystal: places, shortest distance, g(r); and the small matrices they need.

Lattice points within a cutoff are enumerated in the frame where the cell is lower triangular (Fincke & Pohst 1985): the
range of each index follows from the two before it, so that hardly any point outside the cutoff is looked at. Every
crystal is computed alone; no result depends on what else is in a batch.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
import numpy as np

# Reordering and fused operations are allowed; NaN and infinity keep their meaning.
_FAST = {"contract", "reassoc", "nsz", "arcp"}
compiled: Any = numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
# What compiled functions call is inlined: a copy of its own could round otherwise in the process that compiles than in
# those that load the code from the cache.
part: Any = numba.njit(forceinline=True, fastmath=_FAST, error_model="numpy")
SAME_PLACE = 1e-12  # square of the distance below which two atoms coincide; Å^2


class Space(NamedTuple):
    """Room for what is known of one crystal.

    Attributes
    ----------
    scaled : ndarray
        Shape (n_atoms, 3): scaled positions.
    lower, frame : ndarray
        Shape (3, 3): the cell is ``lower @ frame``, `lower` lower triangular, `frame` orthonormal.
    center, neighbor : ndarray
        Shape (n_room,), int64: the atoms of a pair.
    vectors, distances : ndarray
        Shapes (n_room, 3), in the frame of `lower`, and (n_room,); Å.
    peak, slope : ndarray
        Shape (n_grid,): one smeared pair and its derivative.
    """

    scaled: np.ndarray
    lower: np.ndarray
    frame: np.ndarray
    center: np.ndarray
    neighbor: np.ndarray
    vectors: np.ndarray
    distances: np.ndarray
    peak: np.ndarray
    slope: np.ndarray


@part
def determinant(matrix):
    """Return the determinant of a (3, 3) matrix."""
    return (
        matrix[0, 0] * (matrix[1, 1] * matrix[2, 2] - matrix[1, 2] * matrix[2, 1])
        - matrix[0, 1] * (matrix[1, 0] * matrix[2, 2] - matrix[1, 2] * matrix[2, 0])
        + matrix[0, 2] * (matrix[1, 0] * matrix[2, 1] - matrix[1, 1] * matrix[2, 0])
    )


@part
def multiply(a, b, product):
    """Fill in the product of two (3, 3) matrices."""
    for x in range(3):
        for y in range(3):
            product[x, y] = a[x, 0] * b[0, y] + a[x, 1] * b[1, y] + a[x, 2] * b[2, y]


@part
def solve(hessian, gradient, damping, factor, step):
    """Solve ``(H + damping <diag H>) step = -gradient`` by Cholesky factorisation; False if that is not possible."""
    n_parameters, size = len(gradient), 1e-6
    for p in range(n_parameters):
        size += hessian[p, p] / n_parameters
    for p in range(n_parameters):
        for q in range(p + 1):
            value = hessian[p, q] + (damping * size if p == q else 0.0)
            for k in range(q):
                value -= factor[p, k] * factor[q, k]
            if p == q:
                if not value > 0:
                    return False
                factor[p, p] = math.sqrt(value)
            else:
                factor[p, q] = value / factor[q, q]
    for p in range(n_parameters):
        value = -gradient[p]
        for k in range(p):
            value -= factor[p, k] * step[k]
        step[p] = value / factor[p, p]
    for p in range(n_parameters - 1, -1, -1):
        value = step[p]
        for k in range(p + 1, n_parameters):
            value -= factor[k, p] * step[k]
        step[p] = value / factor[p, p]
    return True


@part
def make_space(n_atoms, n_room, n_grid):
    """Return room for a crystal of `n_atoms` atoms with `n_room` pairs."""
    return Space(
        np.zeros((n_atoms, 3)),
        np.zeros((3, 3)),
        np.zeros((3, 3)),
        np.zeros(n_room, np.int64),
        np.zeros(n_room, np.int64),
        np.zeros((n_room, 3)),
        np.zeros(n_room),
        np.zeros(n_grid + 2),
        np.zeros(n_grid + 2),
    )


@part
def place(tables, t, cell, u, space):
    """Fill in the scaled positions and the triangular cell; False if the cell is flat or anything is not finite."""
    place_atoms(tables, t, 0, tables.n_atoms[t], u, space)
    for atom in range(tables.n_atoms[t]):
        for x in range(3):
            if not math.isfinite(space.scaled[atom, x]):
                return False
    return triangulate(cell, space.lower, space.frame)


@part
def place_atoms(tables, t, first, last, u, space):
    """Fill in the scaled positions of atoms `first` to `last` - 1."""
    for atom in range(first, last):
        start = tables.start[t, atom]
        for x in range(3):
            value = tables.offset[t, atom, x]
            for q in range(tables.n_own[t, atom]):
                value += tables.matrix[t, atom, x, q] * u[start + q]
            space.scaled[atom, x] = value


@part
def triangulate(cell, lower, frame):
    """Fill in `lower` and `frame` with ``lower @ frame = cell``; False if the cell is flat or not finite."""
    for row in range(3):
        for x in range(3):
            frame[row, x] = cell[row, x]
        for earlier in range(row):
            value = 0.0
            for x in range(3):
                value += cell[row, x] * frame[earlier, x]
            lower[row, earlier] = value
            for x in range(3):
                frame[row, x] -= value * frame[earlier, x]
        length = math.sqrt(frame[row, 0] ** 2 + frame[row, 1] ** 2 + frame[row, 2] ** 2)
        if not (1e-3 < length < 1e6):
            return False
        lower[row, row] = length
        for x in range(3):
            frame[row, x] /= length
    return True


@part
def add_images(space, i, j, cutoff, n_found):
    """Append the pairs of atom i with the images of atom j; the number of pairs, -1 if atoms coincide."""
    lower, squared = space.lower, cutoff * cutoff
    s0 = space.scaled[j, 0] - space.scaled[i, 0]
    s1 = space.scaled[j, 1] - space.scaled[i, 1]
    s2 = space.scaled[j, 2] - space.scaled[i, 2]
    reach = cutoff / lower[2, 2]
    for k2 in range(math.ceil(-reach - s2), math.floor(reach - s2) + 1):
        z = (s2 + k2) * lower[2, 2]
        in_plane = max(squared - z * z, 0.0)
        middle = -(s2 + k2) * lower[2, 1] / lower[1, 1] - s1
        half = math.sqrt(in_plane) / lower[1, 1]
        for k1 in range(math.ceil(middle - half), math.floor(middle + half) + 1):
            y = (s1 + k1) * lower[1, 1] + (s2 + k2) * lower[2, 1]
            on_line = max(in_plane - y * y, 0.0)
            origin = (s1 + k1) * lower[1, 0] + (s2 + k2) * lower[2, 0] + s0 * lower[0, 0]
            half_line = math.sqrt(on_line)
            first = math.ceil((-half_line - origin) / lower[0, 0])
            for k0 in range(first, math.floor((half_line - origin) / lower[0, 0]) + 1):
                x = origin + k0 * lower[0, 0]
                square = x * x + y * y + z * z
                if square < SAME_PLACE:
                    if i != j:
                        return -1
                    continue
                if n_found < len(space.distances):
                    space.center[n_found], space.neighbor[n_found] = i, j
                    space.vectors[n_found, 0], space.vectors[n_found, 1], space.vectors[n_found, 2] = x, y, z
                    space.distances[n_found] = math.sqrt(square)
                n_found += 1
    return n_found


@part
def is_near(space, i, j, cutoff):
    """Tell whether an image of atom j is closer to atom i, another one, than the cutoff."""
    lower, squared = space.lower, cutoff * cutoff
    a, b, c = lower[0, 0], lower[1, 1], lower[2, 2]
    per_a, per_b, per_c = 1 / a, 1 / b, 1 / c
    s0 = space.scaled[j, 0] - space.scaled[i, 0]
    s1 = space.scaled[j, 1] - space.scaled[i, 1]
    s2 = space.scaled[j, 2] - space.scaled[i, 2]
    reach = cutoff * per_c
    for k2 in range(math.ceil(-reach - s2), math.floor(reach - s2) + 1):
        z = (s2 + k2) * c
        middle, half = -(s2 + k2) * lower[2, 1] * per_b - s1, math.sqrt(max(squared - z * z, 0.0)) * per_b
        for k1 in range(math.ceil(middle - half), math.floor(middle + half) + 1):
            y = (s1 + k1) * b + (s2 + k2) * lower[2, 1]
            x = (s1 + k1) * lower[1, 0] + (s2 + k2) * lower[2, 0] + s0 * a
            x -= math.floor(x * per_a + 0.5) * a  # the nearest on this line
            if x * x + y * y + z * z < squared:
                return True
    return False


@part
def find_pairs(tables, t, space, cutoff):
    """List the pairs up to `cutoff` around the first atom of each orbit; -1 if atoms coincide or there is no room."""
    n_found = 0
    for i in range(tables.n_atoms[t]):
        if tables.orbit_size[t, i] == 0:
            continue
        for j in range(tables.n_atoms[t]):
            n_found = add_images(space, i, j, cutoff, n_found)
            if n_found < 0:
                return -1
    return n_found if n_found <= len(space.distances) else -1


@part
def channel_of(tables, t, i, j):
    """Return the channel of g(r) that two atoms belong to."""
    return tables.channels[tables.species[t, i], tables.species[t, j]]


@part
def shortest_translation(tables, limits):
    """Return the largest of the limits on distances within a species, which every lattice translation has to obey."""
    longest = 0.0
    for kind in range(len(tables.channels)):
        longest = max(longest, limits[tables.channels[kind, kind]])
    return longest


@part
def smear(distance, origin, step, n_grid, sigma, n_side, space):
    """Fill `peak` and `slope` with a normal distribution and its derivative by distance; first and last grid point.

    `n_side` points to either side of the nearest one are set. Values on the even grid follow from one another by two
    multiplications.
    """
    nearest = math.floor((distance - origin) / step + 0.5)
    first, last = max(0, nearest - n_side), min(n_grid - 1, nearest + n_side)
    deviation = origin + first * step - distance
    inverse = 1.0 / (sigma * sigma)
    value = math.exp(-0.5 * deviation * deviation * inverse) / (sigma * math.sqrt(2 * math.pi))
    ratio = math.exp(-(deviation * step + 0.5 * step * step) * inverse)
    change = math.exp(-step * step * inverse)
    for k in range(last - first + 1):
        space.peak[k] = value
        space.slope[k] = value * (deviation + k * step) * inverse
        value *= ratio
        ratio *= change
    return first, last


@part
def add_peaks(tables, t, space, n_pairs, origin, step, sigma, n_side, rdf):
    """Set `rdf` to g(r) of the pairs in `space`, channel after channel."""
    n_channels = tables.pair_counts.shape[1]
    n_grid = len(rdf) // n_channels
    rdf[:] = 0.0
    for pair in range(n_pairs):
        weight = tables.orbit_size[t, space.center[pair]]
        first, last = smear(space.distances[pair], origin, step, n_grid, sigma, n_side, space)
        start = channel_of(tables, t, space.center[pair], space.neighbor[pair]) * n_grid
        channel_rdf = rdf[start : start + n_grid]
        for k in range(last - first + 1):
            channel_rdf[first + k] += weight * space.peak[k]
    volume = space.lower[0, 0] * space.lower[1, 1] * space.lower[2, 2]
    for channel in range(n_channels):
        count, channel_rdf = tables.pair_counts[t, channel], rdf[channel * n_grid : (channel + 1) * n_grid]
        for k in range(n_grid):
            channel_rdf[k] *= volume / (count * 4 * math.pi * (origin + k * step) ** 2)


@part
def room(n_atoms, cutoff, volume_per_atom):
    """Return for how many pairs there must be room: four times as many as a crystal of that density has."""
    width = volume_per_atom ** (1 / 3)
    return int(4 * n_atoms * (4.2 * (cutoff + width) ** 3 / volume_per_atom) + 64)


@compiled
def rdfs(tables, template, cells, coordinates, cutoff, origin, step, n_grid, sigma, n_side):
    """Return g(r) of crystals, shape (n_crystals, n_channels * n_grid); NaN for those that are unsound."""
    result = np.full((len(template), tables.pair_counts.shape[1] * n_grid), np.nan)
    for index in range(len(template)):
        t = template[index]
        n_atoms = tables.n_atoms[t]
        volume = abs(determinant(cells[index])) / n_atoms
        if not volume > 1e-3:
            continue
        space = make_space(n_atoms, room(n_atoms, cutoff, volume), n_grid)
        if place(tables, t, cells[index], coordinates[index], space):
            n_pairs = find_pairs(tables, t, space, cutoff)
            if n_pairs >= 0:
                add_peaks(tables, t, space, n_pairs, origin, step, sigma, n_side, result[index])
    return result


@compiled
def shortest_distances(tables, template, cells, coordinates, cutoff):
    """Return the shortest distance of each channel as far as it is below `cutoff`, else `cutoff`; 0 if unsound."""
    result = np.zeros((len(template), tables.pair_counts.shape[1]))
    for index in range(len(template)):
        t = template[index]
        volume = abs(determinant(cells[index])) / tables.n_atoms[t]
        if not volume > 1e-3:
            continue
        space = make_space(tables.n_atoms[t], room(tables.n_atoms[t], cutoff, volume), 0)
        if place(tables, t, cells[index], coordinates[index], space):
            n_pairs = find_pairs(tables, t, space, cutoff)
            if n_pairs >= 0:
                result[index] = cutoff
                for pair in range(n_pairs):
                    channel = channel_of(tables, t, space.center[pair], space.neighbor[pair])
                    result[index, channel] = min(result[index, channel], space.distances[pair])
    return result
