"""The calculator as ASE's own tools use it: found by name, in optimizers, MD, NEB, phonons, equations of state."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import phonopy
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators import calculator as ase_calculators
from ase.calculators.calculator import ReadError, get_calculator_class
from ase.calculators.names import names
from ase.cli.main import main as ase_main
from ase.db import connect
from ase.eos import calculate_eos
from ase.filters import FrechetCellFilter, StrainFilter
from ase.io import read, write
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS, FIRE
from ase.optimize.precon import Exp, PreconLBFGS
from phonopy.structure.atoms import PhonopyAtoms

from maise_bridge import MaiseCalculator, plugin

RUNS = Path(__file__).parents[1] / "data" / "maise_runs"
LATTICE_CONSTANT = 5.4748  # Å, of the shipped model, see test_equations_of_state_agree_with_a_relaxation


@pytest.fixture(scope="module")
def calc():
    return MaiseCalculator("silicon")


def crystal(calc, a=LATTICE_CONSTANT, rattle=0.0, cubic=True):
    atoms = bulk("Si", a=a, cubic=cubic)
    atoms.rattle(rattle, seed=3)
    atoms.calc = calc
    return atoms


@pytest.mark.parametrize("module", ["maise_bridge", "ase.io"])
def test_ase_knows_the_calculator_by_name_before_anything_heavy_is_loaded(module):
    code = (
        f"import sys, {module}; from ase.calculators.calculator import get_calculator_class as get;"
        "c = get('maise'); loaded = {'numba', 'torch', 'vesin'} & set(sys.modules); assert not loaded, loaded;"
        "import maise_bridge; assert c is maise_bridge.MaiseCalculator; assert c().species == ('Si',)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
    assert "maise" in names


def test_the_plugin_is_found_and_listed(capsys):
    from ase._4.plugins import plugins

    (found,) = (entry for entry in plugins.calculators if entry.name == "maise")
    assert found() is MaiseCalculator
    assert found.version
    ase_main(args=["info", "--plugins"])
    assert "\nCalculatorPlugin\n----------------\nmaise\n" in capsys.readouterr().out


def test_without_plugins_in_ase_there_are_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "ase._4.plugins.plugin", None)
    assert plugin.__ase_plugins__ == set()


def test_a_class_that_another_package_registered_stays_with_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(ase_calculators, "external_calculators", {"maise": Atoms})
    monkeypatch.setattr(plugin, "external_calculators", {"maise": Atoms})
    plugin.register()
    assert get_calculator_class("maise") is Atoms
    assert "'maise' is <class 'ase.atoms.Atoms'>, registered before" in caplog.text


def test_the_command_line_of_ase_runs_it(tmp_path, monkeypatch, calc):
    monkeypatch.chdir(tmp_path)
    atoms = crystal(calc, rattle=0.05)
    write("start.xyz", atoms.copy())
    ase_main(args=["run", "maise", "start.xyz", "-p", "model=silicon,core_repulsion=50.0", "-o", "end.xyz"])
    again = read("end.xyz")
    assert again.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
    assert again.get_stress() == pytest.approx(atoms.get_stress(), abs=1e-7)


def test_outputs_of_maise_are_a_format_of_ase():
    points = read(RUNS / "ok_relax_full_first_last_5GPa" / "OUTCAR", ":", format="maise-out")
    assert points[0].info["iteration"] == 0
    assert len(points) > 1
    last = read(RUNS / "ok_relax_full_first_last_5GPa" / "OUTCAR", format="maise-out")
    assert last.get_potential_energy() == points[-1].get_potential_energy()
    single = read(RUNS / "ok_singlepoint" / "OUTCAR", format="maise-out")
    assert single.get_potential_energy() == -15.76595901
    assert single.get_forces()[0] == pytest.approx([-0.247682, 0.050968, 0.034644], abs=1e-9)
    assert single.get_stress()[[0, 3]] == pytest.approx([0.00358118, 0.00209603], abs=1e-8)
    assert single.get_chemical_formula() == "Sn4"
    assert single.get_volume() / 4 == pytest.approx(29.726096, abs=1e-4)


def test_outputs_without_positions_or_end_are_refused(tmp_path):
    with pytest.raises(ReadError, match=r"OUTCAR: shows no positions; run maise with COUT 12|no species"):
        read(RUNS / "ok_singlepoint_energy_only_output" / "OUTCAR", format="maise-out")
    text = (RUNS / "ok_singlepoint" / "OUTCAR").read_text()
    for end, message in ((text.index("  iter   0"), "OUTCAR, line"), (text.index(" Total CPU"), "OUTCAR: cut off")):
        (tmp_path / "OUTCAR").write_text(text[:end])
        with pytest.raises(ReadError, match=message):
            read(tmp_path / "OUTCAR", format="maise-out")
    (tmp_path / "OUTCAR").write_text(text.replace("   1.293246", "        nan"))
    with pytest.raises(ReadError, match="iteration 0 is not finite"):
        read(tmp_path / "OUTCAR", format="maise-out")


def test_rows_of_a_database_bring_their_calculator_back(tmp_path, calc):
    atoms = crystal(calc, rattle=0.05)
    energy = atoms.get_potential_energy()
    with connect(tmp_path / "some.db") as database:
        database.write(atoms)
        row = database.get(id=1)
    again = row.toatoms()
    again.calc = get_calculator_class(row.calculator)(**row.calculator_parameters)
    assert isinstance(again.calc, MaiseCalculator)
    again.positions[0, 0] += 1e-3
    assert again.get_potential_energy() != energy
    again.positions[0, 0] -= 1e-3
    assert again.get_potential_energy() == pytest.approx(energy, abs=1e-10)


@pytest.mark.parametrize("optimizer", [BFGS, FIRE])
def test_cells_relax_to_the_crystal_they_come_from(optimizer, calc):
    atoms = crystal(calc, a=5.6, rattle=0.05, cubic=False)
    assert optimizer(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-3, steps=200)
    expected = crystal(calc, cubic=False)
    assert atoms.get_potential_energy() == pytest.approx(expected.get_potential_energy(), abs=1e-5)
    assert atoms.get_volume() == pytest.approx(LATTICE_CONSTANT**3 / 4, rel=1e-3)
    assert np.abs(atoms.get_stress()).max() * atoms.get_volume() < 0.01


def test_strain_filters_relieve_the_stress_alone(calc):
    atoms = crystal(calc, a=5.3, cubic=False)
    scaled = atoms.get_scaled_positions()
    assert BFGS(StrainFilter(atoms), logfile=None).run(fmax=1e-3, steps=50)
    assert np.abs(atoms.get_stress()).max() * atoms.get_volume() < 1e-3
    np.testing.assert_allclose(atoms.get_scaled_positions(), scaled, atol=1e-12)


def test_preconditioned_optimizers_work(calc):
    atoms = crystal(calc, rattle=0.1)
    assert PreconLBFGS(atoms, precon=Exp(A=3), logfile=None).run(fmax=0.01, steps=100)
    assert atoms.get_potential_energy() == pytest.approx(crystal(calc).get_potential_energy(), abs=1e-4)


def energy_errors(calc, time_step, n_steps):
    """Largest deviation of the total energy from its start, eV, and the mean kinetic energy, eV."""
    atoms = crystal(calc)
    thermalize_momenta(atoms, temperature_K=600, rng=np.random.default_rng(1))
    Stationary(atoms)
    totals, kinetic = [], []

    def watch():
        totals.append(atoms.get_total_energy())
        kinetic.append(atoms.get_kinetic_energy())

    dynamics = VelocityVerlet(atoms, timestep=time_step * units.fs, logfile=None)
    dynamics.attach(watch)
    dynamics.run(n_steps)
    assert np.abs(atoms.get_momenta().sum(axis=0)).max() < 1e-9
    return np.abs(np.array(totals) - totals[0]).max(), float(np.mean(kinetic))


def test_molecular_dynamics_conserve_energy_to_second_order(calc):
    # velocity Verlet conserves a shadow energy that differs by (omega dt)^2/8 of the energy of a mode; omega <= 16 THz
    fine, kinetic = energy_errors(calc, 1.0, 300)
    coarse, _ = energy_errors(calc, 2.0, 150)
    assert kinetic > 0.1
    assert fine < (2 * np.pi * 16e12 * 1e-15) ** 2 / 8 * 2 * kinetic
    assert 2.5 < coarse / fine < 6.0


def test_the_hop_of_a_vacancy_has_a_symmetric_barrier(calc):
    perfect = crystal(calc)
    first = perfect.copy()
    del first[0]  # atom 1 of `perfect`, now 0, is a neighbour of the vacancy
    last = first.copy()
    last.positions[0] = perfect.positions[0]
    for end in (first, last):
        end.calc = calc
        BFGS(end, logfile=None).run(fmax=0.02, steps=100)
    images = [first, *(first.copy() for _ in range(3)), last]
    band = NEB(images, allow_shared_calculator=True, method="improvedtangent")
    band.interpolate()
    for image in images:
        image.calc = calc
    FIRE(band, logfile=None).run(fmax=0.1, steps=30)
    energies = np.array([image.get_potential_energy() for image in images]) - first.get_potential_energy()
    np.testing.assert_allclose(energies, energies[::-1], atol=2e-3)
    assert energies[2] == energies.max()
    assert energies[2] > 0.1


def test_phonopy_finds_sound_and_a_triple_optical_mode_at_gamma(calc):
    atoms = crystal(calc, cubic=False)
    cell = PhonopyAtoms(
        symbols=list(atoms.symbols), cell=atoms.cell.array, scaled_positions=atoms.get_scaled_positions()
    )
    phonon = phonopy.Phonopy(cell, supercell_matrix=np.eye(3) * 2, primitive_matrix=np.eye(3))
    phonon.generate_displacements(distance=0.01)
    forces = []
    for displaced in phonon.supercells_with_displacements:
        supercell = Atoms(displaced.symbols, displaced.positions, cell=displaced.cell, pbc=True)
        supercell.calc = calc
        forces.append(supercell.get_forces())
    phonon.forces = forces
    phonon.produce_force_constants()
    frequencies = phonon.run_qpoints([[0, 0, 0]]).frequencies[0]
    np.testing.assert_allclose(frequencies[:3], 0.0, atol=1e-3)  # forces add up to zero, so no sum rule is imposed
    np.testing.assert_allclose(frequencies[3:], frequencies[3:].mean(), rtol=1e-6)
    assert frequencies[3] == pytest.approx(15.0, abs=0.3)  # THz, models/README.md


def test_equations_of_state_agree_with_a_relaxation(calc):
    atoms = crystal(calc, a=5.45, cubic=False)
    volume, energy, bulk_modulus = calculate_eos(atoms, npoints=7, eps=0.02).fit(warn=False)
    FIRE(FrechetCellFilter(atoms, hydrostatic_strain=True), logfile=None).run(fmax=1e-4, steps=100)
    assert volume == pytest.approx(atoms.get_volume(), rel=1e-3)
    assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
    assert bulk_modulus / units.GPa == pytest.approx(89.1, abs=2)  # models/README.md
    assert (4 * atoms.get_volume()) ** (1 / 3) == pytest.approx(LATTICE_CONSTANT, abs=2e-3)
