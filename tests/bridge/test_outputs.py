"""Readers of MAISE's outputs on texts of the real program."""

from pathlib import Path

import numpy as np
import pytest
from ase.calculators.calculator import ReadError

from maise_bridge.outputs import read_cell_test, read_oszicar, read_outcar, read_progress
from maise_bridge.poscar import format_poscar, read_poscar

RUNS = Path(__file__).parents[1] / "data" / "maise_runs"


def test_single_point_holds_together():
    outcar = read_outcar(RUNS / "ok_singlepoint" / "OUTCAR")
    step = outcar.steps[0]
    assert outcar.finished
    assert not outcar.errors
    assert outcar.header["model"] == "0374AF6D"
    assert step.energy == pytest.approx(step.atom_energies.sum(), abs=1e-8)  # eight decimals
    assert np.abs(step.forces.sum(axis=0)).max() < 4e-6
    assert np.linalg.det(step.cell) / len(step.positions) == pytest.approx(step.volume_per_atom, rel=1e-6)
    assert step.stress == pytest.approx(
        [0.00358118, 0.01702690, 0.00792105, 0.00209603, -0.00115114, -0.00157407], abs=1e-8
    )
    exact = read_cell_test(RUNS / "ok_cell_test_jobt23" / "stdout.txt")
    assert np.abs(exact - step.forces).max() < 6e-7  # six decimals


def test_energies_alone_leave_the_rest_out():
    step = read_outcar(RUNS / "ok_singlepoint_energy_only_output" / "OUTCAR").steps[0]
    assert step.energy == read_outcar(RUNS / "ok_singlepoint" / "OUTCAR").steps[0].energy
    assert step.forces is step.stress is step.positions is step.atom_energies is None


@pytest.mark.parametrize("name", ["ok_relax_stopped_at_MITR", "ok_relax_full_first_last_5GPa"])
def test_the_three_files_of_a_relaxation_agree(name):
    steps = read_outcar(RUNS / name / "OUTCAR").steps
    progress = read_progress(RUNS / name / "stdout.txt")
    printed = progress.enthalpies[[step.iteration for step in steps]]
    assert progress.finished
    assert progress.energy_calls >= len(progress.enthalpies)
    assert [step.enthalpy for step in steps] == pytest.approx(printed, abs=1e-8)
    assert read_oszicar(RUNS / name / "OSZICAR") == pytest.approx(printed, abs=1e-8)
    final = read_poscar(RUNS / name / "CONTCAR")
    assert final.cell.array == pytest.approx(steps[-1].cell, abs=1e-6)
    pressure = (steps[-1].enthalpy - steps[-1].energy) / final.get_volume()
    assert pressure * 160.2176565 == pytest.approx(5.0 if "5GPa" in name else 0.0, abs=1e-6)


def test_modes_are_orthonormal_with_three_translations():
    modes = read_outcar(RUNS / "ok_phonon_jobt22" / "OUTCAR").modes
    vectors = modes.eigenvectors.reshape(6, 6)
    assert vectors @ vectors.T == pytest.approx(np.eye(6), abs=1e-8)
    assert np.abs(modes.frequencies[3:]).max() < 1e-5
    assert modes.frequencies[0] == pytest.approx(7.45864, abs=1e-5)  # 248.7935 cm-1


@pytest.mark.parametrize("n_lines", range(1, 33))
def test_a_cut_outcar_never_passes_for_a_whole_one(tmp_path, n_lines):
    lines = (RUNS / "ok_singlepoint" / "OUTCAR").read_text().splitlines()
    path = tmp_path / "OUTCAR"
    path.write_text("\n".join(lines[:n_lines]))
    try:
        assert not read_outcar(path).finished
    except ReadError as error:
        assert f"{path}, line " in str(error)  # noqa: PT017


def test_a_damaged_number_is_located(tmp_path):
    text = (RUNS / "ok_singlepoint" / "OUTCAR").read_text()
    (tmp_path / "OUTCAR").write_text(text.replace("total enthalpy=", "total enthalpy= x"))
    with pytest.raises(ReadError, match=r"OUTCAR, line \d+: expected .*iter"):
        read_outcar(tmp_path / "OUTCAR")


def test_poscars_round_trip_in_the_order_of_the_species(tmp_path):
    atoms = read_poscar(RUNS / "err_species_order" / "POSCAR")
    path = tmp_path / "POSCAR"
    path.write_text(format_poscar(atoms, ("Mg", "Sn")))
    again = read_poscar(path)
    assert again.get_chemical_symbols() == ["Mg", "Mg", "Sn"]
    assert again.cell.array == pytest.approx(atoms.cell.array, abs=1e-15)
    assert again.positions == pytest.approx(atoms.positions[[1, 2, 0]], abs=1e-14)
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    with pytest.raises(ReadError, match="line 11: expected coordinates"):
        read_poscar(path)
    with pytest.raises(ValueError, match="structure has Sn; the species are Mg"):
        format_poscar(atoms, ("Mg",))
