"""The `maise` program as a calculator: replayed and computed runs, every failure, and the real program."""

import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import CalculationFailed, CalculatorSetupError
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

from maise_bridge import Maise, MaiseCalculator, MaiseProfile, read_model, write_model
from maise_bridge.poscar import read_poscar

DATA = Path(__file__).parents[1] / "data"
RUNS = DATA / "maise_runs"
MODEL = DATA / "bridge" / "si.model"
MIXED = DATA / "bridge" / "mgsi.model"
STANDIN = Path(__file__).with_name("standin_maise.py")


def standin(*arguments, **options):
    return MaiseProfile(shlex.join([sys.executable, str(STANDIN), *map(str, arguments)]), **options)


@pytest.fixture
def atoms():
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=2)
    return atoms


@pytest.fixture
def replayed(tmp_path):
    """Structure and calculator of a sample, with a model of ours that covers its species."""

    def make(name, **options):
        atoms = read_poscar(RUNS / ("ok_singlepoint" if name == "err_no_poscar_exit0" else name) / "POSCAR")
        symbols = tuple(dict.fromkeys(atoms.symbols))
        source = read_model(MODEL if len(symbols) == 1 else MIXED)
        write_model(replace(source, species=symbols), tmp_path / "any.model")
        calc = Maise(tmp_path / "any.model", profile=standin("replay", RUNS / name), directory=tmp_path / "run")
        return atoms, calc

    return make


def test_a_replayed_single_point_is_read_with_all_decimals(replayed):
    atoms, calc = replayed("ok_singlepoint")
    atoms.calc = calc
    assert atoms.get_potential_energy() == -15.7659590094229181
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    assert atoms.get_forces()[0] == pytest.approx([-0.247682, 0.050968, 0.034644], abs=1e-9)
    assert atoms.get_stress()[[0, 3]] == pytest.approx([0.00358118, 0.00209603], abs=1e-8)


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("err_mmax", "as many neighbours as MMAX allows; pass a larger mmax"),
        ("err_nan_coincident_atoms_exit0", "not finite: atoms coincide"),
        ("err_no_model", "cannot read the file 'model'"),
        ("err_no_ndim", "a tag of the file 'setup' is missing"),
        ("err_no_rlxt", "a tag of the file 'setup' is missing"),
        ("err_no_poscar_exit0", "found no structure: POSCAR is missing or empty"),
        ("err_species", "does not cover a species"),
        ("err_species_order", "not in the order of the model's"),
        ("warn_short_distance_exit0", "closer than MAISE accepts; move them apart, or pass shortest_distance=0"),
        ("ok_singlepoint_energy_only_output", "printed no energy, forces or stress"),
    ],
)
def test_every_bad_run_fails_with_its_cause_and_without_results(replayed, name, cause):
    atoms, calc = replayed(name)
    with pytest.raises(CalculationFailed, match=cause):
        calc.get_potential_energy(atoms)
    assert calc.results == {}


def test_relaxations_that_stop_at_the_last_step_say_so(replayed):
    atoms, calc = replayed("ok_relax_stopped_at_MITR")
    with pytest.raises(CalculationFailed, match=r"not converged after 3 of 3 iterations.*raise it or max_steps"):
        calc.relax(atoms, max_steps=3, energy_tolerance=1e-9)


@pytest.mark.parametrize("n_lines", [3, 12, 20, 28, 31])
def test_runs_that_are_cut_off_fail_even_over_an_old_good_one(replayed, tmp_path, n_lines):
    atoms, calc = replayed("ok_singlepoint")
    calc.get_potential_energy(atoms)
    cut = shutil.copytree(RUNS / "ok_singlepoint", tmp_path / "cut")
    (cut / "OUTCAR").write_text("\n".join((cut / "OUTCAR").read_text().splitlines()[:n_lines]))
    calc.profile = standin("replay", cut)
    atoms.positions[0] += 0.01
    with pytest.raises(CalculationFailed, match=r"damaged: .*line|cut off"):
        calc.get_potential_energy(atoms)
    (cut / "OUTCAR").unlink()
    with pytest.raises(CalculationFailed, match="no OUTCAR"):
        calc.get_potential_energy(atoms)


@pytest.mark.parametrize(
    ("command", "error", "message"),
    [
        ("no-such-maise", CalculatorSetupError, r"cannot start 'no-such-maise' .*section \[maise\]"),
        ("sh -c 'kill -9 $$'", CalculationFailed, "killed by SIGKILL; out of memory"),
        ("sh -c 'exit 137'", CalculationFailed, "killed by SIGKILL"),
        ("sleep 60", CalculationFailed, "longer than the timeout of 0.2 s"),
    ],
)
def test_commands_that_do_not_run_are_reported(atoms, tmp_path, command, error, message):
    calc = Maise(MODEL, profile=MaiseProfile(command, timeout=0.2), directory=tmp_path)
    with pytest.raises(error, match=message):
        calc.get_potential_energy(atoms)


def test_a_killed_run_leaves_no_result_and_the_next_one_works(replayed, tmp_path):
    atoms, calc = replayed("ok_singlepoint")
    good = calc.profile
    calc.get_potential_energy(atoms)
    outcar = shlex.quote(str(RUNS / "ok_singlepoint" / "OUTCAR"))
    calc.profile = MaiseProfile(shlex.join(["sh", "-c", f"head -c 900 {outcar} > OUTCAR; kill -9 $$"]))
    atoms.positions[0] += 0.01
    with pytest.raises(CalculationFailed, match="killed by SIGKILL; out of memory"):
        calc.get_potential_energy(atoms)
    assert calc.results == {}
    with pytest.raises(CalculationFailed, match=r"no OUTCAR|damaged|cut off"):
        calc.template.read_results(tmp_path / "run")  # what it left is not taken for a result
    calc.profile = good
    assert calc.get_potential_energy(atoms) == -15.7659590094229181


def test_a_disk_that_fills_during_the_run_is_an_error(replayed):
    atoms, calc = replayed("ok_singlepoint")
    outcar = shlex.quote(str(RUNS / "ok_singlepoint" / "OUTCAR"))
    calc.profile = MaiseProfile(shlex.join(["sh", "-c", f"trap '' XFSZ; ulimit -f 1; cp {outcar} OUTCAR"]))
    with pytest.raises(CalculationFailed, match=r"ended with exit code 1.*File too large"):
        calc.get_potential_energy(atoms)
    assert calc.results == {}


def test_a_disk_that_is_full_before_the_run_is_an_error(tmp_path):
    code = f"""
import resource, signal
from ase.build import bulk
from ase.calculators.calculator import CalculationFailed
from maise_bridge import Maise
calc = Maise({str(MODEL)!r}, directory={str(tmp_path)!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
try:
    calc.get_potential_energy(bulk("Si", cubic=True))
except CalculationFailed as error:
    assert "cannot write the inputs of maise" in str(error), error
    assert calc.results == {{}}
else:
    raise AssertionError("no error")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_mistakes_are_found_before_anything_runs(atoms, tmp_path):
    calc = Maise(MODEL, profile=MaiseProfile("no-such-maise"), directory=tmp_path)
    with pytest.raises(CalculatorSetupError, match="structure has Mg; the species are Si; pass another model"):
        calc.get_potential_energy(bulk("MgSi", "zincblende", a=6))
    slab = atoms.copy()
    slab.pbc = [True, True, False]
    with pytest.raises(CalculatorSetupError, match="use MaiseCalculator"):
        calc.get_potential_energy(slab)
    (tmp_path / "bad.model").write_text("\n".join(MODEL.read_text().splitlines()[:50]))
    with pytest.raises(CalculatorSetupError, match=r"bad\.model, line"):
        Maise(tmp_path / "bad.model", profile=calc.profile, directory=tmp_path).get_potential_energy(atoms)
    atoms.positions[0] = np.nan
    with pytest.raises(CalculationFailed, match="not finite"):
        calc.get_potential_energy(atoms)


def structures():
    crystal = bulk("Si", cubic=True)
    crystal.rattle(0.1, seed=1)
    mixed = bulk("MgSi", "zincblende", a=6, cubic=True)[[1, 0, 3, 5, 2, 7, 4, 6]]
    mixed.rattle(0.1, seed=2)
    mixed.positions += 20
    cluster = Atoms("Si5", [[0, 0, 0], [2.4, 0, 0], [0, 2.5, 0], [0.2, 0.1, 2.6], [2.3, 2.4, 0.3]])
    return [(crystal, MODEL), (mixed, MIXED), (cluster, MODEL)]


def assert_same(atoms, model, calc, force_error):
    native = MaiseCalculator(model)
    assert calc.get_potential_energy(atoms) == pytest.approx(native.get_potential_energy(atoms), abs=1e-9)
    assert calc.get_forces(atoms) == pytest.approx(native.get_forces(atoms), abs=force_error)
    if atoms.pbc.all():
        assert calc.get_stress(atoms) == pytest.approx(native.get_stress(atoms), abs=1e-11)


@pytest.mark.parametrize(("atoms", "model"), structures())
def test_a_whole_run_gives_the_numbers_of_the_native_potential(atoms, model, tmp_path):
    assert_same(atoms, model, Maise(model, profile=standin("compute"), directory=tmp_path), 6e-7)


@pytest.mark.maise
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(("atoms", "model"), structures())
def test_the_real_program_gives_the_numbers_of_the_native_potential(atoms, model, exact, tmp_path):
    calc = Maise(model, directory=tmp_path, shortest_distance=0, exact_forces=exact)
    assert_same(atoms, model, calc, 1e-10 if exact else 6e-7)


@pytest.mark.maise
def test_the_real_program_works_in_optimizers_and_relaxes_itself(atoms, tmp_path):
    calc = Maise(MODEL, directory=tmp_path, shortest_distance=0)
    assert calc.profile.version().count(".") == 2
    before = calc.get_potential_energy(atoms)
    result = calc.relax(atoms, energy_tolerance=1e-7)
    assert result.converged
    assert result.enthalpies[0] == pytest.approx(before, abs=1e-10)
    assert result.atoms.get_potential_energy() == pytest.approx(result.enthalpies[-1], abs=1e-9)
    atoms.calc = calc
    BFGS(FrechetCellFilter(atoms), logfile=None).run(steps=3)
    assert atoms.get_potential_energy() < before
    with pytest.raises(CalculationFailed, match="mmax"):
        Maise(MODEL, directory=tmp_path, mmax=10).get_potential_energy(atoms)
