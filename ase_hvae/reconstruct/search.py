"""The search for the crystals of one target RDF: propose, screen, steer, accept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii

from ase_hvae.errors import ReconstructionError
from ase_hvae.rdf import RDFSettings
from ase_hvae.reconstruct.accept import distinct, keeps_space_group, pearson_distances
from ase_hvae.reconstruct.propose import Batch, propose
from ase_hvae.reconstruct.screen import Smearing, min_distances, screen
from ase_hvae.reconstruct.steer import Limits, Steered, steer
from ase_hvae.reconstruct.wyckoff import WyckoffPrior

SCREEN_SIGMA = 0.3  # smearing of the screen; Å
PROPOSAL_OVERLAP = 0.75  # a proposal may be this much closer than the limit: steering pushes atoms apart
SCREEN_RMAX = 5.5  # distances that the screen compares; Å
SCREEN_KEEP = 12  # proposals that pass the screen, in units of n_steered
HANDICAP = 0.03  # Pearson distance that a free coordinate is hoped to gain in steering
FIRST_NEIGHBOR = 0.3  # neighbours within the target's shortest distance
PER_TEMPLATE = 6  # most proposals of one space group and set of Wyckoff positions that are steered


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """A crystal whose RDF is the target's.

    Attributes
    ----------
    atoms : Atoms
        Primitive cell of the space group it was steered in (its own symmetry may be higher).
    pearson_distance : float
        Pearson distance, 1 - r, between its g(r) and the target.
    spacegroup : int
        International number of the space group it was steered in.
    wyckoffs : tuple of str
        Wyckoff positions there, as ``8a``.
    loss : float
        Loss at the end of steering.
    """

    atoms: Atoms
    pearson_distance: float
    spacegroup: int
    wyckoffs: tuple[str, ...]
    loss: float


@dataclass(frozen=True, eq=False)
class ReconstructionResult:
    """Crystals of one target, best first, and what became of the proposals.

    Attributes
    ----------
    crystals : tuple of Reconstruction
        Accepted crystals by Pearson distance.
    counts : mapping of str to int
        ``proposed``, ``screened`` (without overlaps), ``steered``, ``finished`` (through all smearings), ``accepted``,
        and why others were not: ``overlapping`` and ``unpromising`` proposals, ``abandoned`` while steering,
        ``non_finite``, ``too_close``, ``wrong_volume``, ``wrong_symmetry``, ``dissimilar``, ``duplicate``.
    """

    crystals: tuple[Reconstruction, ...]
    counts: Mapping[str, int]


def reconstruct(
    target_rdf: np.ndarray,
    volume_per_atom: float,
    *,
    species: str = "Si",
    settings: RDFSettings | None = None,
    natoms: Sequence[int] = tuple(range(1, 9)),
    prior: WyckoffPrior | None = None,
    n_proposals: int = 1500,
    n_steered: int = 32,
    threshold: float = 0.13,
    min_distance: float | None = None,
    volume_tolerance: float = 0.1,
    rng: np.random.Generator,
) -> ReconstructionResult:
    """Find crystals of one element whose g(r) is `target_rdf`.

    Parameters
    ----------
    target_rdf : ndarray
        g(r), shape (n_bins,), on ``settings.grid`` and smeared by ``settings.sigma``.
    volume_per_atom : float
        Å^3.
    species : str
        Chemical symbol.
    settings : RDFSettings, optional
        Grid and smearing of the target; the default settings by default.
    natoms : sequence of int
        Allowed numbers of atoms in the primitive cell.
    prior : WyckoffPrior, optional
        Distribution of space groups and Wyckoff positions; uniform by default.
    n_proposals, n_steered : int
        Random crystals to draw, and how many of them to steer.
    threshold : float
        Largest Pearson distance of an accepted crystal.
    min_distance : float, optional
        Shortest allowed distance; by default see `default_min_distance`; Å.
    volume_tolerance : float
        Allowed relative deviation from `volume_per_atom`.
    rng : numpy Generator
        All randomness comes from it.

    Returns
    -------
    ReconstructionResult
        Possibly without crystals; that is no error.

    Raises
    ------
    ReconstructionError
        If no crystal can meet the request.
    ValueError
        If an argument makes no sense.
    """
    settings = settings or RDFSettings()
    target = _checked_target(target_rdf, settings)
    sizes = _checked_sizes(natoms)
    _check_numbers(volume_per_atom, volume_tolerance, threshold, n_proposals, n_steered)
    if min_distance is None:
        min_distance = default_min_distance(species, target, volume_per_atom, settings)
    elif not min_distance > 0:
        raise ValueError(f"min_distance must be positive, got {min_distance} Å")
    _check_volume(volume_per_atom * (1 + volume_tolerance), min_distance)
    limits = Limits(min_distance, volume_per_atom, volume_tolerance)
    templates = (prior or WyckoffPrior()).draw(sizes, n_proposals, rng)
    batch = propose(templates, 1, volume_per_atom, volume_tolerance, min_distance, rng)
    counts = {"proposed": len(batch)}
    chosen = _choose(batch, target, settings, limits, n_steered, counts)
    if chosen is None:
        return ReconstructionResult((), MappingProxyType(counts | {"accepted": 0}))
    steered = steer(chosen, target, settings, limits, n_kept=n_steered)
    counts["finished"] = len(steered.kept)
    counts["abandoned"] = len(chosen) - len(steered.kept) - steered.n_unsound
    crystals = _accept(steered, target, settings, limits, threshold, species, counts)
    return ReconstructionResult(crystals, MappingProxyType(counts))


def default_min_distance(species: str, target_rdf: np.ndarray, volume_per_atom: float, settings: RDFSettings) -> float:
    """Return the shortest distance to allow in Å: 0.9 of the covalent bond or, if less, of the target's shortest.

    The target's shortest distance is that within which an atom has 0.3 neighbours on average.
    """
    bond = 2 * covalent_radii[_checked_species(species)]
    shells = 4 * np.pi * settings.grid**2 * settings.bin_width / volume_per_atom
    neighbors = np.cumsum(np.clip(target_rdf, 0, None) * shells)
    if neighbors[-1] < FIRST_NEIGHBOR:
        return float(0.9 * bond)
    return float(0.9 * min(bond, settings.grid[np.argmax(neighbors >= FIRST_NEIGHBOR)]))


def _choose(
    batch: Batch, target: np.ndarray, settings: RDFSettings, limits: Limits, n_steered: int, counts: dict[str, int]
) -> Batch | None:
    """Screen: drop overlapping proposals, keep the nearest to the target, few of each template."""
    limit = PROPOSAL_OVERLAP * limits.min_distance
    apart = torch.nonzero(min_distances(batch, limit) >= limit)[:, 0]
    counts |= {"overlapping": len(batch) - len(apart), "screened": len(apart)}
    if len(apart) == 0:
        return None
    batch = batch.select(apart)
    smearing = Smearing(target, settings, SCREEN_SIGMA, rmax=SCREEN_RMAX, device=batch.cells.device)
    distances = screen(batch, smearing)
    handicap = torch.tensor([HANDICAP * min(entry.n_free, 6) for entry in batch.templates], dtype=distances.dtype)
    seen: dict[int, int] = {}
    chosen: list[int] = []
    for index in torch.argsort(distances - handicap, stable=True).tolist():
        key = id(batch.templates[index])
        if seen.setdefault(key, 0) < min(batch.templates[index].n_parameters, PER_TEMPLATE):
            seen[key] += 1
            chosen.append(index)
    chosen = chosen[: SCREEN_KEEP * n_steered]
    counts |= {"unpromising": len(batch) - len(chosen), "steered": len(chosen)}
    return batch.select(torch.tensor(chosen))


def _accept(
    steered: Steered,
    target: np.ndarray,
    settings: RDFSettings,
    limits: Limits,
    threshold: float,
    species: str,
    counts: dict[str, int],
) -> tuple[Reconstruction, ...]:
    """Keep the steered crystals that obey all limits, best first, without near-identical copies."""
    reasons = ("non_finite", "too_close", "wrong_volume", "wrong_symmetry", "dissimilar", "duplicate")
    counts |= dict.fromkeys(reasons, 0) | {"non_finite": steered.n_unsound}
    batch = steered.batch
    shortest = min_distances(batch, limits.min_distance)
    found: list[Reconstruction] = []
    for index, entry in enumerate(batch.templates):
        reason = None
        atoms = batch.atoms(index, species)
        ratio = atoms.get_volume() / len(atoms) / limits.volume_per_atom
        if not bool(steered.finite[index]):
            reason = "non_finite"
        elif float(shortest[index]) < limits.min_distance:
            reason = "too_close"
        elif abs(ratio - 1) > limits.volume_tolerance + 1e-3:
            reason = "wrong_volume"
        elif not keeps_space_group(entry, atoms):
            reason = "wrong_symmetry"
        if reason is not None:
            counts[reason] += 1
            continue
        found.append(Reconstruction(atoms, 2.0, entry.group.number, entry.wyckoffs, float(steered.loss[index])))
    distances = pearson_distances([crystal.atoms for crystal in found], target, settings)
    near = [
        Reconstruction(crystal.atoms, float(distance), crystal.spacegroup, crystal.wyckoffs, crystal.loss)
        for crystal, distance in zip(found, distances, strict=True)
        if distance <= threshold
    ]
    near.sort(key=lambda crystal: crystal.pearson_distance)
    kept = distinct([crystal.atoms for crystal in near], settings)
    counts |= {"dissimilar": len(found) - len(near), "duplicate": len(near) - len(kept), "accepted": len(kept)}
    return tuple(near[index] for index in kept)


def _checked_target(target_rdf: np.ndarray, settings: RDFSettings) -> np.ndarray:
    target = np.asarray(target_rdf, float)
    if target.shape != (settings.n_bins,):
        raise ValueError(f"target RDF has shape {target.shape}, the settings ask for ({settings.n_bins},)")
    if not np.isfinite(target).all():
        raise ValueError("target RDF is not finite")
    if np.ptp(target) == 0:
        raise ValueError(f"target RDF is {target[0]} everywhere; a crystal has peaks")
    return np.clip(target, 0, None)


def _checked_sizes(natoms: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(sorted({int(n) for n in natoms}))
    if not sizes or sizes[0] < 1:
        raise ValueError(f"natoms must be positive whole numbers, got {list(natoms)}")
    return sizes


def _checked_species(species: str) -> int:
    """Return the atomic number; one element only for now."""
    if not isinstance(species, str):
        raise ReconstructionError(
            f"reconstruction is for one species for now, got {species!r}; pass one chemical symbol"
        )
    if atomic_numbers.get(species, 0) < 1:
        raise ReconstructionError(f"{species!r} is no chemical symbol; reconstruction is for one species, as 'Si'")
    return atomic_numbers[species]


def _check_numbers(
    volume_per_atom: float, volume_tolerance: float, threshold: float, n_proposals: int, n_steered: int
) -> None:
    if not (np.isfinite(volume_per_atom) and volume_per_atom > 0):
        raise ValueError(f"volume_per_atom must be positive, got {volume_per_atom} Å^3")
    if not 0 <= volume_tolerance < 1:
        raise ValueError(f"volume_tolerance must be at least 0 and below 1, got {volume_tolerance}")
    if not threshold > 0:
        raise ValueError(f"threshold must be positive, got {threshold}")
    if n_proposals < 1 or n_steered < 1:
        raise ValueError(f"n_proposals and n_steered must be at least 1, got {n_proposals} and {n_steered}")


def _check_volume(volume_per_atom: float, min_distance: float) -> None:
    """Refuse volumes below that of a close packing at the shortest distance."""
    packed = min_distance**3 / np.sqrt(2)
    if volume_per_atom < packed:
        raise ReconstructionError(
            f"at most {volume_per_atom:.2f} Å^3 per atom cannot hold atoms {min_distance:.2f} Å apart (close packing "
            f"needs {packed:.2f}); lower min_distance or raise the volume"
        )
