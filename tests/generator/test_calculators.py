"""The choice of a calculator and its reasons; MAISE, GPAW and calculators of others behind the same door."""

import hashlib
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.calculator import CalculationFailed, CalculatorSetupError, PropertyNotImplementedError
from ase.calculators.emt import EMT
from ase.config import cfg

from ase_hvae.calculators import WatchedCalculator, get_calculator
from maise_bridge import MaiseCalculator
from maise_bridge.calculator import find_model

pytestmark = pytest.mark.usefixtures("no_programs")
HERE = Path(__file__).parent


def test_shipped_silicon_is_recorded_with_its_hash():
    calc, record = get_calculator("maise,vasp", species=["Si"])
    assert calc.species == ("Si",)
    assert record.name == "maise"
    assert record.species == ("Si",)
    assert record.refused == ()
    assert record.sha256 == hashlib.sha256(find_model("silicon").read_bytes()).hexdigest()
    assert str(record) == f"maise, model silicon (sha256 {record.sha256[:8]})"


def test_the_next_calculator_is_used_when_the_model_does_not_cover_the_element(caplog):
    calc, record = get_calculator("maise, ase.calculators.emt:EMT", species=["Cu"])
    assert record.name == "ase.calculators.emt:EMT"
    assert record.refused == ("maise: model 'silicon' covers Si, not Cu; pass another model",)
    assert "covers Si, not Cu" in caplog.text
    atoms = bulk("Cu")
    assert calc.get_potential_energy(atoms) == EMT().get_potential_energy(atoms)
    np.testing.assert_array_equal(calc.get_stress(atoms), EMT().get_stress(atoms))


def test_every_reason_is_named():
    with pytest.raises(CalculatorSetupError) as error:
        get_calculator("maise,vasp", species=["Cu", "Si"])
    for part in ("no calculator for Cu, Si", "covers Si, not Cu", "VASP_COMMAND", "VASP_PP_PATH"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lammps", "unknown calculator; use maise"),
        ("", "empty name"),
        ("nowhere:Calc", "cannot import: No module named 'nowhere'"),
        ("ase.calculators.emt:Nothing", "cannot import"),
        ("builtins:dict", "made a dict, which is no ASE calculator"),
        ("ase.calculators.tip3p:TIP3P", "made a TIP3P, which has no stress"),
    ],
)
def test_refused(name, message):
    with pytest.raises(CalculatorSetupError, match=message):
        get_calculator(name, species=["Si"])


def test_missing_model_lists_the_shipped_ones():
    with pytest.raises(CalculatorSetupError, match=r"no MAISE model 'tin'.*silicon"):
        get_calculator("maise", species=["Si"], model="tin")


# Calculators under watch


class Fragile(EMT):
    """EMT that fails for structures of two atoms, as foreign programs do."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=("positions",)):
        super().calculate(atoms, list(properties), list(system_changes))
        if len(self.atoms) == 2:
            raise IndexError("list index out of range")
        if len(self.atoms) == 3:
            self.results["forces"][0, 0] = np.nan


def test_any_error_becomes_a_failed_calculation_and_the_next_structure_is_computed():
    calc = WatchedCalculator("fragile", Fragile)
    assert calc.get_potential_energy(bulk("Cu")) == EMT().get_potential_energy(bulk("Cu"))
    for _ in range(2):  # a second question for the same structure must not be answered from a half-filled cache
        with pytest.raises(CalculationFailed, match="fragile failed: IndexError: list index out of range") as error:
            calc.get_potential_energy(bulk("Cu") * (2, 1, 1))
        assert isinstance(error.value.__cause__, IndexError)
    with pytest.raises(CalculationFailed, match="forces is not finite"):
        calc.get_forces(bulk("Cu") * (3, 1, 1))
    np.testing.assert_array_equal(calc.get_forces(bulk("Cu") * (4, 1, 1)), EMT().get_forces(bulk("Cu") * (4, 1, 1)))
    with pytest.raises(PropertyNotImplementedError, match="dipole"):
        calc.get_property("dipole", bulk("Cu"))


def test_results_beside_the_usual_ones_are_kept():
    calc = WatchedCalculator("watched", MaiseCalculator)
    bare = MaiseCalculator()
    for calculator in (calc, bare):
        calculator.get_potential_energy(bulk("Si"))
    np.testing.assert_array_equal(calc.results["extrapolation"], bare.results["extrapolation"])


# The maise program


@pytest.fixture
def maise_program(tmp_path):
    """The stand-in for maise, as ASE's configuration names it."""
    script = tmp_path / "maise"
    compute = f"exec {sys.executable} {HERE.parent / 'bridge' / 'standin_maise.py'} compute"
    script.write_text(f"#!/bin/sh\n[ -f setup ] || {{ echo ' version maise.3.0.00'; exit 1; }}\n{compute}\n")
    script.chmod(0o755)
    cfg.parser["maise"] = {"command": str(script)}
    return script


def test_the_maise_program_through_the_same_door(maise_program, tmp_path):
    calc, record = get_calculator("maise-executable", species=["Si"], directory=tmp_path)
    assert (record.name, record.version) == ("maise-executable", "3.0.00")
    assert record.sha256 == hashlib.sha256(find_model("silicon").read_bytes()).hexdigest()
    atoms, native = bulk("Si", a=5.3), MaiseCalculator()
    assert calc.get_potential_energy(atoms) == pytest.approx(native.get_potential_energy(atoms), abs=1e-8)
    np.testing.assert_allclose(calc.get_stress(atoms), native.get_stress(atoms), atol=1e-8)
    assert (tmp_path / f"maise-executable_{os.getpid()}" / "OUTCAR").is_file()


def test_the_maise_program_is_looked_for_first(maise_program, tmp_path):
    with pytest.raises(CalculatorSetupError, match="covers Si, not Cu"):
        get_calculator("maise-executable", species=["Cu"])
    maise_program.write_text("#!/bin/sh\necho hello\n")
    with pytest.raises(CalculatorSetupError, match="it is not MAISE"):
        get_calculator("maise-executable", species=["Si"])
    maise_program.unlink()
    with pytest.raises(CalculatorSetupError, match=r"there is no executable .*command in section \[maise\]"):
        get_calculator("maise-executable", species=["Si"])


@pytest.mark.maise
def test_the_real_maise_program(tmp_path):
    calc, record = get_calculator("maise-executable", species=["Si"], directory=tmp_path)
    assert record.version[0].isdigit()
    atoms, native = bulk("Si", a=5.3), MaiseCalculator()
    assert calc.get_potential_energy(atoms) == pytest.approx(native.get_potential_energy(atoms), abs=1e-6)


# GPAW


@pytest.fixture
def gpaw(monkeypatch):
    """A stand-in for the package: it keeps what it is called with and computes by EMT."""
    made = []

    class GPAW(EMT):
        def __init__(self, *, txt, mode, xc, kpts, occupations, maxiter=300):
            super().__init__()
            made.append({"mode": mode, "xc": xc, "kpts": kpts, "occupations": occupations, "maxiter": maxiter})

    def search_for_file(name):
        if name != "Cu.PBE":
            raise FileNotFoundError(f'Could not find required PAW dataset file "{name}".')
        return "Cu.PBE.gz", b"dataset"

    package, setup_data = types.ModuleType("gpaw"), types.ModuleType("gpaw.setup_data")
    vars(package).update(GPAW=GPAW, __version__="26.7.0")
    vars(setup_data).update(search_for_file=search_for_file)
    monkeypatch.setitem(sys.modules, "gpaw", package)
    monkeypatch.setitem(sys.modules, "gpaw.setup_data", setup_data)
    return made


def test_gpaw_gets_plane_waves_and_a_mesh(gpaw, tmp_path):
    calc, record = get_calculator(
        "gpaw", species=["Cu"], settings={"gpaw": {"ecut": 300, "kspacing": 0.25, "maxiter": 80}}
    )
    assert (record.version, record.model, record.sha256) == ("26.7.0", "PBE Cu", hashlib.sha256(b"dataset").hexdigest())
    assert gpaw[-1]["mode"] == {"name": "pw", "ecut": 300}
    assert gpaw[-1]["kpts"] == {"density": 4.0, "gamma": True}
    assert gpaw[-1]["maxiter"] == 80
    assert record.settings == gpaw[-1]
    calc.directory = tmp_path / "runs"
    before = len(gpaw)
    for length in (3.6, 3.7):
        atoms = bulk("Cu", a=length)
        assert calc.get_potential_energy(atoms) == EMT().get_potential_energy(atoms)
        np.testing.assert_array_equal(calc.get_stress(atoms), EMT().get_stress(atoms))
    assert len(gpaw) == before + 2  # one for each structure, none for another question about it


@pytest.mark.parametrize(
    ("species", "options", "message"),
    [
        ("Au", {}, "GPAW has no dataset of Au: Could not find"),
        ("Cu", {"mode": "lcao"}, "mode = 'lcao' in .gpaw. has no stress; use plane waves"),
        ("Cu", {"mode": {"name": "pw", "ecut": 300}, "ecut": 300}, "both ecut and mode"),
        ("Cu", {"ecut": -3}, "ecut = -3 in .gpaw. must be a positive number"),
        ("Cu", {"txt": "here"}, "txt in .gpaw. is refused"),
        ("Cu", {"maxitre": 3}, "GPAW refuses the options in .gpaw.: .*maxitre"),
    ],
)
def test_gpaw_refused_before_anything_runs(gpaw, species, options, message):
    with pytest.raises(CalculatorSetupError, match=message):
        get_calculator("gpaw", species=[species], settings={"gpaw": options})


def test_gpaw_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "gpaw", None)
    with pytest.raises(CalculatorSetupError, match=r"GPAW cannot be imported: .*; install gpaw"):
        get_calculator("gpaw", species=["Si"])


def test_real_gpaw_gives_a_stress_that_is_the_derivative_of_its_energy(tmp_path):
    pytest.importorskip("gpaw", reason="gpaw is not installed in this environment")
    options = {"ecut": 150, "kpts": {"size": [2, 2, 2], "gamma": True}, "convergence": {"energy": 1e-6}}
    calc, _ = get_calculator("gpaw", species=["Si"], settings={"gpaw": options}, directory=tmp_path)
    atoms = bulk("Si", a=5.5)
    strained = [atoms.copy() for _ in range(2)]
    for copy, strain in zip(strained, (0.005, -0.005), strict=True):
        copy.set_cell(atoms.cell * (1 + strain), scale_atoms=True)
    difference = np.diff([calc.get_potential_energy(copy) for copy in strained])[0] / -0.01
    # The basis at 150 eV changes with the cell; that, the Pulay stress, is 8 % here.
    assert atoms.get_volume() * calc.get_stress(atoms)[:3].sum() == pytest.approx(difference, rel=0.15)
