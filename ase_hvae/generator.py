"""An ASE-style structure generator: unrelaxed crystals with provenance, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ase import Atoms

from ase_hvae import latent
from ase_hvae.candidate import Candidate
from ase_hvae.config import GenerateConfig
from ase_hvae.hvae import HVAE
from ase_hvae.latent import LatentMap
from ase_hvae.replicas import Replica, decode
from ase_hvae.source import CrystalSource


class HVAEGenerator:
    """Source of crystals for ASE scripts and searches.

    It samples the latent space, decodes replicas and reconstructs crystals, all before relaxation. It offers
    ``get_new_candidate()`` as ASE's genetic-algorithm generators do, and iteration.

    Parameters
    ----------
    model : str, optional
        HVAE weights; the shipped silicon weights if left out.
    seed : int
        Seed of all random numbers.
    config : GenerateConfig, optional
        Options to start from.
    **options
        Single options by name, for instance ``natoms="4-8", sampling="posterior"``.

    Raises
    ------
    ConfigError, ModelError
        If an option is wrong or the weights cannot be read.

    Examples
    --------
    >>> from ase_hvae import HVAEGenerator
    >>> generator = HVAEGenerator(seed=1)  # doctest: +SKIP
    >>> atoms = generator.get_new_candidate()  # doctest: +SKIP
    """

    def __init__(
        self, model: str | None = None, *, seed: int = 0, config: GenerateConfig | None = None, **options: Any
    ) -> None:
        self.config = (config or GenerateConfig()).with_options(seed=seed, model=model, **options)
        self.source = CrystalSource.open(self.config)
        self._queue = self._candidates()

    @property
    def model(self) -> HVAE:
        """The weights in use."""
        return self.source.model

    def get_new_candidate(self, parents: object = None) -> Atoms:
        """Next crystal (primitive cell); `parents` is there for ASE's signature and ignored.

        Raises
        ------
        StopIteration
            If the option ``n_replicas`` limits the replicas and they are used up.
        """
        return next(self._queue)

    def __iter__(self) -> Iterator[Atoms]:
        return self

    def __next__(self) -> Atoms:
        return next(self._queue)

    def encode(self, structures: Atoms | Sequence[Atoms]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the posterior q0(z|x) of crystals; each of shape (n, latent_dim)."""
        return latent.encode(self.model, _crystals(structures))

    def decode(self, latents: np.ndarray) -> list[Replica]:
        """Replicas of latents of shape (n, latent_dim)."""
        return decode(self.model, np.atleast_2d(latents))

    def interpolate(self, start: Atoms, end: Atoms, n: int = 11) -> list[Replica]:
        """n replicas on the straight line between the posterior means of two crystals, ends included."""
        means, _ = self.encode([start, end])
        return self.decode(latent.interpolate(means[0], means[1], n))

    def log_likelihood(self, structures: Atoms | Sequence[Atoms], *, n_samples: int = 1000) -> np.ndarray:
        """log p(x) of crystals by importance sampling, shape (n,); nats of standardised features.

        See `ase_hvae.latent.log_likelihood`; it uses the generator's seed.
        """
        seed = self.config.run.seed
        return latent.log_likelihood(self.model, _crystals(structures), n_samples=n_samples, seed=seed)

    def latent_map(self, *, n_per_axis: int = 81, extent: float = 3.0) -> LatentMap:
        """The latent plane with the known crystals; draw it with `ase_hvae.latent.plot_latent_map`."""
        return latent.latent_map(self.model, self.source.known, n_per_axis=n_per_axis, extent=extent)

    def _candidates(self) -> Iterator[Atoms]:
        for replica in self.source.replicas():
            for candidate in self.source.crystals(replica)[0]:
                if candidate.failure is None:
                    yield _with_provenance(candidate)


def _crystals(structures: Atoms | Sequence[Atoms]) -> list[Atoms]:
    return [structures] if isinstance(structures, Atoms) else list(structures)


def _with_provenance(candidate: Candidate) -> Atoms:
    atoms = candidate.atoms.copy()
    atoms.info.update(
        candidate=candidate.index,
        replica=candidate.replica,
        latent=candidate.latent.tolist(),
        spacegroup=candidate.spacegroup_initial,
        pearson_replica=candidate.pearson_initial,
    )
    return atoms
