"""Compiled Levenberg-Marquardt descent of one crystal after another, in Wyckoff coordinates and symmetric strains.

The loss is ``sum_r w (g - g*)^2 / sum_r w (g* - <g*>)^2`` plus squared overlaps of short distances plus a volume term.
g(r) is that of the crystal or of each atom, the mean over whose losses is taken then.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ase_hvae.reconstruct.kernels import (
    channel_of,
    compiled,
    find_pairs,
    make_space,
    multiply,
    part,
    place,
    room,
    smear,
    solve,
)

MAX_MOVE = 0.4  # largest move of an atom in one step; Å
MAX_STRAIN = 0.06  # largest strain in one step
OVERLAP_WEIGHT = 2.0  # of (overlap / min_distance)^2, per atom
VOLUME_WEIGHT = 50.0  # of log(volume / target volume)^2
STRAIN_LENGTH = 4.0  # length that makes strains comparable with moves; Å
MAX_DAMPING = 1e6
CONVERGED = 1e-7  # a step that lowers the loss by less, and by less than a thousandth, is the last


class Goal(NamedTuple):
    """A target at one smearing on an even grid, and what crystals have to obey beside it.

    Attributes
    ----------
    origin, step : float
        First point of the grid and its spacing; Å.
    sigma : float
        Smearing; Å.
    n_side : int
        Grid points to either side of a distance that its smeared peak reaches.
    cutoff : float
        Largest distance of a pair that reaches the grid; Å.
    target : ndarray
        Shape (n_grid,): g(r) on the grid, channel after channel.
    weights : ndarray
        Shape (n_grid,): weights of the squared differences.
    each_atom : bool
        Whether each atom should have the target around it, instead of the crystal on average.
    min_distance : ndarray
        Shape (n_channels,): distances below this are pushed apart; Å.
    volume_per_atom : float
        Å^3.
    free_volume : float
        Deviation of log(volume) that costs nothing.
    """

    origin: float
    step: float
    sigma: float
    n_side: int
    cutoff: float
    target: np.ndarray
    weights: np.ndarray
    each_atom: bool
    min_distance: np.ndarray
    volume_per_atom: float
    free_volume: float


class Model(NamedTuple):
    """Room for g(r) of one crystal and the Gauss-Newton model of its loss in scaled parameters (moves in Å).

    Attributes
    ----------
    rdf, jacobian : ndarray
        Shapes (n_grid,) and (n_parameters, n_grid).
    gradient, hessian : ndarray
        Shapes (n_parameters,) and (n_parameters, n_parameters).
    scales : ndarray
        Shape (n_parameters,): scaled parameters are parameters times these.
    moves : ndarray
        Shape (n_atoms, 3, 3): displacement of an atom by its own free coordinates, [atom, coordinate, direction], in
        the frame of the triangular cell; Å.
    strains : ndarray
        Shape (6, 3, 3): strains in that frame.
    """

    rdf: np.ndarray
    jacobian: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray
    scales: np.ndarray
    moves: np.ndarray
    strains: np.ndarray


@part
def make_model(n_atoms, n_parameters, n_grid):
    """Return room for a crystal with `n_parameters` parameters."""
    return Model(
        np.zeros(n_grid),
        np.zeros((n_parameters, n_grid)),
        np.zeros(n_parameters),
        np.zeros((n_parameters, n_parameters)),
        np.zeros(n_parameters),
        np.zeros((n_atoms, 3, 3)),
        np.zeros((6, 3, 3)),
    )


@part
def turn(strain, frame, turned):
    """Fill in a strain in another orthonormal frame."""
    for x in range(3):
        for y in range(3):
            value = 0.0
            for a in range(3):
                for b in range(3):
                    value += frame[x, a] * strain[a, b] * frame[y, b]
            turned[x, y] = value


@part
def prepare(tables, t, cell, space, model):
    """Fill in moves, strains and scales of a crystal that has been placed."""
    n_free, n_strains = tables.n_free[t], tables.n_strains[t]
    for p in range(len(model.scales)):
        model.scales[p] = 0.0
    for atom in range(tables.n_atoms[t]):
        for q in range(tables.n_own[t, atom]):
            for x in range(3):
                value = 0.0
                for axis in range(x, 3):
                    value += tables.matrix[t, atom, axis, q] * space.lower[axis, x]
                model.moves[atom, q, x] = value
                model.scales[tables.start[t, atom] + q] += value * value
    for p in range(n_free):
        model.scales[p] = math.sqrt(model.scales[p])
    for q in range(n_strains):
        model.scales[n_free + q] = STRAIN_LENGTH
        turn(tables.strains[t, q], space.frame, model.strains[q])


@part
def pair_slopes(tables, t, space, model, pair, columns, slopes):
    """Derivatives of a distance by scaled parameters; their number, with repeats, and the parameters in `columns`."""
    n_found, n_free = 0, tables.n_free[t]
    x, y, z = space.vectors[pair, 0], space.vectors[pair, 1], space.vectors[pair, 2]
    inverse = 1.0 / space.distances[pair]
    i, j = space.center[pair], space.neighbor[pair]
    for atom, sign in ((j, inverse), (i, -inverse)):
        for q in range(tables.n_own[t, atom] if i != j else 0):
            column = tables.start[t, atom] + q
            move = model.moves[atom, q]
            columns[n_found] = column
            slopes[n_found] = sign * (x * move[0] + y * move[1] + z * move[2]) / model.scales[column]
            n_found += 1
    for q in range(tables.n_strains[t]):
        s = model.strains[q]
        squares = s[0, 0] * x * x + s[1, 1] * y * y + s[2, 2] * z * z
        columns[n_found] = n_free + q
        slopes[n_found] = inverse * (squares + 2 * (s[0, 1] * x * y + s[0, 2] * x * z + s[1, 2] * y * z))
        slopes[n_found] /= STRAIN_LENGTH
        n_found += 1
    return n_found


@part
def add_pairs(tables, t, space, first_pair, last_pair, goal, model):
    """Set g(r) and its jacobian, add the overlaps to gradient and Gauss-Newton matrix; the loss of the overlaps."""
    n_channels = tables.pair_counts.shape[1]
    n_points = len(goal.target) // n_channels
    for k in range(len(goal.target)):
        model.rdf[k] = 0.0
    for p in range(len(model.jacobian)):
        for k in range(len(goal.target)):
            model.jacobian[p, k] = 0.0
    rdfs = model.rdf.reshape(n_channels, n_points)
    jacobians = model.jacobian.reshape(len(model.jacobian), n_channels, n_points)
    columns, slopes = np.zeros(12, np.int64), np.zeros(12)
    loss = 0.0
    for pair in range(first_pair, last_pair):
        weight = tables.orbit_size[t, space.center[pair]]
        first, last = smear(space.distances[pair], goal.origin, goal.step, n_points, goal.sigma, goal.n_side, space)
        channel = channel_of(tables, t, space.center[pair], space.neighbor[pair])
        rdf = rdfs[channel]
        n_found = pair_slopes(tables, t, space, model, pair, columns, slopes)
        for k in range(last - first + 1):
            rdf[first + k] += weight * space.peak[k]
        for found in range(n_found):
            row, factor = jacobians[columns[found], channel], weight * slopes[found]
            for k in range(last - first + 1):
                row[first + k] += factor * space.slope[k]
        overlap = goal.min_distance[channel] - space.distances[pair]
        if overlap > 0:
            factor = weight * OVERLAP_WEIGHT / (tables.n_atoms[t] * goal.min_distance[channel] ** 2)
            loss += factor * overlap * overlap
            for a in range(n_found):
                model.gradient[columns[a]] -= factor * overlap * slopes[a]
                for b in range(n_found):
                    model.hessian[columns[a], columns[b]] += factor * slopes[a] * slopes[b]
    return loss


@part
def share_of(tables, t, center, channel, goal):
    """Return which share of a channel's pairs are those of an orbit, of which `center` is an atom; 1 for a crystal."""
    if not goal.each_atom:
        return 1.0
    share = 0.0
    for atom in range(tables.n_atoms[t]):
        if channel_of(tables, t, center, atom) == channel:
            share += tables.orbit_size[t, center] / tables.pair_counts[t, channel]
    return share


@part
def add_residuals(tables, t, space, channel, share, goal, model):
    """Normalise g(r) of a channel and its jacobian, add both to gradient and Gauss-Newton matrix; the loss."""
    n_free, n_strains = tables.n_free[t], tables.n_strains[t]
    n_channels = tables.pair_counts.shape[1]
    n_points = len(goal.target) // n_channels
    rdf = model.rdf.reshape(n_channels, n_points)[channel]
    target = goal.target.reshape(n_channels, n_points)[channel]
    weights = goal.weights.reshape(n_channels, n_points)[channel]
    jacobians = model.jacobian.reshape(len(model.jacobian), n_channels, n_points)
    volume, loss = space.lower[0, 0] * space.lower[1, 1] * space.lower[2, 2], 0.0
    for k in range(n_points):
        distance = goal.origin + k * goal.step
        factor = volume / (share * tables.pair_counts[t, channel] * 4 * math.pi * distance * distance)
        root = math.sqrt(share * weights[k])
        value = rdf[k] * factor
        rdf[k] = (value - target[k]) * root
        loss += rdf[k] * rdf[k]
        for p in range(n_free + n_strains):
            jacobians[p, channel, k] *= factor * root
        for q in range(n_strains):
            trace = model.strains[q, 0, 0] + model.strains[q, 1, 1] + model.strains[q, 2, 2]
            jacobians[n_free + q, channel, k] += trace * value * root / STRAIN_LENGTH
    for p in range(n_free + n_strains):
        row = jacobians[p, channel]
        value = 0.0
        for k in range(n_points):
            value += row[k] * rdf[k]
        model.gradient[p] += value
        for q in range(p + 1):
            other = jacobians[q, channel]
            value = 0.0
            for k in range(n_points):
                value += row[k] * other[k]
            model.hessian[p, q] += value
            if q < p:
                model.hessian[q, p] += value
    return loss


@part
def add_volume(tables, t, space, goal, model):
    """Add the volume term to gradient and Gauss-Newton matrix; its loss."""
    volume = space.lower[0, 0] * space.lower[1, 1] * space.lower[2, 2]
    ratio = math.log(volume / tables.n_atoms[t] / goal.volume_per_atom)
    excess = math.copysign(max(abs(ratio) - goal.free_volume, 0.0), ratio)
    if excess == 0:
        return 0.0
    n_free = tables.n_free[t]
    for q in range(tables.n_strains[t]):
        slope = (model.strains[q, 0, 0] + model.strains[q, 1, 1] + model.strains[q, 2, 2]) / STRAIN_LENGTH
        model.gradient[n_free + q] += VOLUME_WEIGHT * slope * excess
        for p in range(tables.n_strains[t]):
            other = (model.strains[p, 0, 0] + model.strains[p, 1, 1] + model.strains[p, 2, 2]) / STRAIN_LENGTH
            model.hessian[n_free + q, n_free + p] += VOLUME_WEIGHT * slope * other
    return VOLUME_WEIGHT * excess * excess


@part
def linearise(tables, t, cell, u, goal, space, model):
    """Fill the model of a crystal's loss; the loss, NaN if the crystal is unsound (flat, coinciding atoms)."""
    if not place(tables, t, cell, u, space):
        return np.nan
    n_pairs = find_pairs(tables, t, space, goal.cutoff)
    if n_pairs < 0:
        return np.nan
    for p in range(len(model.gradient)):
        model.gradient[p] = 0.0
        for q in range(len(model.gradient)):
            model.hessian[p, q] = 0.0
    prepare(tables, t, cell, space, model)
    loss, last = add_volume(tables, t, space, goal, model), 0
    for center in range(tables.n_atoms[t] if goal.each_atom else 1):
        if tables.orbit_size[t, center] == 0:
            continue
        first = last
        while last < n_pairs and (space.center[last] == center or not goal.each_atom):
            last += 1
        loss += add_pairs(tables, t, space, first, last, goal, model)
        for channel in range(tables.pair_counts.shape[1]):
            share = share_of(tables, t, center, channel, goal)
            if share > 0:
                loss += add_residuals(tables, t, space, channel, share, goal, model)
    return loss


@part
def take_step(tables, t, cell, u, model, step, new_cell, new_u):
    """Apply a step, shortened to the largest move and strain allowed."""
    n_free = tables.n_free[t]
    strain, change, longest = np.zeros((3, 3)), np.zeros((3, 3)), 1.0
    for x in range(3):
        for y in range(3):
            for q in range(tables.n_strains[t]):
                strain[x, y] += tables.strains[t, q, x, y] * (step[n_free + q] / model.scales[n_free + q])
            longest = max(longest, abs(strain[x, y]) / MAX_STRAIN)
    for atom in range(tables.n_atoms[t]):
        square = 0.0
        for x in range(3):
            value = 0.0
            for q in range(tables.n_own[t, atom]):
                column = tables.start[t, atom] + q
                value += model.moves[atom, q, x] * step[column] / model.scales[column]
            square += value * value
        longest = max(longest, math.sqrt(square) / MAX_MOVE)
    for x in range(3):
        for y in range(3):
            square = strain[x, 0] * strain[0, y] + strain[x, 1] * strain[1, y] + strain[x, 2] * strain[2, y]
            change[x, y] = (1.0 if x == y else 0.0) + strain[x, y] / longest + 0.5 * square / longest**2
    multiply(cell, change, new_cell)
    for p in range(n_free):
        new_u[p] = u[p] + step[p] / model.scales[p] / longest


@part
def descend_one(tables, t, cell, u, goal, n_steps, space, model, trial):
    """Take steps that lower the loss, changing `cell` and `u`; the loss, and the number of steps into nowhere."""
    n_parameters = tables.n_free[t] + tables.n_strains[t]
    new_cell, new_u = cell.copy(), u.copy()
    factor, step = np.zeros((n_parameters, n_parameters)), np.zeros(n_parameters)
    loss = linearise(tables, t, cell, u, goal, space, model)
    if not math.isfinite(loss):
        return np.nan, 0
    damping, n_refused = 1e-2, 0
    for _ in range(n_steps):
        after = np.nan
        if solve(model.hessian, model.gradient, damping, factor, step):
            take_step(tables, t, cell, u, model, step, new_cell, new_u)
            after = linearise(tables, t, new_cell, new_u, goal, space, trial)
            n_refused += not math.isfinite(after)
        if after < loss:
            done = loss - after < CONVERGED and loss - after < 1e-3 * loss
            for x in range(3):
                for y in range(3):
                    cell[x, y] = new_cell[x, y]
            for p in range(tables.n_free[t]):
                u[p] = new_u[p]
            loss, model, trial = after, trial, model
            damping = max(damping * 0.3, 1e-6)
            if done:
                break
        else:
            damping *= 5.0
            if damping > MAX_DAMPING:
                break
    return loss, n_refused


@compiled
def descend(tables, template, cells, coordinates, goal, n_steps):
    """Descend from every crystal, changing `cells` and `coordinates`.

    Returns the losses, NaN for crystals that are unsound from the start, and how many steps of each were refused
    because they led to a flat cell, to coinciding atoms or to numbers that are not finite.
    """
    n_crystals, n_grid = len(template), len(goal.target)
    losses, n_refused = np.full(n_crystals, np.nan), np.zeros(n_crystals, np.int64)
    for index in range(n_crystals):
        t = template[index]
        n_atoms, n_parameters = tables.n_atoms[t], tables.n_free[t] + tables.n_strains[t]
        space = make_space(n_atoms, room(n_atoms, goal.cutoff, goal.volume_per_atom), n_grid)
        model, trial = make_model(n_atoms, n_parameters, n_grid), make_model(n_atoms, n_parameters, n_grid)
        losses[index], n_refused[index] = descend_one(
            tables, t, cells[index], coordinates[index], goal, n_steps, space, model, trial
        )
    return losses, n_refused
