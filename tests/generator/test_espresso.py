"""Quantum ESPRESSO through ASE: preflight, cutoffs of the pseudopotentials, and the real program."""

import shutil
from pathlib import Path

import pytest
from ase.build import bulk
from ase.calculators.calculator import CalculationFailed, CalculatorSetupError
from ase.calculators.emt import EMT
from ase.config import cfg

from ase_hvae.calculators import get_calculator
from ase_hvae.calculators.espresso import WatchedEspresso

pytestmark = pytest.mark.usefixtures("no_programs")
PSEUDOPOTENTIALS = Path("/usr/share/espresso/pseudo")  # of the Debian package quantum-espresso-data
HEADER = '<UPF version="2.0.1">\n<PP_HEADER element="{}" pseudo_type="{}" wfc_cutoff="{}" rho_cutoff="{}"/>\n</UPF>\n'
OLD = "<PP_HEADER>\n  Si   Element\n  US   Ultrasoft\n  25.0  0.0  Suggested cutoff for wfc and rho\n"


@pytest.fixture
def espresso(tmp_path):
    """A folder of headers of pseudopotentials, and a program that says that it is pw.x."""
    folder = tmp_path / "pseudo"
    folder.mkdir()
    (folder / "Si.one.UPF").write_text(HEADER.format("Si", "NC", "0.0", "0.0"))
    (folder / "Ge_US.upf").write_text(HEADER.format("Ge", "USPP", "4.437e1", "0.0"))
    script = tmp_path / "pw.x"
    script.write_text("#!/bin/sh\ncat > /dev/null\necho '     Program PWSCF v.6.7 starts'\nexit 1\n")
    script.chmod(0o755)
    return {"command": str(script), "pseudo_dir": str(folder)}


def open_espresso(tmp_path, species, options):
    return get_calculator("espresso", species=species, settings={"espresso": options}, directory=tmp_path)


def test_espresso_settings_follow_the_pseudopotentials(espresso, tmp_path):
    calc, record = open_espresso(tmp_path, ["Si"], espresso)
    assert (record.version, record.model) == ("6.7", "Si.one.UPF")
    system = record.settings["system"]
    assert (system["ecutwfc"], system["ecutrho"]) == (60.0, 240.0)  # nothing suggested, norm-conserving
    assert record.settings["control"]["tstress"] is True
    assert not calc.directory.exists()
    _, record = open_espresso(tmp_path, ["Ge"], espresso)
    assert (record.settings["system"]["ecutwfc"], record.settings["system"]["ecutrho"]) == (45.0, 360.0)
    _, record = open_espresso(
        tmp_path, ["Si", "Ge"], espresso | {"input_data": {"ECUTWFC": 30, "electrons": {"mixing_beta": 0.4}}}
    )
    assert (record.settings["system"]["ecutwfc"], record.settings["system"]["ecutrho"]) == (30, 240.0)
    assert record.settings["electrons"] == {"conv_thr": 1e-8, "mixing_beta": 0.4}


def test_old_headers_are_read(espresso, tmp_path):
    file = Path(espresso["pseudo_dir"]) / "Si.one.UPF"
    file.write_text(OLD + "</PP_HEADER>\n")
    _, record = open_espresso(tmp_path, ["Si"], espresso)
    assert (record.settings["system"]["ecutwfc"], record.settings["system"]["ecutrho"]) == (25.0, 200.0)


def test_espresso_takes_what_ase_is_configured_for(espresso, tmp_path):
    _, expected = open_espresso(tmp_path, ["Si"], espresso)
    cfg.parser["espresso"] = espresso
    _, record = open_espresso(tmp_path, ["Si"], {})
    assert record == expected


def test_spacing_of_k_points_means_the_same_as_in_vasp(espresso, tmp_path):
    calc, _ = open_espresso(tmp_path, ["Si"], espresso | {"kspacing": 0.5})
    with pytest.raises(CalculationFailed, match="espresso failed: CalledProcessError"):
        calc.get_potential_energy(bulk("Si", cubic=True, a=5.43))
    text = (calc.directory / "espresso.pwi").read_text()
    assert text.split("K_POINTS automatic")[1].split()[:3] == ["3", "3", "3"]  # 2 pi / 5.43 = 1.157, over 0.5
    assert "pseudo_dir       = '" + espresso["pseudo_dir"] in text


@pytest.mark.parametrize(
    ("species", "options", "message"),
    [
        ("Sn", {}, "pseudopotential of Sn is not clear: .*pseudo has none; name one in .espresso., as"),
        ("Si", {"pseudopotentials": {"Si": "no.UPF"}}, "pseudopotential of Si is missing: .* has no file 'no.UPF'"),
        ("Si", {"pseudopotentials": {"Si": "Ge_US.upf"}}, "is a pseudopotential of Ge, not of Si"),
        ("Si", {"command": "pw_nowhere.x", "pseudo_dir": "/nowhere"}, "no executable 'pw_nowhere.x'.*is /nowhere"),
        ("Si", {"command": "true"}, "does not print a version: it is not pw.x"),
        ("Si", {"kspacings": 0.2}, "unknown option 'kspacings' in .espresso.; did you mean 'kspacing'"),
        ("Si", {"kspacing": -1}, "must be a positive number"),
        ("Si", {"kpts": [2, 2, 2], "kspacing": 0.2}, "both kpts and kspacing"),
        ("Si", {"pseudopotentials": "Si.UPF"}, "must be a table"),
        ("Si", {"pseudo_dir": 3}, "pseudo_dir = 3 in .espresso. must be text"),
        ("Si", {"input_data": {"ecutwf": 30}}, "unknown variable 'ecutwf' in .espresso. input_data"),
        ("Si", {"input_data": {"control": {"ecutwfc": 30}}}, "unknown variable 'ecutwfc' of &CONTROL"),
        ("Si", {"input_data": {"calculation": "vc-relax"}}, "ase_hvae moves atoms and cell itself"),
        ("Si", {"input_data": {"outdir": "/tmp"}}, "outdir in .espresso. input_data is refused"),
        ("Si", {"input_data": {"ibrav": 2}}, "cannot write the input of pw.x"),
    ],
)  # fmt: skip
def test_espresso_refused_before_anything_runs(espresso, tmp_path, species, options, message):
    with pytest.raises(CalculatorSetupError, match=message):
        open_espresso(tmp_path, [species], espresso | options)


def test_a_choice_among_pseudopotentials_is_left_to_the_user(espresso, tmp_path):
    (Path(espresso["pseudo_dir"]) / "Si.two.UPF").write_text(HEADER.format("Si", "NC", "20.0", "0.0"))
    with pytest.raises(CalculatorSetupError, match=r"not clear: .* has Si\.one\.UPF, Si\.two\.UPF; name one"):
        open_espresso(tmp_path, ["Si"], espresso)
    _, record = open_espresso(tmp_path, ["Si"], espresso | {"pseudopotentials": {"Si": "Si.two.UPF"}})
    assert record.model == "Si.two.UPF"
    with pytest.raises(CalculatorSetupError, match=r"set pseudo_dir in \[espresso\]"):
        open_espresso(tmp_path, ["Si"], {"command": espresso["command"]})


def test_an_output_without_convergence_or_end_is_refused(tmp_path):
    calc, output = WatchedEspresso("espresso", EMT, tmp_path), tmp_path / "espresso.pwo"
    output.write_text("convergence has been achieved in 9 iterations\n")
    with pytest.raises(CalculationFailed, match="cut off: it was killed or the disk is full"):
        calc.get_potential_energy(bulk("Cu"))
    output.write_text("convergence NOT achieved after 100 iterations\nJOB DONE.\n")
    with pytest.raises(CalculationFailed, match=r"did not converge; raise electron_maxstep.* NOT achieved after 100"):
        calc.get_potential_energy(bulk("Cu"))
    output.write_text("convergence has been achieved in 9 iterations\nJOB DONE.\n")
    assert calc.get_potential_energy(bulk("Cu")) == EMT().get_potential_energy(bulk("Cu"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pw.x") is None, reason="pw.x of Quantum ESPRESSO is not installed")
@pytest.mark.skipif(
    not (PSEUDOPOTENTIALS / "Si.pbe-rrkj.UPF").is_file(), reason=f"no Si.pbe-rrkj.UPF in {PSEUDOPOTENTIALS}"
)
def test_energies_forces_and_stress_of_real_quantum_espresso_belong_together(tmp_path):
    options = {
        "pseudo_dir": str(PSEUDOPOTENTIALS),
        "pseudopotentials": {"Si": "Si.pbe-rrkj.UPF"},
        "kpts": [2, 2, 2],
        "input_data": {"ecutwfc": 14.0, "conv_thr": 1e-10},
    }
    calc, record = open_espresso(tmp_path, ["Si"], options)
    assert record.version
    atoms = bulk("Si", a=5.4)
    atoms.positions[1] += [0.1, 0.03, 0.0]
    force, step = calc.get_forces(atoms)[1, 0], 0.02
    energies = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[1, 0] += sign * step
        energies.append(calc.get_potential_energy(moved))
    assert abs(force) > 0.5
    # A central difference is wrong by the third derivative times step squared over six: some 1e-3 eV/Å here.
    assert force == pytest.approx(-(energies[0] - energies[1]) / (2 * step), abs=5e-3)
    (calc.directory / "espresso.pwo").unlink()
    options["input_data"] |= {"electron_maxstep": 2}
    calc, _ = open_espresso(tmp_path, ["Si"], options)
    with pytest.raises(CalculationFailed, match=r"espresso failed: .*convergence NOT achieved"):
        calc.get_potential_energy(atoms)
