"""Crystals of several species from end to end: train, generate, relax, compare, phonons."""

import json

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write
from ase.spacegroup import crystal

from ase_hvae import generate, train
from ase_hvae.cli import main
from ase_hvae.config import GenerateConfig
from ase_hvae.errors import ConfigError, ReconstructionError
from ase_hvae.rdf import radial_distribution
from ase_hvae.source import CrystalSource
from ase_hvae.structures import min_distance
from ase_hvae.symmetry import primitive

VOLUME = 14.2  # of CuAu by EMT; Å^3 per atom


def prototypes() -> dict[str, Atoms]:
    """AB crystals of copper and gold at one volume per atom."""
    crystals = {
        "L1_0": Atoms("CuAu", cell=[1, 1, 1.3], scaled_positions=[(0, 0, 0), (0.5, 0.5, 0.5)]),
        "CsCl": bulk("CuAu", "cesiumchloride", 1),
        "NaCl": bulk("CuAu", "rocksalt", 1),
        "zincblende": bulk("CuAu", "zincblende", 1),
        "wurtzite": bulk("CuAu", "wurtzite", 1, 1.633),
        "NiAs": crystal(
            ["Cu", "Au"], [(0, 0, 0), (1 / 3, 2 / 3, 0.25)], spacegroup=194, cellpar=[1, 1, 1.4, 90, 90, 120]
        ),
        "WC": Atoms("CuAu", cell=[1, 1, 0.98, 90, 90, 120], scaled_positions=[(0, 0, 0), (1 / 3, 2 / 3, 0.5)]),
        "B19": crystal(
            ["Cu", "Au"], [(0.25, 0.25, 0.18), (0.25, 0.75, 0.67)], spacegroup=51, cellpar=[0.63, 1, 1.02, 90, 90, 90]
        ),
        "layered": Atoms("CuAu", cell=[1, 1, 2], scaled_positions=[(0, 0, 0), (0, 0, 0.5)]),
    }
    for name, atoms in crystals.items():
        atoms.pbc = True
        atoms.set_cell(atoms.cell * (VOLUME * len(atoms) / atoms.get_volume()) ** (1 / 3), scale_atoms=True)
        crystals[name] = Atoms(primitive(atoms), info={"name": name})
    return crystals


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of CuAu, trained in seconds, and the crystals that they know."""
    folder = tmp_path_factory.mktemp("copper-gold")
    write(folder / "known.extxyz", list(prototypes().values()))
    train(folder / "known.extxyz", folder / "cuau.safetensors", epochs=10, seed=1)
    return {"model": str(folder / "cuau.safetensors"), "known": str(folder / "known.extxyz")}


def test_the_card_names_orbits_with_their_species(weights):
    source = CrystalSource.open(GenerateConfig().with_options(**weights))
    assert str(source.composition) == "AuCu"
    orbits = {number: sorted(orbit[-2:] for orbit in orbits) for number, orbits in source.prior.learned}
    assert set(map(tuple, orbits.values())) == {("Au", "Cu")}
    assert {123, 186, 194, 216, 221, 225} <= set(orbits)


def test_generate_crystals_of_two_species(weights, tmp_path):
    options = {
        "calc": EMT(), "n": 6, "natoms": "2,4", "n_phonons": 1, "sampling": "posterior", "min_length": 6.0, "seed": 2,
        "pearson_threshold": 0.6, "n_proposals": 600, "workers": 1,
    }  # fmt: skip
    ranked = generate(out=tmp_path / "run", **weights, **options)
    assert ranked
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["calculator"]["species"] == ["Au", "Cu"]
    assert summary["funnel"]["candidates"] == 6
    assert summary["reference"]["name"] == "L1_0"  # the order of CuAu, by experiment and by EMT
    for candidate in ranked:
        atoms = candidate.atoms
        assert atoms.symbols.get_chemical_formula(empirical=True) == "AuCu"
        assert candidate.rdf.shape == candidate.target_rdf.shape == (3, 200)
        np.testing.assert_allclose(candidate.rdf, radial_distribution(atoms), atol=1e-6)
        copy = atoms.copy()
        copy.calc = EMT()
        assert copy.get_potential_energy() == pytest.approx(candidate.energy, abs=1e-6)
    assert {candidate.nearest_known for candidate in ranked} <= set(prototypes())
    assert any(candidate.stable is not None for candidate in ranked)


def test_another_composition_of_the_same_elements(weights, tmp_path):
    known = [bulk("Au", cubic=True), bulk("Cu", cubic=True)]
    ordered = bulk("Au", "fcc", 3.75, cubic=True)
    ordered.symbols[1:] = "Cu"  # L1_2
    write(tmp_path / "cu3au.extxyz", [*known, ordered])
    options = weights | {"known": str(tmp_path / "cu3au.extxyz"), "composition": "AuCu3", "pearson_threshold": 1.5}
    source = CrystalSource.open(GenerateConfig().with_options(n_proposals=300, n_steered=6, n=2, **options))
    assert [atoms.symbols.get_chemical_formula() for atoms in source.known] == ["AuCu3"]
    candidates, _ = source.crystals(source.replicas()[0])
    assert candidates
    for candidate in candidates:
        assert candidate.atoms.symbols.get_chemical_formula(empirical=True) == "AuCu3"
        assert len(candidate.atoms) in (4, 8)
        assert min_distance(candidate.atoms) > 1.5


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"composition": "Cu"}, ConfigError, "composition = 'Cu', but the HVAE weights know crystals of Au, Cu"),
        ({"composition": "CuAuAg"}, ConfigError, "weights know crystals of Au, Cu"),
        ({"composition": "Copper gold"}, ReconstructionError, "no chemical formula"),
        ({"composition": "Cu3Au"}, ConfigError, "holds no crystal of AuCu3"),
        ({"natoms": "1,3,5"}, ReconstructionError, "no whole formula unit of AuCu, which has 2 atoms"),
        ({"natoms": "2", "spacegroups": "227"}, ReconstructionError, "AuCu with 2 atoms .* 2 of each species"),
        ({"known": None}, ConfigError, "no table of known crystals for 'AuCu'"),
        ({"min_distance": 4.0}, ReconstructionError, "close packing"),
    ],
)
def test_impossible_requests_are_refused_before_any_work(weights, options, error, match):
    with pytest.raises(error, match=match):
        CrystalSource.open(GenerateConfig().with_options(**weights | options))


def test_a_wrong_composition_is_one_line_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["generate", "--composition", "SiC"])
    assert stopped.value.code == 2
    assert "composition = 'SiC', but the HVAE weights know crystals of Si" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
