"""Labelling: the same set of labels whatever happens on the way, causes of failures, and every kind of refusal."""

import errno
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import CalculatorSetupError
from ase.calculators.emt import EMT
from ase.io import read, write
from ase.units import Ry

from maise_bridge.cli import main
from maise_bridge.cli.label import parse_options
from maise_bridge.dataset import read_labels
from maise_bridge.labelling import KnownStructures, Limits, files, make_settings, open_run, structure_id
from maise_bridge.labelling.calculators import Computed, Program, compute, open_program, primitive_cell
from maise_bridge.labelling.processes import WorkerPool
from maise_bridge.labelling.settings import k_mesh
from maise_bridge.labelling.worker import check_results

FAKES = '''
"""Calculators that misbehave on some structures, told by the number of atoms."""

import ctypes
import os
import subprocess
import time

from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT

__version__ = "7"


class Slow(EMT):
    def __init__(self, seconds=0.0):
        super().__init__()
        self.seconds = seconds

    def calculate(self, *args):
        time.sleep(self.seconds)
        super().calculate(*args)
        print("noise on standard output")


class Moody(EMT):
    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        if len(atoms) == 2:
            os.kill(os.getpid(), 11)
        if len(atoms) == 3:
            subprocess.Popen(["sleep", "1000"])
            ctypes.PyDLL(None).sleep(1000)  # holds the interpreter's lock, as a hanging C library does
        if len(atoms) == 4:
            self.results["forces"][0, 0] = float("nan")
        if len(atoms) == 5:
            raise RuntimeError("the density did\\nnot converge")
        if len(atoms) == 6:
            self.results["forces"] *= 1e4
        if len(atoms) == 7:
            raise SystemExit(3)


class Busy(EMT):
    def calculate(self, *args):
        super().calculate(*args)
        while len(self.atoms) == 2:
            pass


def no_calculator():
    return 3


class Poor(Calculator):
    implemented_properties = ["energy"]
'''


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("fakes.py").write_text(FAKES)
    return tmp_path


def crystals(*sizes):
    """Different copper crystals with these numbers of atoms."""
    rng = np.random.default_rng(len(sizes))
    found = []
    for number, size in enumerate(sizes):
        atoms = bulk("Cu", a=3.5 + 0.02 * number) * (size, 1, 1)
        atoms.rattle(0.05, rng=rng)
        atoms.info.update(config_type=f"rattle_{number}", spread=np.float64(0.5))
        found.append(atoms)
    return found


def label(*arguments, status=0):
    assert main(["label", *map(str, arguments)]) == status


def labels(path="labels.extxyz"):
    """Energy, forces, stress and tag of each label by the identity of the structure."""
    return {
        atoms.info["structure"]: (
            atoms.get_potential_energy(),
            atoms.get_forces().tolist(),
            atoms.get_stress().tolist(),
            atoms.info["config_type"],
        )
        for atoms in read(path, ":")
    }


def failures(path="labels.extxyz"):
    return [json.loads(line) for line in Path(f"{path}.failures.jsonl").read_text().splitlines()]


def test_labels_are_those_of_the_calculator_with_settings_versions_and_seconds(capsys):
    structures = crystals(1, 4)
    for atoms in structures:
        atoms.info |= {"path": "two\nlines", "energy": 3.0, "a table": [1], "structure": "none"}
    write("some.traj", structures)
    label("some.traj", "--calculator", "fakes:Slow", "--set", "seconds=0.0", "--out", "labels.extxyz")
    assert "2 structures: 2 to label" in capsys.readouterr().out
    for atoms, found in zip(read("some.traj", ":"), read("labels.extxyz", ":"), strict=True):
        atoms.calc = EMT()
        assert found.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-12)
        np.testing.assert_allclose(found.get_forces(), atoms.get_forces(), atol=1e-8)  # digits of the format
        np.testing.assert_allclose(found.get_stress(), atoms.get_stress(), atol=1e-12)
        assert found.info["structure"] == structure_id(atoms)
        assert found.info["settings"] == {"calculator": "fakes:Slow", "seconds": 0.0}
        assert found.info["program"] == {"fakes:Slow": "7", "class": "Slow"}
        assert set(found.info["versions"]) == {"ase", "numpy", "python"}
        assert 0.0 <= found.info["cpu"] < 60.0
        assert (found.info["spread"], found.info["path"]) == (0.5, "two lines")
        assert not {"energy", "a table"} & set(found.info)
    assert not Path("labels.extxyz.scratch").exists()
    assert len(read_labels("labels.extxyz")) == 2


def test_order_repeats_and_workers_change_nothing():
    structures = crystals(1, 2, 3, 4)
    write("ahead.extxyz", structures)
    write("back.traj", [*structures[::-1], structures[2]])
    label("ahead.extxyz", "--calculator", "fakes:Slow", "--out", "one.extxyz")
    label("back.traj", "--calculator", "fakes:Slow", "--out", "two.extxyz", "--workers", 2)
    one, two = labels("one.extxyz"), labels("two.extxyz")
    assert one.keys() == two.keys() == {structure_id(atoms) for atoms in structures}
    for identity, (energy, forces, *_) in one.items():
        assert two[identity][0] == pytest.approx(energy, abs=1e-7)  # positions differ by the digits of the format
        np.testing.assert_allclose(two[identity][1], forces, atol=1e-6)


def test_a_longer_input_in_another_order_is_gone_on_with(capsys):
    structures = crystals(1, 2, 3)
    write("first.extxyz", structures[:2])
    write("longer.extxyz", structures[::-1])
    label("first.extxyz", "--calculator", "fakes:Slow", "--out", "labels.extxyz")
    before = Path("labels.extxyz").read_bytes()
    label("longer.extxyz", "--calculator", "fakes:Slow", "--out", "labels.extxyz")
    assert "3 structures: 1 to label, 2 labelled before" in capsys.readouterr().out
    assert Path("labels.extxyz").read_bytes().startswith(before)
    assert set(labels()) == {structure_id(atoms) for atoms in structures}


def test_misbehaving_calculators_fail_their_structure_only(capsys):
    write("some.extxyz", crystals(1, 2, 3, 4, 5, 6, 7, 8))
    line = ("some.extxyz", "--calculator", "fakes:Moody", "--out", "labels.extxyz", "--workers", 2, "--time-limit", 5)
    label(*line, status=1)
    assert sorted(len(atoms) for atoms in read("labels.extxyz", ":")) == [1, 8]
    causes = {entry["name"].rpartition("@")[2]: entry["cause"] for entry in failures()}
    assert causes == {
        "1": causes["1"],
        "2": "time limit: over 5 s on the clock",
        "3": "ValueError: forces not finite",
        "4": "RuntimeError: the density did not converge",
        "5": causes["5"],
        "6": "the process ended with status 3",
    }
    assert causes["1"].startswith("the process was killed by SIGSEGV")
    assert causes["5"].startswith("ValueError: absurd largest force: ")
    assert sleepers() == []
    out = capsys.readouterr().out
    assert "FAILED: ValueError: forces not finite" in out
    assert "6 new failures" in out
    label(*line, status=1)  # failures are not tried again
    assert "0 to label, 2 labelled before, 6 failed before" in capsys.readouterr().out
    assert len(failures()) == 6


def sleepers():
    """Processes that the fake calculators started and that still run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cmdline").read_bytes() == b"sleep\x001000\x00" and (entry / "cwd").resolve() == Path.cwd():
                found.append(entry.name)
        except OSError:  # ended meanwhile, or another user's
            continue
    return found


def test_retry_labels_what_failed_before(capsys):
    write("some.extxyz", crystals(5))
    line = ("some.extxyz", "--calculator", "fakes:Moody", "--out", "labels.extxyz")
    label(*line, status=1)
    assert not Path("labels.extxyz").exists()
    Path("fakes.py").write_text(FAKES.replace("len(atoms) == 5", "False"))
    label(*line, status=1)
    label(*line, "--retry")
    assert "1 new labels" in capsys.readouterr().out
    label(*line)
    assert len(failures()) == 1


def test_cpu_seconds_are_limited():
    write("some.extxyz", crystals(1, 2))
    label("some.extxyz", "--calculator", "fakes:Busy", "--out", "labels.extxyz", "--cpu-limit", 1, status=1)
    (failure,) = failures()
    assert failure["cause"] == "time limit: over 1 s of CPU time"
    assert 1.0 < failure["cpu"] < 10.0
    assert len(labels()) == 1


def test_a_killed_run_loses_at_most_what_was_running():
    structures = crystals(*range(1, 8))
    write("some.extxyz", structures)
    line = ["some.extxyz", "--calculator", "fakes:Slow", "--set", "seconds=0.2", "--out", "labels.extxyz"]
    command = [sys.executable, "-m", "maise_bridge", "label", *line, "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_until(lambda: Path("labels.extxyz").exists() and Path("labels.extxyz").read_text().count("pbc=") >= 3)
    workers = children(process.pid)
    assert process.poll() is None, "it ended before it could be killed"
    process.kill()
    process.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert workers
    n_before = len(labels())
    assert 3 <= n_before < 7
    label(*line, "--workers", 2)
    write("all.extxyz", structures)
    label("all.extxyz", *line[1:-1], "whole.extxyz")
    assert labels() == labels("whole.extxyz")


def test_a_hanging_worker_ends_with_a_killed_run():
    write("some.extxyz", crystals(3))
    command = [sys.executable, "-m", "maise_bridge", "label", "some.extxyz", "--out", "labels.extxyz"]
    process = subprocess.Popen([*command, "--calculator", "fakes:Moody"], stdout=subprocess.DEVNULL)
    wait_until(lambda: len(sleepers()) == 1)
    workers = children(process.pid)
    process.kill()
    process.wait()
    wait_until(lambda: not sleepers() and not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert workers


def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)


def test_an_interrupted_run_says_how_to_go_on():
    write("some.extxyz", crystals(1, 2, 3, 4))
    line = ["some.extxyz", "--calculator", "fakes:Slow", "--set", "seconds=1.0", "--out", "labels.extxyz"]
    command = [sys.executable, "-m", "maise_bridge", "label", *line]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: Path("labels.extxyz").exists() and Path("labels.extxyz").stat().st_size > 0)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "new labels, 0 before" in out
    assert "run the same line again to go on" in err
    assert not Path("labels.extxyz.scratch").exists()


@pytest.fixture
def labelled():
    """A label file of three structures, and the line that made it."""
    write("some.extxyz", crystals(1, 2, 3))
    line = ("some.extxyz", "--calculator", "fakes:Slow", "--out", "labels.extxyz")
    label(*line)
    return line


def test_a_file_cut_anywhere_is_repaired(labelled):
    whole = Path("labels.extxyz").read_bytes()
    settings = make_settings("fakes:Slow")
    structures = [(str(number), atoms) for number, atoms in enumerate(read("some.extxyz", ":"))]
    ends = [0]
    for n_atoms in (1, 2, 3):
        ends.append(ends[-1] + sum(len(line) + 1 for line in whole[ends[-1] :].split(b"\n")[: n_atoms + 2]))
    assert ends[-1] == len(whole)
    for cut in [*range(0, len(whole), 37), *(end + shift for end in ends for shift in (-1, 1, 2))]:
        if not 0 <= cut < len(whole):
            continue
        n_whole = sum(cut >= end for end in ends[1:])
        for tail in (b"", b"\0" * 5):
            Path("labels.extxyz").write_bytes(whole[:cut] + tail)
            with open_run(structures, settings, Path("labels.extxyz")) as run:
                assert (run.n_labelled, len(run.jobs)) == (n_whole, 3 - n_whole)
            path = Path("labels.extxyz")
            assert (path.read_bytes() if path.exists() else b"") == whole[: ends[n_whole]]
    Path("labels.extxyz").write_bytes(whole[:-40])
    label(*labelled)
    assert Path("labels.extxyz").read_bytes()[: ends[2]] == whole[: ends[2]]
    assert len(labels()) == 3


def test_a_full_disk_leaves_whole_frames(labelled, monkeypatch):
    whole = Path("labels.extxyz").read_bytes()
    real_write, room = os.write, [100]

    def write_little(descriptor, data):
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = real_write(descriptor, bytes(data)[: room[0]])
        room[0] -= count
        return count

    structures = [("new", crystals(1, 4)[1])]
    with (
        open_run(structures, make_settings("fakes:Slow"), Path("labels.extxyz")) as run,
        monkeypatch.context() as patch,
    ):
        patch.setattr(files.os, "write", write_little)
        with pytest.raises(OSError, match=r"cannot write labels\.extxyz: No space left on device; .* run again"):
            list(run.outcomes())
    assert Path("labels.extxyz").read_bytes() == whole


def test_two_settings_and_two_programs_are_not_mixed(labelled, capsys):
    line = [*labelled[:3], "--set", "seconds=0.01", *labelled[3:]]
    label(*line, status=2)
    err = capsys.readouterr().err
    assert "labels.extxyz, structure 0: was labelled with seconds = None, now it is 0.01" in err
    write("some.extxyz", crystals(1, 2, 3, 4))
    Path("fakes.py").write_text(FAKES.replace('"7"', '"8"'))
    before = Path("labels.extxyz").read_bytes()
    label(*labelled, status=2)
    assert "was labelled with fakes:Slow 7, now it is 8; labels are not mixed" in capsys.readouterr().err
    assert Path("labels.extxyz").read_bytes() == before


def test_one_process_at_a_time_labels_to_a_file(labelled, capsys):
    structures = [("0", crystals(1)[0])]
    with open_run(structures, make_settings("fakes:Slow"), Path("labels.extxyz")):
        label(*labelled, status=2)
    assert "another process labels to it" in capsys.readouterr().err


def test_known_structures_are_left_out(labelled, capsys):
    moved = read("labels.extxyz", "0")
    moved.positions += 1e-6 + moved.cell[0]
    write("known.extxyz", [moved])
    label(*labelled[:-1], "other.extxyz", "--known", "known.extxyz")
    assert "3 structures: 2 to label, 1 known" in capsys.readouterr().out
    moved.positions[0] += 1e-3
    assert read("labels.extxyz", "0") in KnownStructures([read("labels.extxyz", "0")])
    assert bulk("Al") not in KnownStructures([moved])
    two = read("labels.extxyz", "1")
    shifted = two.copy()
    shifted.positions[0] += 1e-3
    assert shifted not in KnownStructures([two])


def test_files_of_others_are_never_changed(capsys):
    write("some.extxyz", crystals(1))
    line = ("some.extxyz", "--calculator", "fakes:Slow", "--out", "other.extxyz")
    cases = {
        "is no number of atoms": b"data_crystal\n_cell_length_a 3\n",
        "was not written by label": Path("some.extxyz").read_bytes(),
        "cut off and not written by label": Path("some.extxyz").read_bytes()[:-1],
    }
    for message, contents in cases.items():
        Path("other.extxyz").write_bytes(contents)
        label(*line, status=2)
        assert message in capsys.readouterr().err
        assert Path("other.extxyz").read_bytes() == contents


def test_a_cut_or_foreign_file_of_failures(labelled, capsys):
    path = Path("labels.extxyz.failures.jsonl")
    entry = {"structure": "x", "name": "y", "cause": "z", "cpu": None, "settings": "s"}
    path.write_text(json.dumps(entry) + "\n" + '{"structure": "')
    label(*labelled)
    assert path.read_text() == json.dumps(entry) + "\n"
    path.write_text("notes\n")
    label(*labelled, status=2)
    assert "line 1: is no failure written by label" in capsys.readouterr().err


def test_the_identity_of_a_structure_is_its_content():
    atoms = crystals(3)[0]
    other = atoms.copy()
    other.info.clear()
    assert structure_id(other) == structure_id(atoms)
    write("a.extxyz", atoms)
    assert structure_id(read("a.extxyz")) == structure_id(atoms)
    for change in ("numbers", "positions", "cell", "pbc", "magmoms"):
        other = atoms.copy()
        if change == "numbers":
            other.numbers[0] = 13
        elif change == "positions":
            other.positions[0, 0] += 1e-6
        elif change == "cell":
            other.cell[0, 0] += 1e-6
        elif change == "pbc":
            other.pbc[0] = False
        else:
            other.set_initial_magnetic_moments([1.0, 0.0, 0.0])
        assert structure_id(other) != structure_id(atoms)


def test_absurd_results_are_refused():
    def computed(**changes):
        good = {"energy": -1.0, "free_energy": -1.0, "forces": np.zeros((1, 3)), "stress": np.zeros(6), "note": ""}
        return Computed(**{"atoms": Atoms("Cu"), **good, **changes})

    check_results(computed())
    for message, changes in {
        "energy not finite": {"energy": np.inf},
        "absurd energy": {"energy": 1e7},
        "absurd net force": {"forces": np.full((1, 3), 0.5)},
        r"stress has the shape \(3, 3\)": {"stress": np.zeros((3, 3))},
        "absurd largest stress": {"stress": np.full(6, 100.0)},
    }.items():
        with pytest.raises(ValueError, match=message):
            check_results(computed(**changes))


def test_presets_hold_the_settings_of_the_first_labels():
    settings = make_settings(preset="silicon")
    assert settings.calculator == "gpaw"
    small, large = settings.for_structure(2), settings.for_structure(3)
    assert (small["ecut"], small["kspacing"], small["eigensolver"]) == (260.0, 0.22, "davidson")
    assert (large["ecut"], large["kspacing"], large["eigensolver"]) == (260.0, 0.25, "rmm-diis")
    finer = make_settings(preset="silicon", kspacing=(0.2,))
    assert finer.for_structure(1)["kspacing"] == finer.for_structure(8)["kspacing"] == 0.2
    assert finer.for_structure(1)["eigensolver"] == "davidson"
    other = make_settings("espresso", ecut=30 * Ry, kspacing=(0.3, 0.2), options={"pseudopotentials": {"Si": "x"}})
    assert other.options["input_data"]["system"]["ecutwfc"] == pytest.approx(30.0)
    assert other.for_structure(2)["kspacing"] == 0.2
    assert "command" not in other.record


def test_gpaw_without_spglib_is_refused_before_the_first_structure(monkeypatch):
    package, datasets = ModuleType("gpaw"), ModuleType("gpaw.setup_data")
    package.__version__, datasets.search_for_file = "0", lambda name: (name, b"")
    monkeypatch.setitem(sys.modules, "gpaw", package)
    monkeypatch.setitem(sys.modules, "gpaw.setup_data", datasets)
    settings = make_settings(preset="silicon")
    assert open_program(settings, ["Si"]).identity["gpaw"] == "0"
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "spglib" else find(name))
    with pytest.raises(CalculatorSetupError, match=r"lacks spglib.*; install it beside GPAW"):
        open_program(settings, ["Si"])


def test_the_mesh_is_the_smallest_of_its_spacing():
    atoms = bulk("Si", a=5.4, cubic=True)
    b = 2 * np.pi / 5.4
    for spacing in (0.1, 0.2, 0.3, 2.0):
        mesh = k_mesh(atoms, spacing)
        assert all(b / n <= spacing + 1e-9 for n in mesh)
        assert all(n == 1 or b / (n - 1) > spacing for n in mesh)
    assert k_mesh(atoms, b / 4) == (4, 4, 4)


def test_the_primitive_cell_is_the_same_crystal():
    atoms = bulk("Si", a=5.4, cubic=True) * (1, 1, 2)
    atoms.rattle(1e-6, seed=1)
    primitive = primitive_cell(atoms)
    assert len(primitive) == 2
    assert primitive.get_volume() / 2 == pytest.approx(5.4**3 / 8, rel=1e-5)
    distances = np.sort(primitive.get_all_distances(mic=True)[0])
    assert distances[1] == pytest.approx(5.4 * np.sqrt(3) / 4, abs=1e-5)


PSEUDO = Path("/usr/share/espresso/pseudo")
needs_espresso = pytest.mark.skipif(
    shutil.which("pw.x") is None or not (PSEUDO / "Si.pbe-nl-rrkjus_psl.1.0.0.UPF").is_file(),
    reason="pw.x of Quantum ESPRESSO or its silicon is not installed",
)


@needs_espresso
def test_forces_of_espresso_are_the_slope_of_its_energies():
    step = 0.005  # Å; occupations change along larger ones
    structures = []
    for sign in (-1, 0, 1):
        atoms = bulk("Si", a=5.4)
        atoms.positions[1] += [0.1 + sign * step, 0.05, 0.0]
        structures.append(atoms)
    write("some.extxyz", structures)
    line = ("some.extxyz", "--preset", "silicon-espresso", "--set", f"pseudo_dir={PSEUDO}", "--kspacing", 2.1)
    label(*line, "--out", "labels.extxyz")
    low, middle, high = sorted(read("labels.extxyz", ":"), key=lambda atoms: atoms.positions[1, 0])
    slope = (high.calc.results["free_energy"] - low.calc.results["free_energy"]) / (2 * step)
    assert middle.get_forces()[1, 0] == pytest.approx(-slope, abs=5e-3)  # third derivative, times step squared
    assert abs(slope) > 0.5
    assert middle.info["kspacing"] == 2.1
    assert set(middle.info["program"]) == {"pw.x", "Si pseudopotential"}
    label(*line, "--index", 0, "--set", "input_data.electrons.electron_maxstep=2", "--out", "short.extxyz", status=1)
    assert all("convergence NOT achieved" in entry["cause"] for entry in failures("short.extxyz"))
    label("some.extxyz", *line[1:3], "--set", "pseudo_dir=.", "--out", "none.extxyz", status=2)


@pytest.mark.filterwarnings("ignore:Loaded .*VASP.* from environment")
def test_vasp_is_driven_by_its_files(monkeypatch, tmp_path):
    potcar = tmp_path / "potpaw_PBE" / "Cu" / "POTCAR"
    potcar.parent.mkdir(parents=True)
    potcar.write_text(
        "  PAW_PBE Cu 05Jan2001\n   TITEL  = PAW_PBE Cu 05Jan2001\n   ENMAX  =  295.446; ENMIN  =  184.0 eV\n"
    )
    program = Path(__file__).parents[1] / "generator" / "standin_vasp.py"
    monkeypatch.setenv("VASP_PP_PATH", str(tmp_path))
    monkeypatch.setenv("ASE_VASP_COMMAND", f"{sys.executable} {program} good")
    structures = crystals(2)
    write("some.extxyz", structures)
    line = ("some.extxyz", "--calculator", "vasp", "--ecut", 400, "--kspacing", 0.3, "--out")
    label(*line, "labels.extxyz")
    found = read("labels.extxyz")
    structures[0].calc = EMT()
    assert found.get_potential_energy() == pytest.approx(structures[0].get_potential_energy(), abs=1e-6)
    np.testing.assert_allclose(found.get_forces(), structures[0].get_forces(), atol=1e-6)
    assert found.info["settings"]["encut"] == 400
    monkeypatch.setenv("ASE_VASP_COMMAND", f"{sys.executable} {program} unconverged")
    label(*line, "short.extxyz", status=1)
    assert "the electronic loop did not converge" in failures("short.extxyz")[0]["cause"]


def test_trouble_with_symmetry_is_met_by_the_next_attempt(tmp_path):
    class Fussy(EMT):
        def calculate(self, *args):
            super().calculate(*args)
            if len(self.atoms) == 4:
                raise RuntimeError("Symmetry lost")
            if len(self.atoms) == 8:
                raise RuntimeError("no convergence")

    def attempts(atoms, folder):
        yield "", atoms.copy(), Fussy()
        yield "primitive", primitive_cell(atoms), Fussy()

    program = Program({}, {}, attempts)
    cubic = bulk("Cu", a=3.7, cubic=True)
    computed = compute(program, cubic, tmp_path)
    cubic.calc = EMT()
    assert computed.note == "primitive"
    assert computed.energy == pytest.approx(cubic.get_potential_energy() / 4, abs=1e-8)
    np.testing.assert_allclose(computed.stress, cubic.get_stress(), atol=1e-10)
    with pytest.raises(RuntimeError, match="no convergence"):
        compute(program, cubic * (2, 1, 1), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "gold"}, "preset 'gold' is unknown; there are silicon"),
        ({}, "calculator None: give gpaw"),
        ({"calculator": "abinit"}, "calculator 'abinit': give gpaw"),
        ({"calculator": "vasp", "preset": "silicon"}, "preset 'silicon' is for gpaw, not for vasp"),
        ({"calculator": "gpaw", "ecut": 300.0}, "gpaw needs kspacing"),
        ({"calculator": "vasp", "kspacing": (0.2,)}, "vasp needs encut"),
        ({"preset": "silicon", "kspacing": (0.2, 0.1, 0.1)}, "give one spacing, or two"),
        ({"preset": "silicon", "kspacing": (0.2, -0.1)}, "kspacing of small cells is -0.1; it must be a positive"),
        ({"preset": "silicon", "ecut": float("nan")}, "must be numbers, texts, lists and tables"),
        ({"calculator": "espresso", "ecut": 300.0, "kspacing": (0.2,)}, "espresso needs its pseudopotentials"),
        ({"calculator": "fakes:Slow", "ecut": 300.0}, "fakes:Slow is a factory"),
    ],
)
def test_settings_that_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_settings(**arguments)


def test_options_of_the_command_line():
    assert parse_options(["a.b=1", "a.c=x y", 'd={"e": [true]}']) == {"a": {"b": 1, "c": "x y"}, "d": {"e": [True]}}
    for text in ("a", "=1", "a..b=1"):
        with pytest.raises(ValueError, match="give NAME=VALUE"):
            parse_options([text])
    with pytest.raises(ValueError, match="a has a value already"):
        parse_options(["a=1", "a.b=2"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda atoms: atoms.set_positions(atoms.positions * np.nan), "0: positions not finite"),
        (lambda atoms: atoms.set_pbc((True, True, False)), "0: is no crystal"),
        (lambda atoms: atoms.set_cell(np.zeros((3, 3))), "0: is no crystal"),
        (lambda atoms: atoms.__delitem__(0), "0: has no atoms"),
    ],
)
def test_structures_that_are_refused(change, message):
    atoms = bulk("Cu")
    change(atoms)
    with pytest.raises(ValueError, match=message), open_run([("0", atoms)], make_settings("a:b"), Path("l.extxyz")):
        pass
    assert not Path("l.extxyz").exists()


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("nowhere:X", "nowhere:X: cannot import"),
        ("fakes:no_calculator", "made a int, which is no ASE calculator"),
        ("fakes:Poor", "which has no forces, stress"),
        ("fakes:Slow --set typo=1", "made no calculator: TypeError"),
    ],
)
def test_programs_that_cannot_be_opened(factory, message, capsys):
    write("some.extxyz", crystals(1))
    label("some.extxyz", "--out", "labels.extxyz", "--calculator", *factory.split(), status=2)
    assert message in capsys.readouterr().err
    assert not Path("labels.extxyz").exists()


def test_limits_and_workers_that_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the wall time limit is 0 s"):
        Limits(wall=0.0)
    with pytest.raises(ValueError, match="0 workers; at least one"):
        WorkerPool(make_settings("fakes:Slow"), ["Cu"], tmp_path, n_workers=0)
    with (
        pytest.raises(CalculatorSetupError, match="cannot start /no/python"),
        WorkerPool(make_settings("fakes:Slow"), ["Cu"], tmp_path, python="/no/python"),
    ):
        pass
