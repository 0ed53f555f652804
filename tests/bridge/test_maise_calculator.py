"""MaiseCalculator inside ASE: properties, relaxation, refusals."""

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import (
    CalculationFailed,
    CalculatorSetupError,
    PropertyNotImplementedError,
    ReadError,
)
from ase.db import connect
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.optimize import BFGS

from maise_bridge import GuptaModel, GuptaPotential, MaiseCalculator, calculator, read_model
from maise_bridge.neighbors import neighbor_list

DATA = Path(__file__).parents[1] / "data" / "bridge"
MODEL = DATA / "si.model"


@pytest.fixture
def atoms():
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=2)
    atoms.calc = MaiseCalculator(MODEL)
    return atoms


@pytest.fixture
def alloy():
    atoms = bulk("CuAu", "rocksalt", a=5.2, cubic=True)
    atoms.rattle(0.1, seed=5)
    return atoms


def test_properties_agree_with_each_other(atoms):
    assert atoms.get_potential_energies().sum() == pytest.approx(atoms.get_potential_energy(), abs=1e-11)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    assert atoms.get_forces().shape == (8, 3)
    assert atoms.get_stress().shape == (6,)
    assert atoms.calc.results["extrapolation"].shape == (8,)
    assert atoms.calc.name == "maise"
    assert atoms.calc.parameters["model"] == str(MODEL)


def test_cell_relaxation_lowers_the_energy_with_few_searches(atoms):
    before = atoms.get_potential_energy()
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.05, steps=15)
    assert atoms.get_potential_energy() < before
    fresh = atoms.copy()
    fresh.calc = MaiseCalculator(MODEL)
    assert fresh.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-10)


def test_slabs_and_clusters_are_periodic_where_they_say(atoms):
    slab = atoms.copy()
    slab.pbc = [True, True, False]
    slab.calc = atoms.calc
    padded = atoms.copy()
    padded.cell[2] += [0, 0, 40]
    padded.calc = MaiseCalculator(MODEL)
    assert slab.get_potential_energy() == pytest.approx(padded.get_potential_energy(), abs=1e-10)
    cluster = Atoms("Si3", [[0, 0, 0], [2.4, 0, 0], [0, 2.5, 0]])
    cluster.calc = atoms.calc
    assert np.isfinite(cluster.get_forces()).all()
    with pytest.raises(PropertyNotImplementedError):
        cluster.get_stress()


def test_other_species_are_refused_with_the_remedy(atoms):
    mixed = bulk("MgSn", "zincblende", a=6)
    mixed.calc = atoms.calc
    with pytest.raises(CalculatorSetupError, match=r"structure has Mg, Sn; model .*si\.model' covers Si; pass another"):
        mixed.get_potential_energy()


@pytest.mark.parametrize("name", ["si.model", "cu_gupta.model"])
def test_coincident_atoms_and_numbers_that_are_not_finite_are_named(name):
    calc = MaiseCalculator(DATA / name)
    atoms = bulk(calc.species[0], "diamond", a=5.4, cubic=True)
    atoms.calc = calc
    symbol = calc.species[0]
    good = atoms.positions.copy()
    energy = atoms.get_potential_energy()
    for i, j, shift in ((2, 5, [0, 0, 0]), (0, 7, atoms.cell[1] - atoms.cell[2])):
        atoms.positions = good
        atoms.positions[j] = atoms.positions[i] + shift
        with pytest.raises(CalculationFailed, match=rf"atoms {i} \({symbol}\) and {j} \({symbol}\) coincide.* 0 Å"):
            atoms.get_forces()
        assert calc.results == {}
    atoms.positions = good
    atoms.positions[6, 1] = np.nan
    with pytest.raises(CalculationFailed, match=rf"position of atom 6 \({symbol}\) is not finite: \[.*nan"):
        atoms.get_potential_energy()
    atoms.positions = good
    atoms.cell[0, 0] = np.inf
    with pytest.raises(CalculationFailed, match=r"cell is not finite: \[\[inf"):
        atoms.get_potential_energy()
    atoms.cell[0] = 0
    with pytest.raises(CalculationFailed, match="length zero"):
        atoms.get_potential_energy()
    atoms.cell[0, 0] = 5.4
    assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-11)
    with pytest.raises(CalculationFailed, match="no atoms"):
        calc.get_potential_energy(Atoms())


def test_gupta_models_are_calculators_too(alloy):
    model = read_model(DATA / "cuau_gupta.model")
    expected = GuptaPotential(model).evaluate([alloy])[0]
    for calc in (MaiseCalculator(DATA / "cuau_gupta.model"), MaiseCalculator(model, core_repulsion=False)):
        alloy.calc = calc
        assert calc.species == ("Cu", "Au")
        assert alloy.get_potential_energy() == pytest.approx(expected.energy, abs=1e-11)
        np.testing.assert_allclose(alloy.get_forces(), expected.forces, atol=1e-11)
        np.testing.assert_allclose(alloy.get_stress(), expected.stress, atol=1e-12)
        assert calc.results["extrapolation"].tolist() == [0.0] * len(alloy)
    with pytest.raises(CalculatorSetupError, match=r"core_repulsion is 50.0; .*cuau_gupta.* has none"):
        MaiseCalculator(DATA / "cuau_gupta.model", core_repulsion=50.0)


def test_models_of_clusters_are_refused_for_crystals():
    calc = MaiseCalculator(GuptaModel.create(["Cu"], [[0.0855, 10.96, 1.224, 2.278, 2.556, 100.0, 110.0]]))
    atoms = bulk("Cu")
    atoms.calc = calc
    with pytest.raises(CalculatorSetupError, match=r"model .* in memory': .*reaches 110 Å"):
        atoms.get_potential_energy()
    atoms.pbc = False
    assert atoms.get_potential_energy() == 0.0  # a lone atom


def test_core_repulsion_is_an_option():
    near = Atoms("Si2", [[0, 0, 0], [0, 0, 1.5]])
    energies = {u: MaiseCalculator(MODEL, u).get_potential_energy(near) for u in (True, 100.0, 50.0, False)}
    assert energies[True] == energies[100.0]
    # both ends of the bond at r = 0.75 R: 2 U ½ (1 + cos(0.75 pi)) / 0.75
    assert energies[50.0] - energies[False] == pytest.approx(100 * 0.5 * (1 - np.sqrt(0.5)) / 0.75, abs=1e-9)
    assert energies[True] - energies[False] == pytest.approx(2 * (energies[50.0] - energies[False]), abs=1e-9)


def test_extrapolation_is_warned_about_once_with_the_worst_atom(caplog, atoms):
    model = read_model(MODEL)
    model = replace(model, maximum=np.full_like(model.maximum, 1e6), scale=np.full_like(model.scale, 1e-6))
    atoms.calc = MaiseCalculator(model)
    atoms.get_potential_energy()
    assert not caplog.records
    assert atoms.calc.results["extrapolation"].tolist() == [0.0] * 8

    atoms.calc = MaiseCalculator(replace(model, maximum=np.zeros_like(model.maximum), scale=np.ones_like(model.scale)))
    for seed in range(3):
        atoms.rattle(0.02, seed=seed)
        atoms.get_potential_energy()
        if seed == 0:
            outside = atoms.calc.results["extrapolation"]
    assert len(caplog.records) == 1
    record = caplog.records[0]
    assert (record.name, record.levelname) == ("maise_bridge.calculator", "WARNING")
    worst = outside.argmax()
    assert "Si8: 8 of 8 atoms lie outside" in record.getMessage()
    assert f"worst is atom {worst} (Si), by {outside[worst]:.3g} of the range" in record.getMessage()
    assert atoms.calc.results["extrapolation"].max() > 1  # still told for each structure
    atoms.calc = MaiseCalculator(model)
    atoms.get_potential_energy()
    assert len(caplog.records) == 1


def test_atoms_a_hair_outside_the_data_are_not_worth_a_warning(caplog, atoms):
    # the first input alone, a plain sum over neighbours, leaves a range that ends where atom 0's value lies, less a bit
    model = read_model(MODEL)
    bonds = neighbor_list([atoms], model.basis.cutoff)
    r = np.linalg.norm(bonds.vectors, axis=1)
    eta, start = model.basis.radial[0]
    shape = 0.5 + 0.5 * np.cos(np.pi * r / model.basis.cutoff)
    largest = np.bincount(bonds.centre, np.exp(-eta * (r - start) ** 2) * shape).max()
    for excess, n_warnings in ((0.005, 0), (0.02, 1)):
        maximum = np.full_like(model.maximum, 1e6)
        maximum[0, 0] = largest / (1 + excess)
        atoms.calc = MaiseCalculator(replace(model, maximum=maximum, scale=1 / maximum))
        atoms.get_potential_energy()
        assert atoms.calc.results["extrapolation"].max() == pytest.approx(excess, rel=1e-9)
        assert len(caplog.records) == n_warnings


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda calc: pickle.loads(pickle.dumps(calc))])
@pytest.mark.parametrize("name", ["si.model", "cu_gupta.model"])
def test_copies_compute_the_same_and_leave_the_original_alone(name, copied):
    calc = MaiseCalculator(read_model(DATA / name))
    first, second = (bulk(calc.species[0], "diamond", a=a, cubic=True) for a in (5.3, 5.6))
    second.rattle(0.1, seed=1)
    expected = [calc.get_potential_energy(atoms) for atoms in (first, second)]
    twin = copied(calc)
    assert twin.name == "maise"
    assert twin.get_potential_energy(first) == pytest.approx(expected[0], abs=1e-11)
    assert calc.get_potential_energy(second) == pytest.approx(expected[1], abs=1e-11)
    assert twin.get_forces(first) == pytest.approx(MaiseCalculator(DATA / name).get_forces(first), abs=1e-11)


@pytest.mark.parametrize("form", ["db", "json", "traj", "extxyz"])
@pytest.mark.parametrize("in_memory", [False, True])
def test_atoms_travel_through_files_with_their_results(form, in_memory, tmp_path, atoms):
    atoms.calc = MaiseCalculator(read_model(MODEL) if in_memory else MODEL, core_repulsion=50.0)
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    write(tmp_path / f"file.{form}", atoms)
    again = read(tmp_path / f"file.{form}")
    assert again.get_potential_energy() == pytest.approx(energy, abs=1e-7)
    np.testing.assert_allclose(again.get_forces(), forces, atol=1e-7)
    np.testing.assert_allclose(again.get_stress(), stress, atol=1e-7)
    if form in ("db", "json"):
        with connect(tmp_path / f"file.{form}") as database:
            row = database.get(id=1)
        assert row.calculator == "maise"
        assert row.calculator_parameters == {"model": atoms.calc.parameters["model"], "core_repulsion": 50.0}
    parameters = json.loads(json.dumps(atoms.calc.todict()))
    if not in_memory:
        assert MaiseCalculator(**parameters).get_potential_energy(atoms) == pytest.approx(energy, abs=1e-11)


def test_unknown_arguments_are_refused():
    with pytest.raises(CalculatorSetupError, match="no argument 'core_repulson'"):
        MaiseCalculator(MODEL, core_repulson=3.0)


def test_unknown_models_are_refused_listing_the_shipped_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(calculator, "MODELS", tmp_path)
    with pytest.raises(CalculatorSetupError, match=r"no MAISE model 'unobtainium'.*shipped name \(none\)"):
        MaiseCalculator("unobtainium")
    (tmp_path / "mine.model").write_bytes(MODEL.read_bytes())
    assert MaiseCalculator("mine").species == ("Si",)
    with pytest.raises(CalculatorSetupError, match=r"shipped name \(mine\)"):
        MaiseCalculator("unobtainium")
    (tmp_path / "broken.model").write_text("nothing")
    with pytest.raises(ReadError, match=r"broken\.model, line 1"):
        MaiseCalculator("broken")


def test_the_model_of_a_calculator_is_fixed(atoms):
    with pytest.raises(CalculatorSetupError, match="make a new MaiseCalculator"):
        atoms.calc.set(model="other")
