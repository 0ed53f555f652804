"""Crystals as feature vectors to train on: RDF and log volume per atom, augmented by strain and rattling."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from ase_hvae.errors import StructureError
from ase_hvae.rdf import RDFSettings, radial_distribution
from ase_hvae.structures import check_structure

logger = logging.getLogger(__name__)

AUGMENT_STAGE, SPLIT_STAGE = 101, 102  # first entries of the seeds' spawn keys


@dataclass(frozen=True)
class Augmentation:
    """Random small deformations that stand for the spread of real crystals around the ideal ones.

    Attributes
    ----------
    n_copies : int
        Deformed copies of each crystal; the first is the ideal crystal itself.
    isotropic : float
        Largest isotropic linear strain, either sign; uniform.
    anisotropic : float
        Standard deviation of the components of the volume-conserving strain.
    rattle : float
        Standard deviation of every coordinate of every atom; Å.
    """

    n_copies: int = 32
    isotropic: float = 0.01
    anisotropic: float = 0.003
    rattle: float = 0.02

    def __post_init__(self) -> None:
        if self.n_copies < 1:
            raise ValueError(f"n_copies is {self.n_copies}; at least 1 copy of each crystal is needed")
        if not (0 <= self.isotropic <= 0.2 and 0 <= self.anisotropic <= 0.1 and 0 <= self.rattle <= 0.5):
            raise ValueError(
                f"isotropic={self.isotropic}, anisotropic={self.anisotropic}, rattle={self.rattle} Å; "
                "they must be within 0 to 0.2, 0.1 and 0.5 Å"
            )


def deform(atoms: Atoms, augmentation: Augmentation, rng: np.random.Generator) -> Atoms:
    """Return a strained and rattled copy of a crystal."""
    scale = 1 + rng.uniform(-augmentation.isotropic, augmentation.isotropic)
    strain = augmentation.anisotropic * rng.standard_normal((3, 3))
    strain = (strain + strain.T) / 2
    deformation = np.eye(3) + strain - np.eye(3) * np.trace(strain) / 3
    deformation *= scale / np.linalg.det(deformation) ** (1 / 3)
    copy = atoms.copy()
    copy.calc = None
    copy.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
    copy.positions += augmentation.rattle * rng.standard_normal(copy.positions.shape)
    return copy


def crystal_features(
    structures: Sequence[Atoms], settings: RDFSettings, species: Sequence[str] | None = None
) -> np.ndarray:
    """Return RDF and log volume per atom (Å^3) of crystals, ``(n, n_channels * n_bins + 1)``.

    The RDF has a channel for each unordered pair of species (`ase_hvae.rdf.channel_pairs`), one after the other.

    Parameters
    ----------
    structures : sequence of Atoms
    settings : RDFSettings
    species : sequence of str, optional
        Chemical symbols that span the channels; by default all that occur.
    """
    rdfs = radial_distribution(
        list(structures), rmax=settings.rmax, n_bins=settings.n_bins, sigma=settings.sigma, species=species
    )
    log_volume = np.log([atoms.get_volume() / len(atoms) for atoms in structures])
    return np.concatenate([rdfs.reshape(len(structures), -1), log_volume[:, None]], axis=1)


class CrystalDataset:
    """Crystals of one composition with their features.

    Parameters
    ----------
    structures : sequence of Atoms
        Not modified; ``info["name"]`` names a crystal in logs and model cards.
    settings : RDFSettings
    indices : sequence of int, optional
        Numbers that seed the crystals' augmentation; a part of a data set keeps those of the whole.

    Attributes
    ----------
    names : tuple of str
    species : tuple of str
        Chemical symbols, sorted; pairs of them are the channels of the RDF.
    composition : str
        Reduced formula that all crystals share, as ``Si`` or ``CSi``.
    features : ndarray, (n_crystals, n_channels * n_bins + 1)
        Of the ideal crystals, in physical units.

    Raises
    ------
    StructureError
        If there is no structure, one is broken, or they have different compositions.
    """

    def __init__(
        self, structures: Sequence[Atoms], settings: RDFSettings | None = None, *, indices: Sequence[int] | None = None
    ) -> None:
        if not structures:
            raise StructureError("the data set has no structure; at least one is needed")
        self.structures = tuple(structures)
        self.settings = settings or RDFSettings()
        self.indices = tuple(range(len(structures))) if indices is None else tuple(indices)
        self.names = tuple(
            crystal_name(atoms, index) for atoms, index in zip(self.structures, self.indices, strict=True)
        )
        for atoms, name in zip(self.structures, self.names, strict=True):
            check_structure(atoms, label=name)
        self.composition = _common_composition(self.structures)
        self.species = tuple(sorted(set(self.structures[0].symbols)))
        self.features = crystal_features(self.structures, self.settings)

    def __len__(self) -> int:
        return len(self.structures)

    @property
    def rdfs(self) -> np.ndarray:
        """g(r) of the ideal crystals, ``(n_crystals, n_channels * n_bins)``."""
        return self.features[:, :-1]

    @property
    def null_correlation(self) -> float:
        """Mean Pearson correlation of the RDFs of two different crystals: what a correlation is to be compared with."""
        return mean_pair_correlation(self.rdfs)

    @property
    def sha256(self) -> str:
        """Digest of crystals (rounded to 1e-6) and RDF settings."""
        digest = hashlib.sha256(repr(self.settings).encode())
        for atoms in self.structures:
            digest.update(atoms.numbers.astype("<i8").tobytes())
            for array in (atoms.cell.array, atoms.get_scaled_positions()):
                digest.update((np.round(array, 6) + 0.0).astype("<f8").tobytes())
        return digest.hexdigest()

    def select(self, which: Sequence[int]) -> CrystalDataset:
        """Return the part with the given positions in this data set."""
        return CrystalDataset(
            [self.structures[i] for i in which], self.settings, indices=[self.indices[i] for i in which]
        )

    def split(self, held_out_fraction: float, seed: int) -> tuple[CrystalDataset, CrystalDataset]:
        """Split by crystal into one part to train on and one held out: no crystal has copies in both."""
        n_held_out = round(held_out_fraction * len(self))
        if not 1 <= n_held_out < len(self):
            raise StructureError(
                f"held-out fraction {held_out_fraction} of {len(self)} crystals leaves one part empty; "
                "give more crystals or another fraction"
            )
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(SPLIT_STAGE,)))
        order = rng.permutation(len(self)).tolist()
        return self.select(sorted(order[n_held_out:])), self.select(sorted(order[:n_held_out]))

    def augmented(self, augmentation: Augmentation, seed: int) -> np.ndarray:
        """Return features of deformed copies, ``(n_crystals * n_copies, n_features)``, crystal after crystal.

        The copies of a crystal depend on the seed and on the crystal's index only, not on the rest of the set.
        """
        blocks = []
        for atoms, index in zip(self.structures, self.indices, strict=True):
            rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(AUGMENT_STAGE, index)))
            copies = [atoms, *(deform(atoms, augmentation, rng) for _ in range(augmentation.n_copies - 1))]
            blocks.append(crystal_features(copies, self.settings, self.species))
        return np.concatenate(blocks)


def standardisation(features: np.ndarray, *, floor: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and scale of each feature, ``(n_features,)``; the last feature is the log volume.

    The scale of an RDF bin is its standard deviation, but at least `floor` times the root mean square over bins, so
    that bins which hardly vary (below the shortest bond) do not count as much as the others.
    """
    deviation = features.std(axis=0)
    scale = np.maximum(deviation, floor * np.sqrt(np.mean(deviation[:-1] ** 2)))
    scale[-1] = max(deviation[-1], 0.01)
    return features.mean(axis=0), np.maximum(scale, 1e-3)


def mean_pair_correlation(rdfs: np.ndarray) -> float:
    """Mean Pearson correlation over all pairs of rows of ``(n, n_bins)``; not a number for one row."""
    if len(rdfs) < 2:
        return float("nan")
    return float(np.corrcoef(rdfs)[np.triu_indices(len(rdfs), k=1)].mean())


def exclude_matches(structures: Sequence[Atoms], excluded: Sequence[Atoms]) -> tuple[list[Atoms], list[Atoms]]:
    """Drop every structure that pymatgen's StructureMatcher takes for one of `excluded`.

    Tolerances as in the benchmarks (ltol 0.2, stol 0.2, angle 5 degrees, volumes scaled), wide on purpose: a strained
    or distorted relative of an excluded crystal would give it away.

    Returns
    -------
    kept, dropped : list of Atoms
    """
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.io.ase import AseAtomsAdaptor

    matcher = StructureMatcher(ltol=0.2, stol=0.2, angle_tol=5.0)
    convert = AseAtomsAdaptor.get_structure
    targets = [convert(_bare(atoms)) for atoms in excluded]
    kept: list[Atoms] = []
    dropped: list[Atoms] = []
    for index, atoms in enumerate(structures):
        matches = any(matcher.fit(convert(_bare(atoms)), target) for target in targets)
        (dropped if matches else kept).append(atoms)
        if matches:
            logger.info("excluded from training: %s", crystal_name(atoms, index))
    return kept, dropped


def _bare(atoms: Atoms) -> Atoms:
    return Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)


def crystal_name(atoms: Atoms, index: int) -> str:
    """``info["name"]`` of a crystal, else file and position that it was read from, else formula and number."""
    name = atoms.info.get("name") or atoms.info.get("source")
    return str(name or f"{atoms.get_chemical_formula()}-{index}")


def _common_composition(structures: Sequence[Atoms]) -> str:
    found = sorted({atoms.symbols.formula.reduce()[0].format("hill") for atoms in structures})
    if len(found) > 1:
        raise StructureError(
            f"the structures have compositions {', '.join(found)}; the HVAE is trained on crystals of one composition: "
            "pass those of one only"
        )
    return found[0]
