"""Steer crystals inside their space groups until their RDF is the target's: batched Levenberg-Marquardt.

The free parameters of a crystal are the free Wyckoff coordinates and the symmetric strains that keep its point group.
The loss is ``sum_r w (g - g*)^2 / sum_r w (g* - <g*>)^2`` plus squared overlaps of short distances plus a volume term.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ase_hvae.rdf import RDFSettings
from ase_hvae.reconstruct.propose import Batch
from ase_hvae.reconstruct.screen import Pairs, Smearing, find_pairs

MAX_MOVE = 0.4  # largest move of an atom in one step; Å
MAX_STRAIN = 0.06  # largest strain in one step
OVERLAP_WEIGHT = 2.0  # of (overlap / min_distance)^2, per atom
VOLUME_WEIGHT = 50.0  # of log(volume / target volume)^2
GROUPS = (0, 2, 4, 8, 14, 10**6)  # crystals with numbers of parameters up to these limits are steered together
MAX_BATCH = 256  # crystals steered together
STRAIN_LENGTH = 4.0  # length that makes strains comparable with moves; Å


@dataclass(frozen=True, eq=False)
class Steered:
    """Where steering ended.

    Attributes
    ----------
    batch : Batch
        The crystals; a crystal that met a non-finite number is left where it was last finite.
    loss : Tensor
        Shape (n_batch,): loss at the last smearing.
    finite : Tensor
        Shape (n_batch,), bool: no step met a non-finite number.
    kept : Tensor
        Shape (n_batch,), int64: positions of the crystals in the batch that was passed in.
    n_unsound : int
        Crystals that were not finite before the first step and were left out.
    """

    batch: Batch
    loss: torch.Tensor
    finite: torch.Tensor
    kept: torch.Tensor
    n_unsound: int


@dataclass(frozen=True, eq=False)
class Limits:
    """What crystals have to obey beside the RDF.

    Attributes
    ----------
    min_distance : float
        Distances below this are pushed apart; Å.
    volume_per_atom : float
        Å^3.
    volume_tolerance : float
        Relative deviation of the volume that costs nothing.
    """

    min_distance: float
    volume_per_atom: float
    volume_tolerance: float


@dataclass(frozen=True, eq=False)
class _Problem:
    """Loss of each crystal and its Gauss-Newton model in scaled parameters (moves in Å)."""

    loss: torch.Tensor
    gradient: torch.Tensor
    hessian: torch.Tensor
    scales: torch.Tensor


@dataclass(frozen=True)
class Stage:
    """Steps at one smearing, and how many crystals go on.

    Attributes
    ----------
    sigma : float
        Smearing, at least that of the target; Å.
    rmax : float
        Distances compared; Å.
    n_steps : int
        Levenberg-Marquardt steps.
    keep : float
        Crystals that go on after it, those of lowest loss, in units of the number wanted at the end.
    """

    sigma: float
    rmax: float
    n_steps: int
    keep: float


STAGES = (
    Stage(0.35, 5.0, 3, 6.0),
    Stage(0.35, 6.0, 5, 2.5),
    Stage(0.2, 8.0, 8, 1.5),
    Stage(0.12, 10.0, 8, 1.0),
    Stage(0.0, np.inf, 8, 1.0),
)


def steer(
    batch: Batch,
    target: np.ndarray,
    settings: RDFSettings,
    limits: Limits,
    *,
    n_kept: int | None = None,
    stages: Sequence[Stage] = STAGES,
) -> Steered:
    """Move the crystals of a batch until their RDF is the target's, at smaller and smaller smearing.

    Parameters
    ----------
    batch : Batch
        Crystals to start from.
    target : ndarray
        g(r), shape (n_bins,), on ``settings.grid`` with smearing ``settings.sigma``.
    settings : RDFSettings
        Grid and smearing of `target`; steering ends at this smearing.
    limits : Limits
        Distances and volume.
    n_kept : int, optional
        Crystals that reach the end; by default none is given up.
    stages : sequence of Stage
        Smearings, ranges and steps, one after the other.
    """
    device = batch.cells.device
    sound = torch.isfinite(batch.cells).all(2).all(1) & torch.isfinite(batch.coordinates).all(1)
    kept = torch.nonzero(sound)[:, 0]
    n_unsound = len(batch) - len(kept)
    batch = batch.select(kept)
    finite = torch.ones(len(batch), dtype=torch.bool, device=device)
    loss = torch.zeros(len(batch), dtype=batch.cells.dtype, device=device)
    for stage in stages:
        smearing = Smearing(target, settings, stage.sigma, rmax=stage.rmax, device=device)
        batch, loss, still = _descend_in_groups(batch, smearing, limits, stage.n_steps)
        finite = finite & still
        if n_kept is not None:
            n_best = max(1, round(stage.keep * n_kept))
            best = torch.argsort(loss, stable=True)[:n_best].sort().values
            batch, loss, finite, kept = batch.select(best), loss[best], finite[best], kept[best]
    return Steered(batch, loss, finite, kept, n_unsound)


def _descend_in_groups(
    batch: Batch, smearing: Smearing, limits: Limits, n_steps: int
) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    """Descend with crystals of similar size together, so that padding costs little; see `_descend`."""
    cells, coordinates = batch.cells.clone(), batch.coordinates.clone()
    loss = torch.zeros(len(batch), dtype=cells.dtype, device=cells.device)
    finite = torch.ones(len(batch), dtype=torch.bool, device=cells.device)
    sizes = torch.tensor([entry.n_parameters for entry in batch.templates], dtype=torch.int64, device=cells.device)
    for low, high in itertools.pairwise(GROUPS):
        index = torch.nonzero((sizes > low) & (sizes <= high))[:, 0]
        for part in torch.split(index, MAX_BATCH):
            if len(part):
                moved, loss[part], finite[part] = _descend(batch.select(part), smearing, limits, n_steps)
                cells[part] = moved.cells
                coordinates[part, : moved.coordinates.shape[1]] = moved.coordinates
    return batch.moved(cells, coordinates), loss, finite


def _descend(
    batch: Batch, smearing: Smearing, limits: Limits, n_steps: int
) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    """Take Levenberg-Marquardt steps at one smearing; return crystals, losses and which of them stayed finite."""
    problem = _linearise(batch, smearing, limits)
    finite = torch.isfinite(problem.loss)
    damping = torch.full_like(problem.loss, 1e-2)
    eye = torch.eye(problem.gradient.shape[1], dtype=damping.dtype, device=damping.device)
    for _ in range(n_steps):
        size = torch.diagonal(problem.hessian, dim1=1, dim2=2).mean(1) + 1e-6
        matrix = problem.hessian + (damping * size)[:, None, None] * eye
        step, _ = torch.linalg.solve_ex(matrix, -problem.gradient)
        trial = _step(batch, step / problem.scales)
        after = _linearise(trial, smearing, limits)
        valid = torch.isfinite(after.loss) & torch.isfinite(step).all(1)
        finite = finite & valid
        better = valid & (after.loss < problem.loss)
        damping = torch.where(better, damping * 0.3, damping * 5.0).clamp(1e-6, 1e6)
        batch = batch.moved(
            _choose(better, trial.cells, batch.cells), _choose(better, trial.coordinates, batch.coordinates)
        )
        problem = _Problem(*(_choose(better, getattr(after, k), v) for k, v in vars(problem).items()))
    return batch, problem.loss, finite


def _choose(mask: torch.Tensor, yes: torch.Tensor, no: torch.Tensor) -> torch.Tensor:
    """Pick rows of `yes` where `mask` holds, else of `no`."""
    return torch.where(mask.reshape(-1, *[1] * (yes.ndim - 1)), yes, no)


def _step(batch: Batch, step: torch.Tensor) -> Batch:
    """Apply a step (free coordinates, then strains), shortened to the largest move and strain allowed."""
    n_free = batch.coordinates.shape[1]
    strain = torch.einsum("bq,bqij->bij", step[:, n_free:], batch.strains)
    moves = torch.einsum("bnkp,bp,bkl->bnl", batch.matrix, step[:, :n_free], batch.cells)
    longest = torch.linalg.vector_norm(moves, dim=2).amax(1) / MAX_MOVE
    longest = torch.maximum(longest, strain.abs().amax((1, 2)) / MAX_STRAIN).clamp(min=1.0)
    strain = strain / longest[:, None, None]
    eye = torch.eye(3, dtype=strain.dtype, device=strain.device)
    cells = batch.cells @ (eye + strain + strain @ strain / 2)
    coordinates = batch.coordinates + step[:, :n_free] / longest[:, None]
    sound = torch.isfinite(cells).all((1, 2)) & torch.isfinite(coordinates).all(1)
    return batch.moved(_choose(sound, cells, batch.cells), _choose(sound, coordinates, batch.coordinates))


def _linearise(batch: Batch, smearing: Smearing, limits: Limits) -> _Problem:
    """Compute loss, gradient and Gauss-Newton matrix of every crystal."""
    pairs = find_pairs(batch, smearing.cutoff)
    cartesian = torch.einsum("bnkp,bkl->bnlp", batch.matrix, batch.cells)
    slopes = _distance_slopes(batch, pairs, cartesian)
    weights = batch.center_weights[pairs.crystal, pairs.center][:, None]
    n_free = batch.coordinates.shape[1]
    moves = cartesian.square().sum((1, 2)).sqrt()
    scales = torch.cat([moves, torch.full_like(moves[:, :1], STRAIN_LENGTH).expand(-1, batch.strains.shape[1])], 1)
    scales = torch.where(scales > 0, scales, 1.0)
    counts = smearing.histogram(pairs, torch.cat([weights, weights * slopes], 1), len(batch))
    factor = (batch.volumes / batch.n_atoms**2)[:, None]
    rdf = (counts[:, :, 0] @ smearing.kernel) * factor
    jacobian = torch.einsum("bfp,fk->bkp", counts[:, :, 1:], smearing.slope) * factor[:, :, None]
    traces = torch.diagonal(batch.strains, dim1=2, dim2=3).sum(2)
    jacobian[:, :, n_free:] += rdf[:, :, None] * traces[:, None]
    root = (smearing.weights / smearing.scale).sqrt()
    residual = (rdf - smearing.target) * root
    jacobian = jacobian * root[:, None] / scales[:, None]
    loss = residual.square().sum(1)
    gradient = torch.einsum("bkp,bk->bp", jacobian, residual)
    hessian = jacobian.mT @ jacobian
    terms = _overlaps(batch, pairs, slopes / scales[pairs.crystal], limits), _volume(batch, traces, scales, limits)
    for term in terms:
        loss, gradient, hessian = loss + term[0], gradient + term[1], hessian + term[2]
    return _Problem(loss, gradient, hessian, scales)


def _distance_slopes(batch: Batch, pairs: Pairs, cartesian: torch.Tensor) -> torch.Tensor:
    """Return the derivatives of the distances by free coordinates and strains, shape (n_pairs, n_parameters)."""
    n_atoms = batch.offset.shape[1]
    flat = cartesian.reshape(-1, 3, cartesian.shape[-1])
    base = pairs.crystal * n_atoms
    unit = pairs.vectors / pairs.distances[:, None]
    moves = flat.index_select(0, base + pairs.neighbor) - flat.index_select(0, base + pairs.center)
    by_coordinates = (moves * unit[:, :, None]).sum(1)
    outer = (unit[:, :, None] * pairs.vectors[:, None, :]).reshape(-1, 9)
    basis = batch.strains.reshape(len(batch), -1, 9).index_select(0, pairs.crystal)
    return torch.cat([by_coordinates, (basis @ outer[:, :, None])[:, :, 0]], 1)


def _overlaps(
    batch: Batch, pairs: Pairs, slopes: torch.Tensor, limits: Limits
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Squared overlaps of distances below the limit: loss, gradient, Gauss-Newton matrix."""
    short = torch.nonzero(pairs.distances < limits.min_distance)[:, 0]
    crystal, slopes = pairs.crystal[short], slopes[short]
    weight = batch.center_weights[crystal, pairs.center[short]] * OVERLAP_WEIGHT / batch.n_atoms[crystal]
    root = weight.sqrt() / limits.min_distance
    overlap = (limits.min_distance - pairs.distances[short]) * root
    slopes = -slopes * root[:, None]
    n_batch, n_parameters = len(batch), slopes.shape[1]
    loss = slopes.new_zeros(n_batch).index_add(0, crystal, overlap.square())
    gradient = slopes.new_zeros(n_batch, n_parameters).index_add(0, crystal, slopes * overlap[:, None])
    hessian = slopes.new_zeros(n_batch, n_parameters, n_parameters)
    return loss, gradient, hessian.index_add(0, crystal, slopes[:, :, None] * slopes[:, None, :])


def _volume(
    batch: Batch, traces: torch.Tensor, scales: torch.Tensor, limits: Limits
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Squared deviation of the volume beyond its tolerance: loss, gradient, Gauss-Newton matrix."""
    ratio = torch.log(batch.volumes / batch.n_atoms / limits.volume_per_atom)
    free = 0.9 * math.log1p(limits.volume_tolerance)  # the rest is for the compromise with the RDF
    excess = torch.sign(ratio) * (ratio.abs() - free).clamp(min=0)
    slope = torch.zeros_like(scales)
    slope[:, -traces.shape[1] :] = traces
    slope = torch.where(excess[:, None] != 0, slope / scales, 0.0)
    loss, gradient = VOLUME_WEIGHT * excess.square(), VOLUME_WEIGHT * slope * excess[:, None]
    return loss, gradient, VOLUME_WEIGHT * slope[:, :, None] * slope[:, None, :]
