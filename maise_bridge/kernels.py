"""Compiled inner loops: bonds, triangles of atoms, and what these add to sums over neighbours.

Every bond is stored once, from the lower to the higher of two atom images; images are ordered by lattice translation,
then by number, which no translation changes. Every triangle is stored once as well, as the bonds ij and ik of its
lowest atom and the bond jk. All that angular symmetry functions need is then known per bond, but for the three angles:

    exp(-eta (r_ij² + r_ik² + r_jk²)) fc(r_ij) fc(r_ik) fc(r_jk) = g_eta(r_ij) g_eta(r_ik) g_eta(r_jk)
    cos(theta_jik) = (r_ij² + r_ik² - r_jk²) / (2 r_ij r_ik)

No exponential is left in the loop over triangles, and the energy is a function of the r² of the bonds alone. Sums are
kept in tables of 8 powers (1 +- cos)^zeta, in the order of POWERS, by 8 values of eta. Rows of a table are tuples that
live in registers; inside :func:`superwords` the compiler turns operations on them into vector instructions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np

LANES = 8  # values of eta in a row
POWERS = tuple((zeta, sign) for zeta in (1, 2, 4, 16) for sign in (-1, 1))
_NO_ROW = (0.0,) * LANES

# Reordering and fused operations are allowed; NaN and infinity keep their meaning.
_FAST = {"contract", "reassoc", "nsz", "arcp"}
_njit: Any = numba.njit(cache=True, nogil=True, fastmath=_FAST)
_inline: Any = numba.njit(forceinline=True, fastmath=_FAST)


@contextmanager
def superwords() -> Iterator[None]:
    """Let the compiler join operations on neighbouring numbers, in loops over triangles that are first called inside.

    numba leaves this pass of LLVM out by default; it makes these loops twice as fast.
    """
    config: Any = numba.config  # its attributes come from the environment
    before = config.SLP_VECTORIZE
    config.SLP_VECTORIZE = 1
    try:
        yield
    finally:
        config.SLP_VECTORIZE = before


@_njit
def find_bonds(positions, first, cells, reach, limit, centre, neighbour, shift):
    """Search all images of atoms directly; returns how many bonds there are, and fills the arrays as far as they go.

    `first` (n_structures + 1,) are the numbers of first atoms, `reach` (n_structures, 3) the images to look at, `limit`
    is the square of the cutoff (Å²). Bonds come sorted by centre, then by the image they lead to.
    """
    n_found = 0
    for s in range(len(first) - 1):
        cell = cells[s]
        for i in range(first[s], first[s + 1]):
            for a in range(reach[s, 0] + 1):
                for b in range(-reach[s, 1] if a > 0 else 0, reach[s, 1] + 1):
                    for c in range(-reach[s, 2] if a > 0 or b > 0 else 0, reach[s, 2] + 1):
                        x = a * cell[0, 0] + b * cell[1, 0] + c * cell[2, 0] - positions[i, 0]
                        y = a * cell[0, 1] + b * cell[1, 1] + c * cell[2, 1] - positions[i, 1]
                        z = a * cell[0, 2] + b * cell[1, 2] + c * cell[2, 2] - positions[i, 2]
                        start = first[s] if a > 0 or b > 0 or c > 0 else i + 1
                        for j in range(start, first[s + 1]):
                            dx, dy, dz = positions[j, 0] + x, positions[j, 1] + y, positions[j, 2] + z
                            if dx * dx + dy * dy + dz * dz < limit:
                                if n_found < len(centre):
                                    centre[n_found], neighbour[n_found] = i, j
                                    shift[n_found, 0], shift[n_found, 1], shift[n_found, 2] = a, b, c
                                n_found += 1
    return n_found


@_njit
def find_triangles(first, neighbour, key, offset, second, third, starts):
    """Find the triangles of bonds; returns their number, and fills `second` and `third` as far as they go.

    `first` (n_atoms + 1,): where the bonds of an atom begin; `key` (n_bonds,): place of the image that a bond leads to
    in the order of images; `offset` (n_bonds,): what the bond's translation adds to the keys of bonds from there on.
    Triangles ``starts[ij]`` to ``starts[ij + 1]`` consist of the bond ij, `second` (ik) and `third` (jk).
    """
    n_found = 0
    for i in range(len(first) - 1):
        for ij in range(first[i], first[i + 1]):
            starts[ij] = n_found
            ik, jk = ij + 1, first[neighbour[ij]]
            last_ik, last_jk = first[i + 1], first[neighbour[ij] + 1]
            while ik < last_ik and jk < last_jk:
                difference = key[ik] - (key[jk] + offset[ij])
                if difference == 0:
                    if n_found < len(second):
                        second[n_found], third[n_found] = ik, jk
                    n_found += 1
                ik += difference <= 0
                jk += difference >= 0
    starts[-1] = n_found
    return n_found


@_njit
def bond_vectors(positions, cells, structure, centre, neighbour, shift, vectors, squares):
    """Fill `vectors` (n_bonds, 3) and their `squares` (n_bonds,)."""
    for bond in range(len(centre)):
        i, j = centre[bond], neighbour[bond]
        cell = cells[structure[i]]
        total = 0.0
        for x in range(3):
            value = positions[j, x] - positions[i, x]
            for axis in range(3):
                value += shift[bond, axis] * cell[axis, x]
            vectors[bond, x] = value
            total += value * value
        squares[bond] = total


@_njit
def add_pairs(centre, neighbour, kind, n_species, functions, out):
    """Add pair functions (n_bonds, n_radial) of both ends to `out` (n_atoms, n_species, n_radial), by class."""
    for bond in range(len(centre)):
        i, j = centre[bond], neighbour[bond]
        there, back = (kind[j] - kind[i]) % n_species, (kind[i] - kind[j]) % n_species
        for n in range(functions.shape[1]):
            out[i, there, n] += functions[bond, n]
            out[j, back, n] += functions[bond, n]


@_njit
def differentiate_pairs(centre, neighbour, kind, n_species, derivatives, gradient, slopes):
    """Add dE/d(r²) to `slopes` (n_bonds,), given dE/d(out) of :func:`add_pairs` and its functions' derivatives."""
    for bond in range(len(centre)):
        i, j = centre[bond], neighbour[bond]
        there, back = (kind[j] - kind[i]) % n_species, (kind[i] - kind[j]) % n_species
        for n in range(derivatives.shape[1]):
            slopes[bond] += (gradient[i, there, n] + gradient[j, back, n]) * derivatives[bond, n]


@_inline
def _row(table, row):
    t = table[row]
    return t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7]


@_inline
def _times(p, q):
    return p[0] * q[0], p[1] * q[1], p[2] * q[2], p[3] * q[3], p[4] * q[4], p[5] * q[5], p[6] * q[6], p[7] * q[7]


@_inline
def _sum(p):
    return ((p[0] + p[4]) + (p[1] + p[5])) + ((p[2] + p[6]) + (p[3] + p[7]))


@_inline
def _add_to_row(table, row, factor, p):
    table[row, 0] += factor * p[0]
    table[row, 1] += factor * p[1]
    table[row, 2] += factor * p[2]
    table[row, 3] += factor * p[3]
    table[row, 4] += factor * p[4]
    table[row, 5] += factor * p[5]
    table[row, 6] += factor * p[6]
    table[row, 7] += factor * p[7]


@_inline
def _add_row(p, factor, table, row):
    return (
        p[0] + factor * table[row, 0],
        p[1] + factor * table[row, 1],
        p[2] + factor * table[row, 2],
        p[3] + factor * table[row, 3],
        p[4] + factor * table[row, 4],
        p[5] + factor * table[row, 5],
        p[6] + factor * table[row, 6],
        p[7] + factor * table[row, 7],
    )


@_inline
def _powers(cosine):
    """(1 + lambda cos)^zeta in the order of POWERS."""
    m, p = 1.0 - cosine, 1.0 + cosine
    m2, p2 = m * m, p * p
    m4, p4 = m2 * m2, p2 * p2
    m8, p8 = m4 * m4, p4 * p4
    return m, p, m2, p2, m4, p4, m8 * m8, p8 * p8


@_inline
def _power_slopes(powers):
    """Derivatives of :func:`_powers` by the cosine."""
    m, p, m2, p2, m4, p4 = powers[0], powers[1], powers[2], powers[3], powers[4], powers[5]
    m3, p3 = m * m2, p * p2
    m15, p15 = m4 * m4 * m4 * m3, p4 * p4 * p4 * p3
    return -1.0, 1.0, -2.0 * m, 2.0 * p, -4.0 * m3, 4.0 * p3, -16.0 * m15, 16.0 * p15


@_inline
def _add_outer(table, row, powers, p):
    """Add powers (x) p to the table that begins at `row`."""
    _add_to_row(table, row, powers[0], p)
    _add_to_row(table, row + 1, powers[1], p)
    _add_to_row(table, row + 2, powers[2], p)
    _add_to_row(table, row + 3, powers[3], p)
    _add_to_row(table, row + 4, powers[4], p)
    _add_to_row(table, row + 5, powers[5], p)
    _add_to_row(table, row + 6, powers[6], p)
    _add_to_row(table, row + 7, powers[7], p)


@_inline
def _contract(p, powers, table, row):
    """Return p + powers @ the table that begins at `row`."""
    p = _add_row(p, powers[0], table, row)
    p = _add_row(p, powers[1], table, row + 1)
    p = _add_row(p, powers[2], table, row + 2)
    p = _add_row(p, powers[3], table, row + 3)
    p = _add_row(p, powers[4], table, row + 4)
    p = _add_row(p, powers[5], table, row + 5)
    p = _add_row(p, powers[6], table, row + 6)
    return _add_row(p, powers[7], table, row + 7)


@_njit
def add_triangles(centre, neighbour, kind, tables, starts, second, third, squares, inverse, near, radial, out):
    """Add the sums of g g g (1 + lambda cos)^zeta over the triangles of every atom to `out`.

    `radial` (n_bonds, LANES) is g and `inverse` 1/r; triangles count whose bonds are all `near`. ``tables[a, b, c]`` is
    the number of the table, among the `n_tables` of a centre of species a, for neighbours of species b and c; `out`
    (n_atoms n_tables len(POWERS), LANES) holds all tables below each other.
    """
    height = len(out) // len(kind)
    for ij in range(len(centre)):
        if not near[ij]:
            continue
        i, j = centre[ij], neighbour[ij]
        for t in range(starts[ij], starts[ij + 1]):
            ik, jk = second[t], third[t]
            if not (near[ik] and near[jk]):
                continue
            k = neighbour[ik]
            u, v, w = squares[ij], squares[ik], squares[jk]
            a, b, c = inverse[ij], inverse[ik], inverse[jk]
            g = _times(_times(_row(radial, ij), _row(radial, ik)), _row(radial, jk))
            at_i, at_j, at_k = _places(i, j, k, kind, tables, height)
            _add_outer(out, at_i, _powers(0.5 * (u + v - w) * a * b), g)
            _add_outer(out, at_j, _powers(0.5 * (u + w - v) * a * c), g)
            _add_outer(out, at_k, _powers(0.5 * (v + w - u) * b * c), g)


@_inline
def _places(i, j, k, kind, tables, height):
    """First rows of the tables that a triangle belongs to at its three corners."""
    x, y, z = kind[i], kind[j], kind[k]
    return i * height + 8 * tables[x, y, z], j * height + 8 * tables[y, x, z], k * height + 8 * tables[z, x, y]


@_njit
def differentiate_triangles(
    centre,
    neighbour,
    kind,
    tables,
    starts,
    second,
    third,
    squares,
    inverse,
    near,
    radial,
    etas,
    damping,
    gradient,
    slopes,
):
    """Add dE/d(r²) to `slopes` (n_bonds,), given `gradient`, dE/d(out) of :func:`add_triangles`.

    `etas` (1, LANES) in 1/Å²; `damping` (n_bonds,) is d ln fc / d r² in 1/Å².
    """
    height = len(gradient) // len(kind)
    eta = _row(etas, 0)
    for ij in range(len(centre)):
        if not near[ij]:
            continue
        i, j = centre[ij], neighbour[ij]
        for t in range(starts[ij], starts[ij + 1]):
            ik, jk = second[t], third[t]
            if not (near[ik] and near[jk]):
                continue
            k = neighbour[ik]
            u, v, w = squares[ij], squares[ik], squares[jk]
            a, b, c = inverse[ij], inverse[ik], inverse[jk]
            g = _times(_times(_row(radial, ij), _row(radial, ik)), _row(radial, jk))
            at_i, at_j, at_k = _places(i, j, k, kind, tables, height)
            cos_i, cos_j, cos_k = 0.5 * (u + v - w) * a * b, 0.5 * (u + w - v) * a * c, 0.5 * (v + w - u) * b * c
            powers = _powers(cos_i)
            total = _contract(_NO_ROW, powers, gradient, at_i)
            turn_i = 0.5 * _sum(_times(_contract(_NO_ROW, _power_slopes(powers), gradient, at_i), g))
            powers = _powers(cos_j)
            total = _contract(total, powers, gradient, at_j)
            turn_j = 0.5 * _sum(_times(_contract(_NO_ROW, _power_slopes(powers), gradient, at_j), g))
            powers = _powers(cos_k)
            total = _contract(total, powers, gradient, at_k)
            turn_k = 0.5 * _sum(_times(_contract(_NO_ROW, _power_slopes(powers), gradient, at_k), g))
            share = _times(total, g)
            weight, stretch = _sum(share), _sum(_times(share, eta))
            # dE/dcos at a corner pulls its two bonds and pushes the opposite one
            pull_i, pull_j, pull_k = turn_i * a * b, turn_j * a * c, turn_k * b * c
            bend_i, bend_j, bend_k = turn_i * cos_i, turn_j * cos_j, turn_k * cos_k
            slopes[ij] += weight * damping[ij] - stretch + pull_i + pull_j - pull_k - (bend_i + bend_j) * a * a
            slopes[ik] += weight * damping[ik] - stretch + pull_i + pull_k - pull_j - (bend_i + bend_k) * b * b
            slopes[jk] += weight * damping[jk] - stretch + pull_j + pull_k - pull_i - (bend_j + bend_k) * c * c


@_njit
def collect(centre, neighbour, structure, vectors, slopes, gradient, virials):
    """Add dE/d(positions) (n_atoms, 3) and dE/d(strain) (n_structures, 3, 3), given dE/d(r²) of the bonds."""
    for bond in range(len(centre)):
        i, j = centre[bond], neighbour[bond]
        s = structure[i]
        for x in range(3):
            along = 2.0 * slopes[bond] * vectors[bond, x]
            if i != j:
                gradient[i, x] -= along
                gradient[j, x] += along
            for y in range(3):
                virials[s, x, y] += along * vectors[bond, y]


@_njit
def add_product(signals, matrix, out):
    """Add signals (n, n_in) @ matrix.T to `out` (n, n_out), for matrix (n_out, n_in); each row without the others.

    BLAS sums in an order that depends on how many rows there are; here an atom's energy is the same in every batch.
    """
    for n in range(signals.shape[0]):
        for m in range(matrix.shape[0]):
            total = 0.0
            for i in range(matrix.shape[1]):
                total += matrix[m, i] * signals[n, i]
            out[n, m] += total


@_njit
def add_transposed_product(gradients, matrix, out):
    """Add gradients (n, n_out) @ matrix to `out` (n, n_in), for matrix (n_out, n_in); each row without the others."""
    for n in range(gradients.shape[0]):
        for m in range(matrix.shape[0]):
            factor = gradients[n, m]
            for i in range(matrix.shape[1]):
                out[n, i] += factor * matrix[m, i]


def fits(angular: np.ndarray) -> bool:
    """Whether the rows eta, zeta, lambda of a basis have a place each in the tables."""
    functions = {tuple(row) for row in angular.tolist()}
    pairs = {(zeta, sign) for _, zeta, sign in functions}
    return pairs <= set(POWERS) and len(np.unique(angular[:, 0])) <= LANES and len(functions) == len(angular)
