"""Crystals as features: augmentation, split, exclusion."""

import logging

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.db import connect
from ase.io import write

from ase_hvae.dataset import (
    Augmentation,
    CrystalDataset,
    crystal_name,
    deform,
    exclude_matches,
    mean_pair_correlation,
    standardisation,
)
from ase_hvae.errors import StructureError
from ase_hvae.rdf import RDFSettings, radial_distribution
from ase_hvae.structures import read_structures

SETTINGS = RDFSettings(rmax=5.0, n_bins=50, sigma=0.1)
LINE = [[0, 0, 0], [3, 0, 0], [6, 0, 0]]


def test_features_are_rdf_and_log_volume(crystals):
    dataset = CrystalDataset(crystals, SETTINGS)
    assert dataset.names == ("diamond", "fcc", "bcc", "sc")
    assert (dataset.species, dataset.composition) == (("Si",), "Si")
    assert dataset.features.shape == (4, 51)
    assert np.exp(dataset.features[:, -1]) == pytest.approx([5.43**3 / 8, 3.9**3 / 4, 3.1**3 / 2, 2.5**3])
    first_peak = SETTINGS.grid[dataset.rdfs[0, :30].argmax()]  # nearest neighbours of diamond, below 3 Å
    assert first_peak == pytest.approx(5.43 * 3**0.5 / 4, abs=SETTINGS.bin_width)


def test_features_and_digest_know_the_crystal(crystals):
    dataset = CrystalDataset(crystals, SETTINGS)
    doubled = CrystalDataset([make_supercell(crystals[0], np.diag([2, 1, 1])), *crystals[1:]], SETTINGS)
    np.testing.assert_allclose(doubled.features, dataset.features, atol=1e-9)
    assert dataset.sha256 == CrystalDataset(crystals, SETTINGS).sha256
    assert dataset.sha256 != dataset.select([0, 1, 2]).sha256
    assert dataset.sha256 != CrystalDataset(crystals, RDFSettings(rmax=5.0, n_bins=50)).sha256


def test_deformation_obeys_its_limits(crystals):
    rng = np.random.default_rng(0)
    pure = Augmentation(isotropic=0.03, anisotropic=0.0, rattle=0.0)
    for _ in range(20):
        scaled = deform(crystals[0], pure, rng)
        factor = scaled.cell.array / crystals[0].cell.array[crystals[0].cell.array != 0].mean()
        assert np.allclose(factor[factor != 0], factor.max())
        assert abs(factor.max() - 1) <= 0.03
        np.testing.assert_allclose(scaled.get_scaled_positions(), crystals[0].get_scaled_positions(), atol=1e-12)
    sheared = deform(crystals[0], Augmentation(isotropic=0.0, anisotropic=0.01, rattle=0.0), rng)
    assert sheared.get_volume() == pytest.approx(crystals[0].get_volume(), rel=1e-12)
    assert not np.allclose(sheared.cell.array, crystals[0].cell.array)
    big = make_supercell(crystals[0], 5 * np.eye(3))
    moved = deform(big, Augmentation(isotropic=0.0, anisotropic=0.0, rattle=0.05), rng)
    assert (moved.positions - big.positions).std() == pytest.approx(0.05, rel=0.1)


def test_copies_depend_on_seed_and_crystal_only(crystals):
    augmentation = Augmentation(n_copies=3)
    dataset = CrystalDataset(crystals, SETTINGS)
    whole = dataset.augmented(augmentation, seed=4).reshape(4, 3, -1)
    part = dataset.select([3, 1]).augmented(augmentation, seed=4).reshape(2, 3, -1)
    assert np.array_equal(part, whole[[3, 1]])
    np.testing.assert_allclose(whole[:, 0], dataset.features, atol=1e-12)
    assert not np.allclose(whole[:, 1], whole[:, 2])
    other = dataset.augmented(augmentation, seed=5).reshape(4, 3, -1)
    assert not np.allclose(whole[:, 1], other[:, 1])


def test_split_is_by_crystal_and_complete(crystals):
    dataset = CrystalDataset(crystals, SETTINGS)
    part, others = dataset.split(0.25, seed=0)
    assert (len(part), len(others)) == (3, 1)
    assert set(part.names) | set(others.names) == set(dataset.names)
    assert dataset.split(0.25, seed=0)[1].names == others.names
    with pytest.raises(StructureError, match="leaves one part empty"):
        dataset.split(0.01, seed=0)


def test_channels_of_a_binary_stand_one_after_the_other():
    cells = [
        bulk("SiC", "zincblende", 4.36),
        bulk("CSi", "zincblende", 4.36) * (1, 1, 2),
        bulk("SiC", "rocksalt", 4.05),
    ]
    dataset = CrystalDataset(cells, SETTINGS)
    assert (dataset.species, dataset.composition) == (("C", "Si"), "CSi")
    assert dataset.features.shape == (3, 3 * 50 + 1)
    channels = radial_distribution(cells[0], rmax=5.0, n_bins=50, sigma=0.1)
    np.testing.assert_allclose(dataset.rdfs[0], channels.ravel(), atol=1e-12)
    np.testing.assert_allclose(dataset.rdfs[1], dataset.rdfs[0], atol=1e-9)  # anion and cation change places
    assert dataset.augmented(Augmentation(n_copies=2), seed=0).shape == (6, 151)


def test_crystals_are_named_after_what_is_known_of_them(tmp_path):
    atoms = bulk("Si")
    assert crystal_name(atoms, 3) == "Si2-3"
    write(tmp_path / "some.cif", atoms)
    assert crystal_name(read_structures(tmp_path)[0], 3) == "some.cif#0"
    with connect(tmp_path / "some.db") as database:
        database.write(atoms)
    assert crystal_name(read_structures(tmp_path / "some.db")[0], 3) == "some.db#0"
    atoms.info["name"] = "cubic"
    assert crystal_name(atoms, 3) == "cubic"


def test_standardised_features_have_unit_scale_or_less():
    features = np.random.default_rng(0).normal([0, 1, 2, 3], [0.0, 1, 2, 0.05], size=(500, 4))
    mean, scale = standardisation(features)
    deviation = ((features - mean) / scale).std(axis=0)
    assert deviation == pytest.approx([0, 1, 1, 1])
    assert (scale > 0).all()


def test_mean_pair_correlation_of_known_rows():
    assert mean_pair_correlation(np.array([[0, 1.0, 2], [0, 2.0, 4], [2, 1.0, 0]])) == pytest.approx(-1 / 3)
    assert np.isnan(mean_pair_correlation(np.zeros((1, 3))))


def test_excluded_crystals_are_dropped_and_named(crystals, caplog):
    strained = make_supercell(crystals[0], [[1, 1, 0], [0, 1, 0], [0, 0, 2]])
    strained.set_cell(1.02 * strained.cell, scale_atoms=True)
    with caplog.at_level(logging.INFO):
        kept, dropped = exclude_matches(crystals, [strained])
    assert [atoms.info["name"] for atoms in kept] == ["fcc", "bcc", "sc"]
    assert [atoms.info["name"] for atoms in dropped] == ["diamond"]
    assert "excluded from training: diamond" in caplog.text


def test_what_it_cannot_learn_is_refused(crystals):
    with pytest.raises(StructureError, match=r"compositions C, Si; .* one composition"):
        CrystalDataset([*crystals, bulk("C")], SETTINGS)
    with pytest.raises(StructureError, match="compositions CSi, CSi2;"):
        CrystalDataset([bulk("SiC", "zincblende", 4.36), Atoms("SiCSi", cell=[9, 3, 3], pbc=True, positions=LINE)])
    with pytest.raises(StructureError, match="no structure"):
        CrystalDataset([], SETTINGS)
    broken = crystals[0].copy()
    broken.positions[0, 0] = np.nan
    with pytest.raises(StructureError, match="diamond has a non-finite position"):
        CrystalDataset([broken], SETTINGS)
    with pytest.raises(ValueError, match="n_copies is 0"):
        Augmentation(n_copies=0)
    with pytest.raises(ValueError, match="rattle=2"):
        Augmentation(rattle=2.0)
