"""Compiled proposals: a random cell, then orbit after orbit where the target's g(r) leaves room for it.

Cells are drawn until one has lattice translations that the target has, too.

An orbit is tried in several places. While others are missing, the place counts where the pairs so far exceed the target
least; the last orbit, and each one when all are taken up and placed anew, goes where g(r) differs least. So the chance
of a good start is a sum over the orbits instead of a product (compare the Liga algorithm, Juhás et al., Nature 440, 655
(2006), which builds clusters atom by atom from distances).

Proposal i takes its random numbers from (seed, i) alone, by SplitMix64 (Steele, Lea & Flood 2014): it is the same
whatever is drawn beside it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ase_hvae.reconstruct.kernels import (
    add_images,
    channel_of,
    compiled,
    determinant,
    is_near,
    make_space,
    multiply,
    part,
    place_atoms,
    room,
    shortest_translation,
    triangulate,
)
from ase_hvae.reconstruct.lattice import ALIKE, SPACING

PLACES = np.array([1, 8, 16, 32])  # places tried for an orbit with that many free coordinates
ROUNDS = 3  # of placing every orbit
VOLUMES = 0.5  # share of the window of volumes that proposals have
ROOM = 0.05  # loss that is as good as none in a random place
EDGE = 0.3  # width of the edge of a first shell; Å
N_SHIFTS = 64  # tabulated places of a peak between two grid points
CELLS = 16  # drawn for a proposal at most
N_SIGMA = 3.0  # half width of a peak in units of sigma
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
def translation_loss(space, unlikely, enough):
    """Return how far a lattice has neighbours by translations that the target has not; `enough` or more beyond that."""
    loss, n_lengths = 0.0, unlikely.shape[1]
    n_found = min(add_images(space, 0, 0, n_lengths * SPACING, 0), len(space.distances))
    for k in range(n_found):
        alike = 0
        for other in range(n_found):
            alike += abs(space.distances[k] - space.distances[other]) < ALIKE
        length = min(int(space.distances[k] / SPACING), n_lengths - 1)
        loss += unlikely[min(alike // 2, len(unlikely)) - 1, length] / alike
        if loss >= enough:
            break
    return loss


@part
def choose_cell(tables, t, goal, volume_tolerance, shortest, unlikely, state, space, cell):
    """Fill in the first random cell whose translations the target has, or the likeliest of many; False if none is."""
    least, trial = np.inf, np.zeros((3, 3))
    for _ in range(CELLS):
        deviation = VOLUMES * volume_tolerance * (2 * uniform(state) - 1)
        draw_cell(tables, t, goal.volume_per_atom * tables.n_atoms[t] * (1 + deviation), shortest, state, trial)
        if not triangulate(trial, space.lower, space.frame) or add_images(space, 0, 0, shortest, 0) != 0:
            continue
        loss = translation_loss(space, unlikely, least)
        if loss < least:
            least = loss
            for row in range(3):
                for x in range(3):
                    cell[row, x] = trial[row, x]
        if least == 0:
            break
    return math.isfinite(least) and triangulate(cell, space.lower, space.frame)


class Draft(NamedTuple):
    """A crystal under construction.

    Attributes
    ----------
    pairs, others, trial, best : ndarray
        Shape (n_grid + n_atoms * n_species,): smeared pairs of all orbits, of all but one, with that one in a new
        place, in its best place; then the neighbours of each orbit's first atom in the first shell, by species.
    norms : ndarray
        Shape (n_points,): g(r) of a channel is its smeared pairs times these and the volume, by its number of pairs.
    peaks : ndarray
        Shape (N_SHIFTS, 2 * n_side + 1): normal distribution, by the place of its centre between two grid points.
    u, best_u : ndarray
        Shapes (n_free,) and (3,): free coordinates, and those of the orbit's best place.
    orbits : ndarray
        Shape (n_atoms,), int64: the first atom of the orbit of each atom.
    strictness : ndarray
        Shape (1,): loss for one neighbour too many or too few at every atom.
    """

    pairs: np.ndarray
    others: np.ndarray
    trial: np.ndarray
    best: np.ndarray
    norms: np.ndarray
    peaks: np.ndarray
    u: np.ndarray
    best_u: np.ndarray
    orbits: np.ndarray
    strictness: np.ndarray


@part
def make_draft(goal, n_channels, n_free, n_atoms, n_species):
    """Return room for a crystal with at most `n_free` free coordinates."""
    n_grid, n_side = len(goal.target), math.ceil(N_SIGMA * goal.sigma / goal.step)
    norms, peaks = np.zeros(n_grid // n_channels), np.zeros((N_SHIFTS, 2 * n_side + 1))
    for k in range(len(norms)):
        norms[k] = 1 / (4 * math.pi * (goal.origin + k * goal.step) ** 2)
    for shift in range(N_SHIFTS):
        for k in range(2 * n_side + 1):
            deviation = (k - n_side + 0.5 - (shift + 0.5) / N_SHIFTS) * goal.step / goal.sigma
            peaks[shift, k] = math.exp(-0.5 * deviation**2) / (goal.sigma * math.sqrt(2 * math.pi))
    rdfs = np.zeros((4, n_grid + n_atoms * n_species))
    orbits = np.zeros(n_atoms, np.int64)
    return Draft(rdfs[0], rdfs[1], rdfs[2], rdfs[3], norms, peaks, np.zeros(n_free), np.zeros(3), orbits, np.zeros(1))


@part
def add_neighbors(tables, t, first, n_placed, sign, space, coordination, draft, counts):
    """Add `sign` times the neighbours that an orbit and other placed atoms have of each other in the first shells.

    Only where they cost anything.
    """
    size, n_species = tables.orbit_size[t, first], len(coordination.least)
    for atom in range(n_placed if draft.strictness[0] > 0 else 0):
        shell, orbit = coordination.shells[channel_of(tables, t, first, atom)], draft.orbits[atom]
        n_found = add_images(space, first, atom, shell + 0.5 * EDGE, 0)
        for pair in range(min(n_found, len(space.distances))):
            inside = min((shell - space.distances[pair]) / EDGE + 0.5, 1.0)
            if inside > 0:
                counts[first * n_species + tables.species[t, atom]] += sign * inside
                if orbit != first:
                    share = sign * size / tables.orbit_size[t, orbit]
                    counts[orbit * n_species + tables.species[t, first]] += inside * share


@part
def place_apart(tables, t, first, last, n_placed, u, limits, space):
    """Place an orbit, atom by atom; False as soon as its first atom is closer to another than the limits allow."""
    place_atoms(tables, t, first, first + 1, u, space)
    for step in range(1, n_placed):
        atom = (first + step) % n_placed  # its own orbit first, which is in the way most often
        if step < last - first:
            place_atoms(tables, t, atom, atom + 1, u, space)
        if is_near(space, first, atom, limits[channel_of(tables, t, first, atom)]):
            return False
    return True


@part
def add_orbit(tables, t, first, n_placed, sign, space, goal, draft, pairs):
    """Add `sign` times the smeared pairs of an orbit with itself and other placed atoms.

    Returns False if atoms coincide.
    """
    size, n_found = tables.orbit_size[t, first], 0
    n_points, n_side = len(draft.norms), (draft.peaks.shape[1] - 1) // 2
    reach = goal.origin + (n_points - 0.5 + n_side) * goal.step
    for atom in range(n_placed):
        n_found = add_images(space, first, atom, reach, n_found)
        if n_found < 0:
            return False
    if n_found > len(space.distances):
        return False
    for pair in range(n_found):
        atom = space.neighbor[pair]
        weight = sign * size * (1.0 if first <= atom < first + size else 2.0)  # other orbits have these pairs, too
        place = (space.distances[pair] - goal.origin) / goal.step + 0.5
        nearest = math.floor(place)
        peak = draft.peaks[int((place - nearest) * N_SHIFTS)]
        start = channel_of(tables, t, first, atom) * n_points
        for k in range(max(0, nearest - n_side), min(n_points - 1, nearest + n_side) + 1):
            pairs[start + k] += weight * peak[k - nearest + n_side]
    return True


@part
def rdf_loss(tables, t, pairs, n_placed, volume, goal, draft):
    """Return the weighted squared difference from the target, of a part of a crystal the excess only."""
    loss, n_points, is_whole = 0.0, len(draft.norms), n_placed == tables.n_atoms[t]
    for channel in range(tables.pair_counts.shape[1]):
        factor = volume / tables.pair_counts[t, channel]
        for point in range(n_points):
            k = channel * n_points + point
            difference = pairs[k] * draft.norms[point] * factor - goal.target[k]
            if is_whole or difference > 0:
                loss += goal.weights[k] * difference * difference
    return loss


@part
def neighbor_loss(tables, t, counts, n_placed, coordination, draft):
    """Return what neighbours too many or, in a whole crystal, too few cost."""
    loss, is_whole, n_species = 0.0, n_placed == tables.n_atoms[t], len(coordination.least)
    for first in range(n_placed if draft.strictness[0] > 0 else 0):
        own = tables.species[t, first]
        share = draft.strictness[0] * tables.orbit_size[t, first] / tables.n_atoms[t]  # 0 but for the first of an orbit
        for other in range(n_species):
            count = counts[first * n_species + other]
            wrong = max(count - coordination.most[own, other], 0.0)
            if is_whole:
                wrong = max(wrong, coordination.least[own, other] - count)
            loss += share * wrong * wrong
    return loss


@part
def place_orbit(tables, t, first, n_placed, loss, volume, goal, state, space, coordination, draft):
    """Place an orbit beside `draft.others` in the best of random places, if that is below `loss`; the loss."""
    n_own, start = tables.n_own[t, first], tables.start[t, first]
    last = first + int(tables.orbit_size[t, first])
    counts = draft.trial[len(goal.target) :]
    for q in range(n_own):
        draft.best_u[q] = draft.u[start + q]
    for _ in range(PLACES[n_own]):
        for q in range(n_own):
            draft.u[start + q] = uniform(state)
        if not place_apart(tables, t, first, last, n_placed, draft.u, goal.min_distance, space):
            continue
        draft.trial[:] = draft.others
        add_neighbors(tables, t, first, n_placed, 1.0, space, coordination, draft, counts)
        trial = neighbor_loss(tables, t, counts, n_placed, coordination, draft)
        if not trial < loss:  # the pairs cannot make up for it
            continue
        if not add_orbit(tables, t, first, n_placed, 1.0, space, goal, draft, draft.trial):
            continue
        trial += rdf_loss(tables, t, draft.trial, n_placed, volume, goal, draft)
        if trial < loss:
            loss = trial
            draft.best[:] = draft.trial
            for q in range(n_own):
                draft.best_u[q] = draft.u[start + q]
            if loss < ROOM:
                break
    for q in range(n_own):
        draft.u[start + q] = draft.best_u[q]
    place_atoms(tables, t, first, last, draft.u, space)
    return loss


@part
def place_orbits(tables, t, volume, goal, state, space, coordination, draft):
    """Place all orbits, then each anew; the loss, infinite if there was no place for one of them."""
    n_atoms, loss, counts = tables.n_atoms[t], np.inf, draft.others[len(goal.target) :]
    draft.pairs[:] = 0.0
    for atom in range(n_atoms):
        draft.orbits[atom] = atom if tables.orbit_size[t, atom] > 0 else draft.orbits[atom - 1]
    for turn in range(ROUNDS):
        first = 0
        while first < n_atoms:
            last = first + int(tables.orbit_size[t, first])
            if turn == 0 or tables.n_own[t, first] > 0:
                draft.others[:] = draft.pairs
                draft.best[:] = draft.pairs
                if turn > 0:
                    add_neighbors(tables, t, first, n_atoms, -1.0, space, coordination, draft, counts)
                    add_orbit(tables, t, first, n_atoms, -1.0, space, goal, draft, draft.others)
                n_placed = last if turn == 0 else n_atoms
                least = np.inf if turn == 0 else loss
                loss = place_orbit(tables, t, first, n_placed, least, volume, goal, state, space, coordination, draft)
                if not math.isfinite(loss):
                    return np.inf
                draft.pairs[:] = draft.best
            first = last
    return loss


@compiled
def draw(tables, template, strictness, seed, first, goal, coordination, unlikely, volume_tolerance, cells, coordinates):
    """Draw proposals `first`, `first` + 1, ... of the given templates into `cells` and `coordinates`.

    A neighbour too many or too few at every atom costs `strictness`, shape (n_proposals,); `unlikely` is the table of
    `ase_hvae.reconstruct.lattice`. Returns the loss of each, shape (n_proposals,): the weighted squared difference of
    its g(r) from the goal's and what its neighbours cost; infinite if two atoms are closer than the goal's shortest
    distance of such a pair.
    """
    losses, state = np.full(len(template), np.inf), np.zeros(1, np.uint64)
    n_atoms = tables.orbit_size.shape[1]
    space = make_space(n_atoms, room(n_atoms, goal.cutoff, goal.volume_per_atom), len(goal.target))
    draft = make_draft(goal, tables.pair_counts.shape[1], coordinates.shape[1], n_atoms, len(coordination.least))
    shortest = shortest_translation(tables, goal.min_distance)
    for index in range(len(template)):
        t, cell = template[index], cells[index]
        start_stream(seed, first + index, state)
        draft.strictness[0] = strictness[index]
        if not choose_cell(tables, t, goal, volume_tolerance, shortest, unlikely, state, space, cell):
            continue
        volume = abs(determinant(cell))
        losses[index] = place_orbits(tables, t, volume, goal, state, space, coordination, draft)
        for q in range(tables.n_free[t]):
            coordinates[index, q] = draft.u[q] if math.isfinite(losses[index]) else 0.0
    return losses
