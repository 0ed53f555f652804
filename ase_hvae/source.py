"""Unrelaxed crystals from the trained model: latents, replicas, reconstruction, symmetry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.db.core import convert_str_to_int_float_bool_or_str

from ase_hvae import sampling
from ase_hvae.candidate import Candidate
from ase_hvae.config import GenerateConfig, parse_natoms, parse_spacegroups
from ase_hvae.data import load_known
from ase_hvae.errors import ConfigError, ReconstructionError, SymmetryError
from ase_hvae.hvae import HVAE, load_model
from ase_hvae.rdf import RDFSettings
from ase_hvae.reconstruct import Composition, WyckoffPrior, check_volume, reconstruct
from ase_hvae.replicas import Replica, decode
from ase_hvae.structures import read_structures
from ase_hvae.symmetry import symmetrize

SAMPLING_STREAM, RECONSTRUCT_STREAM, CHILD_STREAM = 1, 2, 3  # first words of the spawn keys of random streams
REPLICAS_PER_CANDIDATE = 4  # replicas decoded at most per wanted candidate, unless n_replicas says otherwise


@dataclass(frozen=True, eq=False)
class CrystalSource:
    """Everything between the options of a run and its unrelaxed candidates.

    Attributes
    ----------
    config : GenerateConfig
    model : HVAE
        The trained weights.
    composition : Composition
        Of the crystals.
    settings : RDFSettings
        Grid and smearing of the RDFs that the weights know.
    known : list of Atoms
        Known crystals, each with ``info['name']``.
    prior : WyckoffPrior
        Space groups and Wyckoff positions to propose.
    """

    config: GenerateConfig
    model: HVAE
    composition: Composition
    settings: RDFSettings
    known: list[Atoms]
    prior: WyckoffPrior

    @classmethod
    def open(cls, config: GenerateConfig) -> CrystalSource:
        """Load weights and known crystals.

        Raises
        ------
        ConfigError, ModelError, StructureError
            If the weights or crystals cannot be read, or do not fit each other or the options.
        ReconstructionError
            If no crystal has the numbers of atoms, space groups, volume and distances that the options ask for.
        """
        model = load_model(config.run.model)
        composition = Composition.parse(config.reconstruct.composition or model.card["composition"])
        if list(composition.species) != model.card["species"]:
            raise ConfigError(
                f"composition = {config.reconstruct.composition!r}, but the HVAE weights know crystals of "
                f"{', '.join(model.card['species'])}; ask for these elements, all of them, or train other weights"
            )
        known = known_crystals(config.run.known, str(composition))
        # Of the crystals trained on, not of the known ones: what was held out must stay unknown to the proposals too.
        sites = ((entry["spacegroup"], entry["wyckoff"]) for entry in model.card["crystals"])
        prior = WyckoffPrior.from_sites(sites, spacegroups=parse_spacegroups(config.reconstruct.spacegroups))
        source = cls(config, model, composition, RDFSettings(**model.card["rdf"]), known, prior)
        source._check()
        return source

    def _check(self) -> None:
        """Refuse impossible requests before any expensive work."""
        options = self.config.reconstruct
        self.latents()
        self.prior.draw(parse_natoms(options.natoms), self.rng(RECONSTRUCT_STREAM), self.composition)
        if options.min_distance is not None:
            volumes = [options.volume] if options.volume else [replica.volume_per_atom for replica in self.replicas()]
            check_volume(max(volumes) * (1 + options.volume_tolerance), options.min_distance)

    def latents(self) -> np.ndarray:
        """Latents in the order in which they are used; shape (n_replicas, latent_dim)."""
        options = self.config.sampling
        n_replicas = options.n_replicas or REPLICAS_PER_CANDIDATE * self.config.run.n
        rng = self.rng(SAMPLING_STREAM)
        crystals = self.model.card["crystals"]
        means, stds = (np.array([entry[name] for entry in crystals]) for name in ("mean", "std"))
        if options.sampling == "grid":
            return rng.permutation(sampling.sample_grid(latent_dim=self.model.latent_dim))[:n_replicas]
        if options.sampling == "posterior":
            return sampling.sample_posterior(means, stds, n_replicas, rng)
        if options.sampling == "around":
            names = [entry["name"] for entry in crystals]
            if options.around not in names:
                raise ConfigError(f"around = {options.around!r} is not in the weights; they know {', '.join(names)}")
            number = names.index(options.around)
            return sampling.sample_around(means[number], stds[number], n_replicas, rng)
        return sampling.sample_prior(n_replicas, self.model.latent_dim, rng)

    def replicas(self) -> list[Replica]:
        """Decoded replicas in the order in which they are used."""
        return decode(self.model, self.latents())

    def crystals(self, replica: Replica) -> tuple[list[Candidate], dict[str, int]]:
        """Reconstruct and symmetrize: the candidates of one replica and the counts of the search."""
        options = self.config.reconstruct
        try:
            result = reconstruct(
                replica.rdf,
                options.volume or replica.volume_per_atom,
                composition=str(self.composition),
                settings=self.settings,
                natoms=parse_natoms(options.natoms),
                prior=self.prior,
                n_proposals=options.n_proposals,
                n_steered=options.n_steered,
                threshold=options.pearson_threshold,
                min_distance=options.min_distance,
                volume_tolerance=options.volume_tolerance,
                rng=self.rng(RECONSTRUCT_STREAM, replica.index),
            )
        except ReconstructionError:  # this replica's atoms are too dense for the distances asked for; others are not
            return [], {"impossible_replicas": 1}
        candidates = [
            Candidate(
                index=replica.index * options.per_replica + number,
                replica=replica.index,
                atoms=crystal.atoms,
                latent=replica.latent,
                target_rdf=replica.rdf,
                pearson_initial=1.0 - crystal.pearson_distance,
                spacegroup_initial=crystal.spacegroup,
            )
            for number, crystal in enumerate(result.crystals[: options.per_replica])
        ]
        return [self._symmetrize(candidate) for candidate in candidates], dict(result.counts)

    def _symmetrize(self, candidate: Candidate) -> Candidate:
        """Bring the crystal to its standardized primitive cell."""
        try:
            result = symmetrize(candidate.atoms, symprec=self.config.symmetry.symprec)
        except SymmetryError as error:
            return candidate.failed("symmetrize", error)
        return candidate.evolve(
            atoms=result.atoms, spacegroup_initial=result.number, symbol_initial=result.symbol, stage="symmetrize"
        )

    def rng(self, *stream: int) -> np.random.Generator:
        """Random numbers of one stream of the run, whatever was drawn from others."""
        return np.random.default_rng(np.random.SeedSequence(self.config.run.seed, spawn_key=stream))


def known_crystals(path: str | None, formula: str) -> list[Atoms]:
    """Known crystals of one composition with ``info['name']``: from a file or folder, else from the shipped table.

    Raises
    ------
    ConfigError
        If there is no shipped table of the composition and no file, or the file has no crystal of it.
    StructureError
        If the file cannot be read.
    """
    if path is None:
        try:
            return load_known(formula)
        except ValueError as error:
            raise ConfigError(f"{error}; name a file of known crystals with --known") from None
    composition = Composition.parse(formula)
    known = [atoms for atoms in read_structures(path) if Composition.parse(str(atoms.symbols)) == composition]
    if not known:
        raise ConfigError(f"{path} holds no crystal of {formula}, the composition of the crystals to generate")
    for number, atoms in enumerate(known):
        _name(atoms, f"{Path(path).stem} {number}")
    return known


def also_known(paths: str | None) -> list[Atoms]:
    """Crystals of further files, databases and folders (comma-separated), with ``info['name']``.

    Raises
    ------
    StructureError
        If one cannot be read.
    """
    crystals = []
    for path in map(str.strip, paths.split(",")) if paths else ():
        for atoms in read_structures(path):
            _name(atoms, str(atoms.info["source"]))
            crystals.append(atoms)
    return crystals


def _name(atoms: Atoms, otherwise: str) -> None:
    """Give a crystal a name that does not read like a number or truth value, which ase.db refuses as text."""
    name = str(atoms.info.get("name", otherwise))
    is_text = isinstance(convert_str_to_int_float_bool_or_str(name), str)
    atoms.info["name"] = name if is_text else f"crystal {name}"
