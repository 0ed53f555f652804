"""The search for the crystals of one target RDF: propose, screen, steer, accept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii

from ase_hvae.errors import ReconstructionError
from ase_hvae.rdf import RDFSettings
from ase_hvae.reconstruct.accept import distinct, keeps_space_group, pearson_distances
from ase_hvae.reconstruct.composition import Composition
from ase_hvae.reconstruct.coordination import first_shells
from ase_hvae.reconstruct.goal import Limits, Target
from ase_hvae.reconstruct.lattice import unlikely_translations
from ase_hvae.reconstruct.prior import WyckoffPrior
from ase_hvae.reconstruct.propose import propose
from ase_hvae.reconstruct.screen import choose, exact_rdfs, min_distances
from ase_hvae.reconstruct.steer import Steered, steer
from ase_hvae.reconstruct.wyckoff import Template

SCREEN_SIGMA = 0.3  # smearing of the screen; Å
SCREEN_RMAX = 5.5  # distances that the screen compares; Å
FIRST_NEIGHBOR = 0.3  # neighbours within the target's shortest distance
ENLARGED = 1e-3  # what the volume may exceed its tolerance by


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
        Wyckoff positions there, as ``8a``, of several species with their symbols, as ``4a Na``.
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
        ``non_finite``, ``too_close``, ``wrong_volume``, ``wrong_symmetry``, ``dissimilar``, ``duplicate``; beside them
        ``refused_steps`` of steering that led to no sound crystal.
    """

    crystals: tuple[Reconstruction, ...]
    counts: Mapping[str, int]


def reconstruct(
    target_rdf: np.ndarray,
    volume_per_atom: float,
    *,
    composition: str = "Si",
    settings: RDFSettings | None = None,
    natoms: Sequence[int] = tuple(range(1, 9)),
    prior: WyckoffPrior | None = None,
    n_proposals: int = 1000,
    n_steered: int = 32,
    threshold: float = 0.13,
    min_distance: float | Sequence[float] | None = None,
    volume_tolerance: float = 0.1,
    rng: np.random.Generator,
) -> ReconstructionResult:
    """Find crystals of one composition whose g(r) is `target_rdf`.

    Parameters
    ----------
    target_rdf : ndarray
        g(r), shape (n_bins,), on ``settings.grid`` and smeared by ``settings.sigma``; with several species a channel
        for each pair of them, (n_channels, n_bins), in the order of `ase_hvae.rdf.channel_pairs`.
    volume_per_atom : float
        Å^3.
    composition : str
        Chemical formula, as ``Si`` or ``SrTiO3``.
    settings : RDFSettings, optional
        Grid and smearing of the target; the default settings by default.
    natoms : sequence of int
        Allowed numbers of atoms in the primitive cell; those that hold no whole formula unit are left out.
    prior : WyckoffPrior, optional
        Distribution of space groups and Wyckoff positions; that of crystal prototypes by default.
    n_proposals, n_steered : int
        Crystals to build, and how many to steer to the end. More than 8 atoms in the primitive cell call for ten times
        as many proposals or more.
    threshold : float
        Largest Pearson distance of an accepted crystal, over the joined channels.
    min_distance : float or sequence of float, optional
        Shortest allowed distance, of all pairs or of each channel; by default see `default_min_distances`; Å.
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
    formula = Composition.parse(composition)
    rdf = _checked_target(target_rdf, formula, settings)
    sizes = _checked_sizes(natoms)
    _check_numbers(volume_per_atom, volume_tolerance, threshold, n_proposals, n_steered)
    if min_distance is None:
        distances = default_min_distances(formula, rdf, volume_per_atom, settings)
    else:
        distances = _checked_distances(min_distance, formula)
    check_volume(volume_per_atom * (1 + volume_tolerance), float(distances.min()))
    limits = Limits(distances, volume_per_atom, volume_tolerance)
    target = Target(rdf, settings, limits)
    templates = (prior or WyckoffPrior()).draw(sizes, rng, formula)
    steered, counts = _search(target, formula, templates, n_proposals, n_steered, rng)
    crystals = _accept(steered, target, threshold, formula.species, counts)
    return ReconstructionResult(crystals, MappingProxyType(counts))


def default_min_distances(
    composition: Composition, target_rdf: np.ndarray, volume_per_atom: float, settings: RDFSettings
) -> np.ndarray:
    """Return the shortest distance to allow in each channel, shape (n_channels,); Å.

    It is 0.9 of the covalent bond or, if less, of the target's shortest distance, that within which an atom of the
    scarcer species of the pair has 0.3 neighbours of the other on average.
    """
    shells = settings.shell_volumes / volume_per_atom
    limits = []
    for pair, rdf in zip(composition.channels, np.atleast_2d(target_rdf), strict=True):
        bond = sum(covalent_radii[atomic_numbers[name]] for name in pair)
        share = max(composition.fractions[name] for name in pair)
        neighbors = np.cumsum(np.clip(rdf, 0, None) * shells * share)
        if neighbors[-1] >= FIRST_NEIGHBOR:
            bond = min(bond, settings.grid[np.argmax(neighbors >= FIRST_NEIGHBOR)])
        limits.append(0.9 * bond)
    return np.array(limits)


def _search(
    target: Target,
    composition: Composition,
    templates: Iterator[Template],
    n_proposals: int,
    n_steered: int,
    rng: np.random.Generator,
) -> tuple[Steered, dict[str, int]]:
    """Propose, screen and steer; crystals at the end of steering and what became of the others."""
    rough = target.goal(sigma=SCREEN_SIGMA, rmax=SCREEN_RMAX)
    hints = first_shells(target, composition), unlikely_translations(target, composition)
    proposals, losses = propose(templates, n_proposals, rough, *hints, target.limits.volume_tolerance, rng)
    chosen = choose(proposals, losses)
    n_screened = int(np.isfinite(losses).sum())
    steered = steer(proposals.select(chosen), target, n_kept=n_steered)
    counts = {
        "proposed": n_proposals,
        "overlapping": n_proposals - n_screened,
        "screened": n_screened,
        "unpromising": n_screened - len(chosen),
        "steered": len(chosen),
        "finished": len(steered.kept),
        "non_finite": steered.n_unsound,
        "refused_steps": steered.n_refused,
    }
    counts["abandoned"] = len(chosen) - counts["finished"] - counts["non_finite"]
    return steered, counts


def _accept(
    steered: Steered, target: Target, threshold: float, species: Sequence[str], counts: dict[str, int]
) -> tuple[Reconstruction, ...]:
    """Keep the steered crystals that obey all limits, best first, without near-identical copies."""
    counts |= dict.fromkeys(("too_close", "wrong_volume", "wrong_symmetry", "dissimilar"), 0)
    crystals, limits = steered.crystals, target.limits
    shortest = min_distances(crystals, float(np.max(limits.min_distance)))
    too_close = np.any(shortest < limits.min_distance, axis=1)
    ratios = crystals.volumes_per_atom / limits.volume_per_atom
    distances = pearson_distances(crystals, target.rdf, target.settings)
    near: list[int] = []
    for index in np.argsort(distances, kind="stable"):
        reason = None
        if too_close[index]:
            reason = "too_close"
        elif abs(ratios[index] - 1) > limits.volume_tolerance + ENLARGED:
            reason = "wrong_volume"
        elif not distances[index] <= threshold:
            reason = "dissimilar"
        elif not keeps_space_group(crystals.entry(index), crystals.atoms(index, species)):
            reason = "wrong_symmetry"
        if reason is None:
            near.append(int(index))
        else:
            counts[reason] += 1
    structures = [crystals.atoms(index, species) for index in near]
    kept = distinct(structures, exact_rdfs(crystals.select(np.array(near, dtype=np.int64)), target.settings))
    counts |= {"duplicate": len(near) - len(kept), "accepted": len(kept)}
    found = [(structures[k], near[k], crystals.entry(near[k])) for k in kept]
    return tuple(
        Reconstruction(
            atoms,
            float(distances[index]),
            entry.group.number,
            entry.wyckoffs(species),
            float(steered.loss[index]),
        )
        for atoms, index, entry in found
    )


def _checked_target(target_rdf: np.ndarray, composition: Composition, settings: RDFSettings) -> np.ndarray:
    target, n_channels = np.asarray(target_rdf, float), len(composition.channels)
    shape = (n_channels, settings.n_bins) if n_channels > 1 else (settings.n_bins,)
    if target.shape != shape:
        raise ValueError(f"target RDF has shape {target.shape}, settings and composition {composition} ask for {shape}")
    if not np.isfinite(target).all():
        raise ValueError("target RDF is not finite")
    if np.ptp(target) == 0:
        raise ValueError(f"target RDF is {target.flat[0]} everywhere; a crystal has peaks")
    return np.clip(target, 0, None)


def _checked_sizes(natoms: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(sorted({int(n) for n in natoms}))
    if not sizes or sizes[0] < 1:
        raise ValueError(f"natoms must be positive whole numbers, got {list(natoms)}")
    return sizes


def _checked_distances(min_distance: float | Sequence[float], composition: Composition) -> np.ndarray:
    """Return the shortest allowed distance of each channel."""
    distances, n_channels = np.atleast_1d(np.asarray(min_distance, float)), len(composition.channels)
    if not (distances > 0).all():
        raise ValueError(f"min_distance must be positive, got {min_distance} Å")
    if distances.shape not in ((1,), (n_channels,)):
        pairs = ", ".join("-".join(pair) for pair in composition.channels)
        raise ValueError(f"min_distance must be one number or {n_channels}, for {pairs}; got {min_distance}")
    return np.broadcast_to(distances, n_channels)


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


def check_volume(volume_per_atom: float, min_distance: float) -> None:
    """Refuse volumes below that of a close packing at the shortest distance.

    Parameters
    ----------
    volume_per_atom : float
        Largest allowed; Å^3.
    min_distance : float
        Å.

    Raises
    ------
    ReconstructionError
        If no crystal has both.
    """
    packed = min_distance**3 / np.sqrt(2)
    if volume_per_atom < packed:
        raise ReconstructionError(
            f"at most {volume_per_atom:.2f} Å^3 per atom cannot hold atoms {min_distance:.2f} Å apart (close packing "
            f"needs {packed:.2f}); lower min_distance or raise the volume"
        )
