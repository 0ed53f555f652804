"""Compiled proposals: random cells and free coordinates of a template, screened as they are drawn.

Proposal i takes its random numbers from (seed, i) alone, by SplitMix64 (Steele, Lea & Flood 2014): it is the same
whatever is drawn beside it.
"""

from __future__ import annotations

import math

import numpy as np

from ase_hvae.reconstruct.kernels import (
    add_peaks,
    compiled,
    determinant,
    find_pairs,
    is_apart,
    make_space,
    multiply,
    part,
    place,
    room,
    shortest_translation,
)

MAX_ANGLE = math.pi / 6  # largest deviation of a free cell angle from 90 degrees in a proposal
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_TO_UNIT = 2.0**-53
TRICLINIC, MONOCLINIC, ORTHORHOMBIC, TETRAGONAL, HEXAGONAL = range(5)  # positions in tables.FAMILIES


@part
def uniform(state):
    """Return a number in [0, 1) and advance the state, shape (1,), uint64."""
    state[0] += _GOLDEN
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)) * _TO_UNIT


@part
def start_stream(seed, index, state):
    """Set the state to the stream of a proposal."""
    state[0] = seed
    uniform(state)
    state[0] ^= np.uint64(index) * _MIX_2
    uniform(state)
    state[0] *= _MIX_1


@part
def draw_shares(family, state, shares):
    """Fill in how the freedom of the cell is shared among the axes (sums to 1)."""
    if family in (TETRAGONAL, HEXAGONAL):
        a, b, c = uniform(state), uniform(state), uniform(state)
        shares[2] = max(min(a, b), min(max(a, b), c))  # the middle one
        shares[0] = shares[1] = (1 - shares[2]) / 2
    elif family in (TRICLINIC, MONOCLINIC, ORTHORHOMBIC):
        for axis in range(3):
            shares[axis] = -math.log((1 - uniform(state)) * (1 - uniform(state)))
        total = shares[0] + shares[1] + shares[2]
        for axis in range(3):
            shares[axis] /= total
    else:
        shares[0] = shares[1] = shares[2] = 1 / 3


@part
def draw_shape(family, state, shape):
    """Fill in unit lattice vectors of the conventional cell."""
    for row in range(3):
        for x in range(3):
            shape[row, x] = 1.0 if row == x else 0.0
    if family == HEXAGONAL:
        shape[1, 0], shape[1, 1] = -0.5, math.sqrt(0.75)
    elif family == MONOCLINIC:
        angle = MAX_ANGLE * (2 * uniform(state) - 1)
        shape[2, 0], shape[2, 2] = math.sin(angle), math.cos(angle)
    elif family == TRICLINIC:
        alpha = math.sin(MAX_ANGLE * (2 * uniform(state) - 1))  # their cosines
        beta = math.sin(MAX_ANGLE * (2 * uniform(state) - 1))
        gamma = math.sin(MAX_ANGLE * (2 * uniform(state) - 1))
        shape[1, 0], shape[1, 1] = gamma, math.sqrt(1 - gamma**2)
        shape[2, 0], shape[2, 1] = beta, (alpha - beta * gamma) / shape[1, 1]
        shape[2, 2] = math.sqrt(max(1 - beta**2 - shape[2, 1] ** 2, 0.05))


@part
def draw_cell(tables, t, volume, shortest, state, cell):
    """Fill in a primitive cell; vectors of the conventional one are at least `shortest` long if that is possible."""
    shape, shares = np.empty((3, 3)), np.empty(3)
    draw_shape(tables.family[t], state, shape)
    draw_shares(tables.family[t], state, shares)
    cube = volume / determinant(tables.primitive[t]) / determinant(shape)
    slack = max(math.log(cube / shortest**3), 0.0)  # how much longer than the limit, all axes together
    for axis in range(3):
        length = cube ** (1 / 3) * math.exp(slack * (shares[axis] - 1 / 3))
        for x in range(3):
            shape[axis, x] *= length
    multiply(tables.primitive[t], shape, cell)


@part
def pearson_distance(rdf, goal):
    """Return 1 - Pearson correlation of g(r) with the target under the weights."""
    total = ours = theirs = both = our_mean = their_mean = 0.0
    for k in range(len(rdf)):
        total += goal.weights[k]
        our_mean += goal.weights[k] * rdf[k]
        their_mean += goal.weights[k] * goal.target[k]
    our_mean, their_mean = our_mean / total, their_mean / total
    for k in range(len(rdf)):
        a, b = rdf[k] - our_mean, goal.target[k] - their_mean
        ours += goal.weights[k] * a * a
        theirs += goal.weights[k] * b * b
        both += goal.weights[k] * a * b
    return 1 - both / math.sqrt(max(ours * theirs, 1e-300))


@compiled
def draw(tables, template, seed, first, goal, volume_tolerance, overlap, cells, coordinates):
    """Draw proposals `first`, `first` + 1, ... of the given templates into `cells` and `coordinates`.

    Returns the Pearson distance of each to the goal, shape (n_proposals,); infinite if two atoms are closer than
    `overlap` times the goal's shortest distance of such a pair, which is looked at first.
    """
    n_grid = len(goal.target)
    distances, state, rdf = np.full(len(template), np.inf), np.zeros(1, np.uint64), np.zeros(n_grid)
    n_atoms = tables.orbit_size.shape[1]
    space = make_space(n_atoms, room(n_atoms, goal.cutoff, goal.volume_per_atom), n_grid)
    shortest = shortest_translation(tables, goal.min_distance)
    for index in range(len(template)):
        t = template[index]
        start_stream(seed, first + index, state)
        volume = goal.volume_per_atom * tables.n_atoms[t] * (1 + volume_tolerance * (2 * uniform(state) - 1))
        draw_cell(tables, t, volume, shortest, state, cells[index])
        for p in range(tables.n_free[t]):
            coordinates[index, p] = uniform(state)
        if not place(tables, t, cells[index], coordinates[index], space):
            continue
        if not is_apart(tables, t, space, goal.min_distance, overlap):
            continue
        n_pairs = find_pairs(tables, t, space, goal.cutoff)
        if n_pairs >= 0:
            add_peaks(tables, t, space, n_pairs, goal.origin, goal.step, goal.sigma, goal.n_side, rdf)
            distances[index] = pearson_distance(rdf, goal)
    return distances
