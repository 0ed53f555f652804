"""A candidate crystal with everything that is known of it and where it comes from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from ase import Atoms

Status = Literal["pending", "ranked", "duplicate", "failed"]


@dataclass(frozen=True, eq=False)
class Candidate:
    """One crystal on its way through the funnel; every stage returns a changed copy.

    Attributes
    ----------
    index : int
        Number of the candidate in its run; it depends on the seed only, not on order or restarts.
    atoms : Atoms
        The crystal as the last finished stage left it (primitive cell).
    status : str
        ``pending`` while stages remain, then ``ranked``, ``duplicate`` or ``failed``.
    stage : str
        Last stage reached: reconstruct, symmetrize, relax, compare, phonons, elasticity or rank.
    parent : int or None
        Index of the unstable candidate whose soft mode leads here; None for a reconstructed crystal. A child has the
        replica, latent and target of its parent, and as initial space group that of its parent.
    depth : int
        How many soft modes were followed; 0 for a reconstructed crystal.
    latent : np.ndarray
        Latent vector of the replica; shape (latent_dim,).
    target_rdf : np.ndarray
        g(r) of the replica that the crystal was steered to; shape (n_bins,).
    pearson_initial : float
        Pearson correlation with the replica before relaxation.
    spacegroup_initial, spacegroup : int or None
        International number before and after relaxation.
    energy, energy_initial : float or None
        Total energy of the relaxed and of the unrelaxed cell; eV.
    forces, stress : np.ndarray or None
        At the relaxed structure; (n_atoms, 3) in eV/Å and (6,) in eV/Å³ (ASE sign and order).
    energy_above : float or None
        Energy above the reference crystal by the same calculator; eV/atom.
    rdf : np.ndarray or None
        g(r) of the relaxed crystal; shape (n_bins,).
    pearson_replica, pearson_known : float or None
        Correlation of the relaxed crystal with its replica and with the most similar known crystal.
    nearest_known, known : str or None
        Name of that crystal; name of the known crystal that it is, or ``new``.
    duplicate_of : int or None
        Index of the kept candidate that is the same crystal.
    frequencies : np.ndarray or None
        Phonon frequencies on the mesh; THz, imaginary ones negative; shape (n_q, n_bands).
    stable : bool or None
        Phonon verdict; None if not checked.
    zero_point_energy, harmonic_free_energy : float or None
        Of the phonons of a stable crystal, the second at the temperature asked for; eV/atom.
    phonon_failure, child_failure, elastic_failure : str or None
        Why there are no phonons, no child of an unstable crystal or no elastic tensor; the candidate stays.
    mechanically_stable : bool or None
        Whether the elastic tensor is positive definite (Born's criteria); None if not checked.
    elastic_tensor : np.ndarray or None
        In the axes of ``atoms``, Voigt order xx yy zz yz xz xy; eV/Å³; shape (6, 6).
    bulk_modulus, shear_modulus : float or None
        Hill averages of a mechanically stable crystal; eV/Å³.
    failure : str or None
        Why the candidate left the funnel.
    """

    index: int
    replica: int
    atoms: Atoms
    latent: np.ndarray
    target_rdf: np.ndarray
    pearson_initial: float
    spacegroup_initial: int
    status: Status = "pending"
    stage: str = "reconstruct"
    parent: int | None = None
    depth: int = 0
    spacegroup: int | None = None
    symbol_initial: str | None = None
    symbol: str | None = None
    energy_initial: float | None = None
    energy: float | None = None
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None
    n_steps: int | None = None
    energy_above: float | None = None
    rdf: np.ndarray | None = None
    pearson_replica: float | None = None
    pearson_known: float | None = None
    nearest_known: str | None = None
    known: str | None = None
    duplicate_of: int | None = None
    extrapolation: float | None = None
    frequencies: np.ndarray | None = None
    min_frequency: float | None = None
    stable: bool | None = None
    phonon_failure: str | None = None
    zero_point_energy: float | None = None
    harmonic_free_energy: float | None = None
    child_failure: str | None = None
    mechanically_stable: bool | None = None
    elastic_tensor: np.ndarray | None = None
    bulk_modulus: float | None = None
    shear_modulus: float | None = None
    elastic_failure: str | None = None
    failure: str | None = None

    def evolve(self, **changes: Any) -> Candidate:
        """Copy with some attributes replaced."""
        return dataclasses.replace(self, **changes)

    def failed(self, stage: str, reason: object) -> Candidate:
        """Copy that has left the funnel at `stage`."""
        return self.evolve(status="failed", stage=stage, failure=" ".join(str(reason).split()))

    def is_within(self, window: float) -> bool:
        """Whether the energy above the reference is known and at most `window`; eV/atom."""
        return self.energy_above is not None and self.energy_above <= window

    @property
    def energy_per_atom(self) -> float:
        """Energy of the relaxed crystal; eV/atom."""
        assert self.energy is not None
        return self.energy / len(self.atoms)

    @property
    def density(self) -> float:
        """Mass density; g/cm³."""
        return float(self.atoms.get_masses().sum() / self.atoms.get_volume() * 1.66053906660)

    @property
    def has_phonons(self) -> bool:
        """Whether phonons were tried."""
        return self.stable is not None or self.phonon_failure is not None

    @property
    def has_elasticity(self) -> bool:
        """Whether the elastic tensor was tried."""
        return self.mechanically_stable is not None or self.elastic_failure is not None

    @property
    def verdict(self) -> str:
        """Phonon verdict in words."""
        if self.phonon_failure is not None:
            return "failed"
        if self.stable is None:
            return "not checked"
        return "stable" if self.stable else f"unstable ({self.min_frequency:.1f} THz)"
