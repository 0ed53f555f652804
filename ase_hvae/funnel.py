"""From candidates to ranked crystals: relaxation, comparison, phonons with children of soft modes, elasticity.

Expected failures (`AseHvaeError`, ASE's `CalculatorError`) become part of the candidate; anything else is a bug.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import BaseCalculator, CalculatorError

from ase_hvae import compare, elasticity, phonons, symmetry
from ase_hvae.calculators import CalculatorRecord, get_calculator
from ase_hvae.calculators.relaxation import relaxes_together
from ase_hvae.candidate import Candidate
from ase_hvae.compare import KnownCrystals
from ase_hvae.config import GenerateConfig
from ase_hvae.errors import AseHvaeError, RelaxationError
from ase_hvae.phonons import PhononResult
from ase_hvae.rdf import radial_distribution
from ase_hvae.relax import RelaxResult, relax_many
from ase_hvae.replicas import Replica
from ase_hvae.source import CHILD_STREAM, CrystalSource, also_known

EXPECTED = (AseHvaeError, CalculatorError)
TOGETHER = 32  # crystals relaxed in one batch by calculators that can


@dataclass(frozen=True, eq=False)
class Reference:
    """Crystal against which energies are given; eV/atom."""

    name: str
    energy_per_atom: float


@dataclass(frozen=True, eq=False)
class Funnel:
    """The stages of one run, bound to its options, crystals and calculator."""

    source: CrystalSource
    calc: BaseCalculator
    record: CalculatorRecord

    @classmethod
    def open(
        cls,
        config: GenerateConfig,
        calc: BaseCalculator | None = None,
        *,
        calculator: str | None = None,
        directory: str | Path = ".",
    ) -> Funnel:
        """Load everything that the run needs.

        Parameters
        ----------
        config : GenerateConfig
            Options of the run.
        calc : Calculator, optional
            Used instead of the calculators named in the options.
        calculator : str, optional
            The one that was chosen for the run, so that a worker process opens no other.
        directory : str or Path
            Where programs run, each process in a folder of its own.

        Raises
        ------
        ConfigError, ModelError, StructureError, CalculatorSetupError
            If the request cannot be met.
        """
        source = CrystalSource.open(config)
        if calc is not None:
            return cls(source, calc, CalculatorRecord(name=type(calc).__name__, species=source.composition.species))
        return cls(
            source,
            *get_calculator(
                calculator or config.run.calculator,
                species=source.composition.species,
                model=config.run.potential,
                settings=config.calculator_settings,
                directory=directory,
            ),
        )

    def crystals(self, replica: Replica) -> tuple[Replica, list[Candidate], dict[str, int]]:
        """The replica with its candidates and the counts of the search."""
        return replica, *self.source.crystals(replica)

    @property
    def relax_together(self) -> int:
        """How many candidates one call of :meth:`relax` should get: what an interruption may lose against speed."""
        return TOGETHER if relaxes_together(self.calc) else 1

    def relax(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Relax, find the symmetry that each crystal has now, and finish in its standardized primitive cell."""
        starts = dict(enumerate(candidate.atoms for candidate in candidates))
        first, failed = self._minima(starts)
        found = {}
        for number, result in first.items():
            try:
                found[number] = symmetry.symmetrize(result.atoms, symprec=self.source.config.symmetry.symprec)
            except EXPECTED as error:
                failed[number] = error
        final, failed_again = self._minima({number: result.atoms for number, result in found.items()})
        failed |= failed_again
        return [
            candidate.failed("relax", failed[number])
            if number in failed
            else self._relaxed(candidate, first[number], found[number], final[number])
            for number, candidate in enumerate(candidates)
        ]

    def _relaxed(
        self, candidate: Candidate, first: RelaxResult, found: symmetry.SymmetryResult, final: RelaxResult
    ) -> Candidate:
        """The candidate after both relaxations, with the symmetry found in between."""
        return candidate.evolve(
            stage="relax",
            atoms=final.atoms,
            energy=final.energy,
            energy_initial=first.energy_initial,
            forces=final.forces,
            stress=final.stress,
            n_steps=first.n_steps + final.n_steps,
            spacegroup=found.number,
            symbol=found.symbol,
            extrapolation=final.extrapolation,
            rdf=self._rdf(final.atoms),
        )

    def phonons(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Phonon frequencies and verdict of each, before an unstable one its child, a new candidate to be relaxed.

        A failed calculation leaves the candidate in the ranking. A child comes first, so that writing in this order
        and dying in between loses none.
        """
        depth = self.source.config.phonons.children_depth
        return [result for each in candidates for result in self._with_phonons(each, with_child=each.depth < depth)]

    def phonons_alone(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Phonon frequencies and verdict of each, without children.

        For crystals that count as duplicates until a child, lower in energy than what they repeat, changes that.
        """
        return [result for each in candidates for result in self._with_phonons(each, with_child=False)]

    def _with_phonons(self, candidate: Candidate, *, with_child: bool) -> list[Candidate]:
        options = self.source.config.phonons
        try:
            result = phonons.compute(
                candidate.atoms, self.calc, min_length=options.min_length, displacement=options.displacement
            )
        except EXPECTED as error:
            return [candidate.evolve(stage="phonons", phonon_failure=_one_line(error))]
        candidate = candidate.evolve(
            stage="phonons",
            frequencies=result.frequencies,
            min_frequency=result.min_frequency,
            stable=bool(result.stable),
        )
        if result.stable and options.temperature is not None:
            energies = phonons.harmonic_energy(result, options.temperature)
            return [
                candidate.evolve(
                    zero_point_energy=energies.zero_point_energy, harmonic_free_energy=energies.free_energy
                )
            ]
        if result.stable or not with_child:
            return [candidate]
        try:
            return [self._child(candidate, result), candidate]
        except EXPECTED as error:
            return [candidate.evolve(child_failure=_one_line(error))]

    def _child(self, parent: Candidate, result: PhononResult) -> Candidate:
        """The crystal to which the softest mode of an unstable candidate leads, to be relaxed."""
        index = parent.index + self._most_indices
        mode = phonons.softest_mode(result, max_atoms=self.source.config.phonons.child_atoms)
        atoms = phonons.displace(mode, self.calc, rng=self.source.rng(CHILD_STREAM, index))
        assert parent.spacegroup is not None
        return Candidate(
            index=index,
            parent=parent.index,
            depth=parent.depth + 1,
            replica=parent.replica,
            atoms=atoms,
            latent=parent.latent,
            target_rdf=parent.target_rdf,
            pearson_initial=compare.pearson_correlation(self._rdf(atoms), parent.target_rdf),
            spacegroup_initial=parent.spacegroup,
            symbol_initial=parent.symbol,
            stage="symmetrize",
        )

    @functools.cached_property
    def _most_indices(self) -> int:
        """Above every index of a reconstructed crystal; those of each further generation are larger by as much."""
        return len(self.source.latents()) * self.source.config.reconstruct.per_replica

    def elasticity(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Elastic tensor, moduli and verdict of each; a failed calculation leaves the candidate in the ranking."""
        return [self._with_elasticity(candidate) for candidate in candidates]

    def _with_elasticity(self, candidate: Candidate) -> Candidate:
        try:
            result = elasticity.compute(candidate.atoms, self.calc)
        except EXPECTED as error:
            return candidate.evolve(stage="elasticity", elastic_failure=_one_line(error))
        averages = result.moduli
        return candidate.evolve(
            stage="elasticity",
            elastic_tensor=result.tensor,
            mechanically_stable=bool(result.stable),
            bulk_modulus=None if averages is None else averages.bulk_h,
            shear_modulus=None if averages is None else averages.shear_h,
        )

    def reference(self) -> Reference:
        """Relax the ground state among the known crystals: the published one, else the lowest by this calculator."""
        known = self.source.known
        published = [atoms for atoms in known if atoms.info.get("energy_above") == 0.0]
        atoms = published[0] if published else min(known, key=self._single_point)
        found, failed = self._minima({0: atoms})
        if failed:
            raise failed[0]
        result = found[0]
        return Reference(atoms.info["name"], self._enthalpy_per_atom(result.atoms, result.energy))

    def compare(self, rising: Iterable[Candidate], reference: Reference) -> Iterator[Candidate]:
        """Energies above the reference, similarity to replica and known crystals, names and duplicates.

        Relaxed candidates come in from the lowest energy per atom upwards; those that change come out, pending or
        duplicates, whatever an earlier comparison said: a child of lower energy makes a duplicate of a crystal that was
        kept before. Only those within the energy tolerance of each other are in memory.
        """
        candidates, compared = itertools.tee(rising)
        originals = compare.stream_originals((c.index, c.atoms, c.energy_per_atom) for c in compared)
        for candidate, (_, original) in zip(candidates, originals, strict=True):
            changes = self._comparison(candidate, original, reference)
            if any(getattr(candidate, name) != value for name, value in changes.items()):
                yield candidate.evolve(**changes)

    def _comparison(self, candidate: Candidate, original: int | None, reference: Reference) -> dict[str, Any]:
        """What comparison finds out about a candidate that repeats another one or none."""
        assert candidate.energy is not None
        assert candidate.rdf is not None
        known = self.source.known
        nearest, pearson_known = compare.nearest(candidate.rdf, self.known_rdfs)
        enthalpy = self._enthalpy_per_atom(candidate.atoms, candidate.energy)
        changes: dict[str, Any] = {
            "energy_above": enthalpy - reference.energy_per_atom,
            "pearson_replica": compare.pearson_correlation(candidate.rdf, candidate.target_rdf),
            "pearson_known": pearson_known,
            "nearest_known": known[nearest].info["name"],
            "status": "pending" if original is None else "duplicate",
            "duplicate_of": original,
            "stage": "compare" if candidate.stage == "relax" else candidate.stage,
        }
        if original is None and candidate.known is None:
            match = self.library.find(candidate.atoms)
            changes["known"] = "new" if match is None else match.info["name"]
        return changes

    @functools.cached_property
    def library(self) -> KnownCrystals:
        """Crystals that are not new: the known ones, and those of further files; read when first asked for."""
        return KnownCrystals([*self.source.known, *also_known(self.source.config.run.also_known)])

    @functools.cached_property
    def known_rdfs(self) -> np.ndarray:
        """g(r) of the known crystals; shape (n_known, n_bins)."""
        return radial_distribution(self.source.known, **dataclasses.asdict(self.source.settings))

    def _rdf(self, atoms: Atoms) -> np.ndarray:
        return radial_distribution(atoms, **dataclasses.asdict(self.source.settings))

    def _minima(self, structures: Mapping[int, Atoms]) -> tuple[dict[int, RelaxResult], dict[int, Exception]]:
        """Relaxed crystals, and why the others are none; not converging is a reason too."""
        options = self.source.config.relax
        numbers = list(structures)
        found: dict[int, RelaxResult] = {}
        failed: dict[int, Exception] = {}
        for place, result in relax_many(
            list(structures.values()),
            self.calc,
            fmax=options.fmax,
            max_steps=options.max_steps,
            optimizer=options.optimizer,
            scalar_pressure=options.pressure * units.GPa,
        ):
            if not isinstance(result, RelaxResult):
                failed[numbers[place]] = result
            elif not result.converged:
                steps = f"not converged to {options.fmax} eV/Å in {options.max_steps} steps; raise max_steps"
                failed[numbers[place]] = RelaxationError(steps)
            else:
                found[numbers[place]] = result
        return found, failed

    def _enthalpy_per_atom(self, atoms: Atoms, energy: float) -> float:
        return (energy + self.source.config.relax.pressure * units.GPa * atoms.get_volume()) / len(atoms)

    def _single_point(self, atoms: Atoms) -> float:
        atoms = atoms.copy()
        atoms.calc = self.calc
        return atoms.get_potential_energy() / len(atoms)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
