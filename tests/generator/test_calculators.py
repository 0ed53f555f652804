"""The choice of a calculator and its reasons."""

import hashlib

import pytest
from ase.calculators.calculator import CalculatorSetupError
from ase.calculators.emt import EMT

from ase_hvae.calculators import get_calculator
from maise_bridge.calculator import find_model

pytestmark = pytest.mark.filterwarnings("ignore:Loaded .*VASP.* from environment")
VASP_VARIABLES = ("ASE_VASP_COMMAND", "VASP_COMMAND", "VASP_SCRIPT", "VASP_PP_PATH")


@pytest.fixture
def no_vasp(monkeypatch):
    """An environment without VASP."""
    for variable in VASP_VARIABLES:
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def vasp(monkeypatch, tmp_path):
    """An environment with a command and a pseudopotential of silicon."""
    potcar = tmp_path / "potpaw_PBE" / "Si" / "POTCAR"
    potcar.parent.mkdir(parents=True)
    potcar.write_text("  PAW_PBE Si 05Jan2001\n   ENMAX  =  245.345; ENMIN  =  184.009 eV\n")
    monkeypatch.setenv("VASP_PP_PATH", str(tmp_path))
    monkeypatch.setenv("ASE_VASP_COMMAND", "vasp_std")
    return potcar


def test_shipped_silicon_is_recorded_with_its_hash():
    calc, record = get_calculator("maise,vasp", species=["Si"])
    assert calc.species == ("Si",)
    assert record.name == "maise"
    assert record.sha256 == hashlib.sha256(find_model("silicon").read_bytes()).hexdigest()
    assert str(record) == f"maise, model silicon (sha256 {record.sha256[:8]})"


def test_the_next_calculator_is_used_when_the_model_does_not_cover_the_element():
    calc, record = get_calculator("maise, ase.calculators.emt:EMT", species=["Cu"])
    assert isinstance(calc, EMT)
    assert record.name == "ase.calculators.emt:EMT"


def test_vasp_takes_its_cutoff_from_the_pseudopotential(vasp):
    calc, record = get_calculator("vasp", species=["Si"])
    assert calc.float_params["encut"] == round(1.3 * 245.345)
    assert record.name == "vasp"


def test_every_reason_is_named(no_vasp):
    with pytest.raises(CalculatorSetupError) as error:
        get_calculator("maise,vasp", species=["Cu", "Si"])
    for part in ("no calculator for Cu, Si", "covers Si, not Cu", "VASP_COMMAND", "VASP_PP_PATH"):
        assert part in str(error.value)


def test_missing_pseudopotential_is_named(vasp):
    with pytest.raises(CalculatorSetupError, match=r"pseudopotential of Ge \(.*potpaw_PBE/Ge/POTCAR\)"):
        get_calculator("vasp", species=["Ge", "Si"])
    vasp.write_text("no pseudopotential")
    with pytest.raises(CalculatorSetupError, match="no ENMAX line"):
        get_calculator("vasp", species=["Si"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lammps", "unknown calculator; use maise"),
        ("", "empty name"),
        ("nowhere:Calc", "cannot import: No module named 'nowhere'"),
        ("ase.calculators.emt:Nothing", "cannot import"),
        ("builtins:dict", "made a dict, which is no ASE calculator"),
    ],
)
def test_refused(name, message):
    with pytest.raises(CalculatorSetupError, match=message):
        get_calculator(name, species=["Si"])


def test_missing_model_lists_the_shipped_ones():
    with pytest.raises(CalculatorSetupError, match=r"no MAISE model 'tin'.*silicon"):
        get_calculator("maise", species=["Si"], model="tin")
