"""VASP through ASE: preflight, options, and a relaxation by a stand-in for the program."""

import dataclasses
import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import CalculationFailed, CalculatorSetupError
from ase.calculators.emt import EMT
from ase.config import cfg

from ase_hvae.calculators import get_calculator
from ase_hvae.relax import relax

pytestmark = [
    pytest.mark.usefixtures("no_programs"),
    pytest.mark.filterwarnings("ignore:Loaded .*VASP.* from environment"),
]
HERE = Path(__file__).parent
POTCAR = "  PAW_PBE {0} 05Jan2001\n   TITEL  = PAW_PBE {0} 05Jan2001\n   ENMAX  =  {1}; ENMIN  =  184.009 eV\n"


def add_potcar(folder, name, enmax, folder_of_set="potpaw_PBE"):
    """A file with the lines of a POTCAR that are read."""
    file = folder / folder_of_set / name / "POTCAR"
    file.parent.mkdir(parents=True)
    file.write_text(POTCAR.format(name, enmax))
    return file


@pytest.fixture
def vasp(monkeypatch, tmp_path):
    """An environment with pseudopotentials of Si, Cu and Au and the stand-in for VASP; returns how to set its mode."""
    for symbol, enmax in (("Si", 245.345), ("Cu", 295.446), ("Au", 229.943)):
        add_potcar(tmp_path, symbol, enmax)
    monkeypatch.setenv("VASP_PP_PATH", str(tmp_path))

    def command(mode):
        monkeypatch.setenv("ASE_VASP_COMMAND", f"{sys.executable} {HERE / 'standin_vasp.py'} {mode}")

    command("good")
    return command


def open_vasp(tmp_path, species, **options):
    return get_calculator("vasp", species=species, settings={"vasp": options}, directory=tmp_path)


def copper_gold():
    """Three atoms of two elements out of order, in a skewed cell, none in equilibrium."""
    cell = [[4.4, 0.2, 0], [1.9, 3.9, 0.1], [2.0, 1.3, 3.6]]
    return Atoms("CuAuCu", scaled_positions=[[0, 0, 0], [0.3, 0.35, 0.3], [0.7, 0.64, 0.68]], cell=cell, pbc=True)


def test_vasp_takes_its_cutoff_from_the_pseudopotentials(vasp, tmp_path):
    calc, record = open_vasp(tmp_path, ["Si", "Cu"])
    assert record.name == "vasp"
    assert record.model == "pbe potpaw_PBE Cu Si"
    assert record.settings["encut"] == round(1.3 * 295.446)
    potcars = [(tmp_path / "potpaw_PBE" / symbol / "POTCAR").read_bytes() for symbol in ("Cu", "Si")]
    assert record.sha256 == hashlib.sha256(b"".join(potcars)).hexdigest()
    assert json.loads(json.dumps(dataclasses.asdict(record)))["settings"] == record.settings
    assert not calc.directory.exists()  # nothing is written before the first calculation
    _, record = open_vasp(tmp_path, ["Si"], encut=300, ediff=1e-7)
    assert (record.settings["encut"], record.settings["ediff"]) == (300, 1e-7)


def test_vasp_and_the_inner_calculator_agree_at_a_point(vasp, tmp_path):
    atoms, oracle = copper_gold(), EMT()
    calc, _ = open_vasp(tmp_path, ["Cu", "Au"])
    assert calc.get_potential_energy(atoms) == pytest.approx(oracle.get_potential_energy(atoms), abs=1e-8)
    np.testing.assert_allclose(calc.get_forces(atoms), oracle.get_forces(atoms), atol=1e-8)
    np.testing.assert_allclose(calc.get_stress(atoms), oracle.get_stress(atoms), atol=1e-10)
    assert np.abs(oracle.get_stress(atoms)).min() > 1e-4  # so that sign and order of all components are tested
    incar = (calc.directory / "INCAR").read_text()
    for line in ("NSW = 0", "IBRION = -1", "ISIF = 3", "GGA = PE", "KSPACING = 0.2", "ENCUT = 384"):
        assert line in incar
    assert calc.directory == tmp_path / f"vasp_{os.getpid()}"


def test_relaxing_through_vasp_ends_where_the_inner_calculator_does(vasp, tmp_path):
    calc, _ = open_vasp(tmp_path, ["Cu", "Au"])
    atoms = bulk("Cu", "fcc", 3.75, cubic=True)
    atoms.symbols[1] = "Au"
    atoms.rattle(0.05, seed=1)
    expected = relax(atoms, EMT(), fmax=0.03)
    found = relax(atoms, calc, fmax=0.03)
    assert expected.n_steps >= 4
    assert (found.n_steps, found.converged) == (expected.n_steps, True)
    assert found.energy == pytest.approx(expected.energy, abs=1e-6)  # VASP prints eight decimals; errors add up
    np.testing.assert_allclose(found.atoms.positions, expected.atoms.positions, atol=1e-6)
    np.testing.assert_allclose(found.atoms.cell, expected.atoms.cell, atol=1e-6)
    np.testing.assert_allclose(found.stress, expected.stress, atol=1e-7)


def test_mesh_of_k_points_in_place_of_a_spacing(vasp, tmp_path):
    calc, record = open_vasp(tmp_path, ["Cu"], kpts=[4, 4, 4])
    calc.get_potential_energy(bulk("Cu"))
    assert (calc.directory / "KPOINTS").read_text().split()[-7:] == ["Gamma", "4", "4", "4", "0", "0", "0"]
    assert "kspacing" not in record.settings


def test_a_run_of_vasp_that_did_not_end_well_is_a_failed_calculation(vasp, tmp_path):
    calc, _ = open_vasp(tmp_path, ["Cu"])
    energy = calc.get_potential_energy(bulk("Cu"))
    for mode, message in (
        ("exit", r"returned an error: 1 .*it said: ZBRENT: fatal error in bracketing$"),
        ("silent", "OUTCAR"),
        ("headless", "incomplete"),
        ("truncated", r"vasprun\.xml is cut off"),
        ("unconverged", "electronic loop did not converge; raise nelm"),
    ):
        vasp(mode)
        with pytest.raises(CalculationFailed, match=message):
            calc.get_potential_energy(bulk("Cu", a=3.7))
    vasp("good")
    assert calc.get_potential_energy(bulk("Cu")) == energy


def test_stand_in_refuses_inputs_that_vasp_could_not_relax_with(vasp, tmp_path):
    calc, _ = open_vasp(tmp_path, ["Cu"], encut=100)
    with pytest.raises(CalculationFailed, match=r"ENCUT is 100\.0, ENMAX 295\.446"):
        calc.get_potential_energy(bulk("Cu"))


def test_missing_parts_of_vasp_are_named_together(vasp, tmp_path, monkeypatch):
    monkeypatch.setenv("ASE_VASP_COMMAND", "vasp_nowhere")
    with pytest.raises(CalculatorSetupError) as error:
        open_vasp(tmp_path, ["Ge", "Si", "Sn"])
    assert "there is no executable 'vasp_nowhere'" in str(error.value)
    for symbol in ("Ge", "Sn"):
        assert f"pseudopotential of {symbol} ({tmp_path}/potpaw_PBE/{symbol}/POTCAR)" in str(error.value)
    assert "of Si" not in str(error.value)
    monkeypatch.setenv("VASP_PP_PATH", str(tmp_path / "moved"))
    with pytest.raises(CalculatorSetupError, match="moved, which is no folder"):
        open_vasp(tmp_path, ["Si"])


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "the command of VASP .set ASE_VASP_COMMAND"),
        ("./vasp_std", "is relative, but it runs in a folder of its own"),
        ("OMP_NUM_THREADS=1 vasp_nowhere", "there is no executable 'vasp_nowhere'"),
        ("OMP_NUM_THREADS=1", "names no program"),
        ("vasp 'std", "cannot be parsed"),
        (f"{sys.executable} nowhere.py", "there is no script 'nowhere.py'"),
    ],
)
def test_command_that_cannot_start(vasp, tmp_path, monkeypatch, command, message):
    monkeypatch.delenv("ASE_VASP_COMMAND")
    with pytest.raises(CalculatorSetupError, match=message):
        open_vasp(tmp_path, ["Si"], command=command)


def test_command_of_the_configurations(vasp, tmp_path, monkeypatch):
    good = os.environ["ASE_VASP_COMMAND"]
    _, plain = open_vasp(tmp_path, ["Cu"])
    monkeypatch.setenv("ASE_VASP_COMMAND", "vasp_nowhere")
    _, record = open_vasp(tmp_path, ["Cu"], command=good)
    assert record == plain  # how VASP is started changes nothing in the numbers
    monkeypatch.delenv("ASE_VASP_COMMAND")
    cfg.parser["vasp"] = {"command": good}
    assert open_vasp(tmp_path, ["Cu"])[1] == plain
    monkeypatch.setenv("VASP_SCRIPT", "nowhere.py")
    with pytest.raises(CalculatorSetupError, match=r"there is no script 'nowhere\.py'"):
        open_vasp(tmp_path, ["Cu"])


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"xc": "lda"}, "potpaw/Si"),
        ({"xc": "pbe", "pp": "potpaw_GGA"}, "potpaw_GGA/Si"),
        ({"setups": {"Si": "_h"}}, "potpaw_PBE/Si_h"),
        ({"setups": {"base": "gw"}}, "potpaw_PBE/Si_GW"),
        ({"pp_version": "54"}, "potpaw_PBE.54/Si"),
    ],
)
def test_pseudopotentials_lie_where_ase_looks_for_them(vasp, tmp_path, options, place):
    with pytest.raises(CalculatorSetupError, match=rf"pseudopotential of Si \({tmp_path}/{place}/POTCAR\)"):
        open_vasp(tmp_path, ["Si"], **options)
    folder, name = place.split("/")
    add_potcar(tmp_path, name, 400.0, folder)
    _, record = open_vasp(tmp_path, ["Si"], **options)
    assert record.settings["encut"] == 520
    assert record.model.split()[1:] == [folder, name]


def test_damaged_pseudopotential(vasp, tmp_path):
    file = tmp_path / "potpaw_PBE" / "Si" / "POTCAR"
    file.write_text("no pseudopotential")
    with pytest.raises(CalculatorSetupError, match="no ENMAX line"):
        open_vasp(tmp_path, ["Si"])
    file.rename(file.with_name("POTCAR.Z"))
    with pytest.raises(CalculatorSetupError, match=r"POTCAR\.Z is compressed.*uncompress it"):
        open_vasp(tmp_path, ["Si"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ENCUT": 400}, r"unknown option 'ENCUT' in \[vasp\]; did you mean 'encut'"),
        ({"encutt": 400}, r"unknown option 'encutt' in \[vasp\]; did you mean 'encut'"),
        ({"nsw": 50}, r"nsw in \[vasp\] is refused: ase_hvae moves atoms and cell itself"),
        ({"isif": 2}, "needs forces and stress"),
        ({"pstress": 10.0}, r"give pressure in \[relax\]"),
        ({"directory": "here"}, "directory in .vasp. is refused"),
        ({"encut": "high"}, "encut = 'high' in .vasp. must be a positive number"),
        ({"kspacing": 0.0}, "kspacing = 0.0 in .vasp. must be a positive number"),
        ({"kpts": [4, 4, 4], "kspacing": 0.2}, "both kpts and kspacing"),
        ({"xc": "b2plyp"}, "refuses the options: b2plyp is not supported"),
        ({"sigma": "narrow"}, "cannot write the inputs of VASP"),
    ],
)
def test_options_refused_before_anything_runs(vasp, tmp_path, options, message):
    with pytest.raises(CalculatorSetupError, match=message):
        open_vasp(tmp_path, ["Si"], **options)
