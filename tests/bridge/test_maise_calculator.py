"""MaiseCalculator inside ASE: properties, relaxation, refusals."""

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
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

from maise_bridge import MaiseCalculator, calculator

MODEL = Path(__file__).parents[1] / "data" / "bridge" / "si.model"


@pytest.fixture
def atoms():
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=2)
    atoms.calc = MaiseCalculator(MODEL)
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


def test_coincident_atoms_and_nan_fail_as_calculations(atoms):
    atoms.positions[1] = atoms.positions[0]
    with pytest.raises(CalculationFailed, match="not finite"):
        atoms.get_potential_energy()
    atoms.positions[1] = np.nan
    with pytest.raises(CalculationFailed, match="not finite"):
        atoms.get_potential_energy()


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
