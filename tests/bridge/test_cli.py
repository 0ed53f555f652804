"""python -m maise_bridge: what it prints and writes, agreement with the library, and every kind of bad input."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import read, write

from maise_bridge import MaiseCalculator, MaisePotential, read_model, write_model
from maise_bridge.batch_relax import batch_relax
from maise_bridge.calculator import MODELS, find_model
from maise_bridge.cli import main
from maise_bridge.cli.tables import Table, progress
from maise_bridge.dataset import read_labels
from maise_bridge.poscar import read_poscar

DATA = Path(__file__).parents[1] / "data"
RUNS = DATA / "maise_runs"
SILICON, ALLOY, GUPTA = (DATA / "bridge" / name for name in ("si.model", "mgsi.model", "cuau_gupta.model"))


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def crystals():
    """Three different silicon crystals off their minima."""
    found = [bulk("Si", a=5.3), bulk("Si", "fcc", a=3.8), bulk("Si", a=5.6, cubic=True)]
    for seed, atoms in enumerate(found):
        atoms.rattle(0.04, seed=seed)
    return found


def run(capsys, *arguments, status=0):
    """Lines on standard output of a command that must end with this status."""
    capsys.readouterr()
    found = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert found == status, err
    return out.splitlines() if status == 0 else err.splitlines()


def refused(capsys, *arguments):
    """The only line of a command that must end with status 2."""
    capsys.readouterr()
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as end:  # argparse
        status = end.code
    out, err = capsys.readouterr()
    assert status == 2, out + err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_the_module_starts_and_explains_itself_without_compiled_code():
    code = (
        "import sys; from maise_bridge.cli import main\n"
        "try: main(['--help'])\n"
        "finally: assert not {'numba', 'torch', 'ase.io'} & set(sys.modules)"
    )
    help_text = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert all(f"\n    {name} " in help_text for name in ("info", "evaluate", "relax", "convert", "train"))


def test_info_describes_networks_and_gupta_models(capsys):
    shipped = run(capsys, "info")
    assert f"file                 {MODELS / 'silicon.model'}" in shipped
    assert any(line.startswith("test       all") for line in shipped)  # errors from the card
    lines = run(capsys, "info", ALLOY, "--model", GUPTA)
    assert "species              Mg Si" in lines
    assert f"id                   {read_model(ALLOY).unique_id}" in lines
    assert "form                 Gupta, 3 pairs of species" in lines
    row = next(line for line in lines if line.startswith("Cu-Au")).split()
    assert [float(word) for word in row[1:]] == pytest.approx(read_model(GUPTA).parameters[1], abs=1e-4)
    assert "no MAISE model 'unobtainium'" in refused(capsys, "info", "unobtainium")


@pytest.mark.parametrize("name", ["some.extxyz", "some.traj", "some.xyz.gz", "some.db"])
def test_evaluate_prints_and_writes_what_the_calculator_says(name, capsys):
    structures = crystals()
    write(name, structures)
    header, *rows, last = run(capsys, "evaluate", name, "--out", f"out_{name}")
    assert header.split()[:2] == ["structure", "formula"]
    assert last == f"wrote out_{name}"
    calc = MaiseCalculator()
    results = read(f"out_{name}", ":")
    assert len(results) == len(rows) == 3
    for number, (row, atoms, result) in enumerate(zip(rows, structures, results, strict=True)):
        words = row.split()
        energy = calc.get_potential_energy(atoms)
        assert words[:3] == [f"{name}@{number}", atoms.get_chemical_formula(), str(len(atoms))]
        assert float(words[3]) == pytest.approx(energy, abs=1e-6)
        assert float(words[4]) == pytest.approx(energy / len(atoms), abs=1e-5)
        assert float(words[5]) == pytest.approx(np.linalg.norm(calc.get_forces(atoms), axis=1).max(), abs=1e-4)
        assert float(words[6]) == pytest.approx(-calc.get_stress(atoms)[:3].mean() / units.GPa, abs=1e-3)
        assert result.get_potential_energy() == pytest.approx(energy, abs=1e-6)
        np.testing.assert_allclose(result.get_forces(), calc.get_forces(atoms), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        (["some.extxyz@1:"], [1, 2]),
        (["some.extxyz@-1"], [2]),
        (["some.extxyz", "--index", "0:3:2"], [0, 2]),
        (["some.extxyz@1", "some.extxyz@0"], [1, 0]),
        (["some.extxyz@::-1"], [2, 1, 0]),
    ],
)
def test_indices_pick_structures_and_name_them(arguments, numbers, capsys):
    write("some.extxyz", crystals())
    rows = run(capsys, "evaluate", *arguments)[1:]
    assert [row.split()[0] for row in rows] == [f"some.extxyz@{number}" for number in numbers]
    energies = [MaiseCalculator().get_potential_energy(crystals()[number]) for number in numbers]
    assert [float(row.split()[3]) for row in rows] == pytest.approx(energies, abs=1e-6)


def test_files_of_one_structure_any_model_and_no_cell(capsys):
    write("alloy.cif", bulk("MgSi", "zincblende", a=6))
    write("cluster.xyz", Atoms("Si3", [[0, 0, 0], [2.4, 0, 0], [0, 2.5, 0]]))
    assert run(capsys, "evaluate", "alloy.cif", "--model", ALLOY)[1].split()[:2] == ["alloy.cif", "MgSi"]
    row = run(capsys, "evaluate", "cluster.xyz", "--model", SILICON)[1].split()
    assert row[6] == "-"  # no cell, no pressure
    (outcar,) = run(capsys, "evaluate", RUNS / "ok_singlepoint" / "OUTCAR", "--model", sn_model())[1:]
    assert outcar.split()[:3] == ["OUTCAR", "Sn4", "4"]


def sn_model():
    write_model(replace(read_model(SILICON), species=("Sn",)), "sn.model")
    return "sn.model"


def test_labels_in_files_are_compared(capsys):
    labelled = crystals()
    for atoms, shift in zip(labelled, (0.01, -0.02, None), strict=True):
        energy, forces = (
            MaiseCalculator().get_potential_energy(atoms),
            MaiseCalculator().get_forces(atoms),
        )
        if shift is not None:
            atoms.calc = SinglePointCalculator(atoms, energy=energy - shift * len(atoms), forces=forces + 0.1)
    write("some.extxyz", labelled)
    header, *rows, summary = run(capsys, "evaluate", "some.extxyz")
    assert header.endswith("dE meV/atom  dF eV/Å")
    assert [row.split()[-2:] for row in rows] == [["10.0", "0.1000"], ["-20.0", "0.1000"], ["-", "-"]]
    assert summary == "2 labels: energies off by -5.0 meV/atom on average, 15.8 root mean square"


def test_errors_by_window_have_a_long_and_a_short_form(capsys):
    labels = "some.extxyz"
    write(labels, read(MODELS / "silicon_labels.extxyz.gz", "::40"))
    long = run(capsys, "evaluate", labels, "--errors")
    assert long == run(capsys, "evaluate", "silicon", labels)
    assert long == run(capsys, "evaluate", find_model("silicon"), labels)
    assert long[-1].split()[:3] == ["all", "all", str(len(read_labels(labels)))]
    assert long != run(capsys, "evaluate", labels, "--errors", "--core-repulsion", "on")
    assert "silicon is a model, not a structure" in refused(capsys, "evaluate", "silicon")
    assert "leave --out and --index away" in refused(capsys, "evaluate", labels, "--errors", "--index", "0")


def test_core_repulsion_is_on_off_or_a_strength(capsys):
    write("near.xyz", Atoms("Si2", [[0, 0, 0], [0, 0, 1.5]]))
    energies = [
        float(run(capsys, "evaluate", "near.xyz", "--core-repulsion", value)[1].split()[3])
        for value in ("on", "100", "50", "off")
    ]
    assert energies[0] == energies[1]
    assert energies[0] - energies[3] == pytest.approx(2 * (energies[2] - energies[3]), abs=1e-5)
    assert "'of' is neither on nor off" in refused(capsys, "evaluate", "near.xyz", "--core-repulsion", "of")
    write("gold.cif", bulk("CuAu", "rocksalt", a=5.2))
    assert "is a Gupta model" in refused(capsys, "evaluate", "gold.cif", "--model", GUPTA, "--core-repulsion", "50")
    assert run(capsys, "evaluate", "gold.cif", "--model", GUPTA)[1].split()[1] == "AuCu"


def damage(name, atoms):
    if name == "nan":
        atoms.positions[1, 2] = np.nan
    elif name == "species":
        atoms.symbols[0] = "Ge"
    elif name == "coincident":
        atoms.positions[1] = atoms.positions[0]
    elif name == "empty":
        del atoms[:]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan", r"some.traj@2: position of atom 1 (Si) is not finite"),
        ("species", "some.traj@2: structure has Ge; model 'silicon' covers Si; pass another model"),
        ("coincident", "some.traj@2: atoms 0 (Si) and 1 (Si) coincide"),
        ("empty", "some.traj@2: the structure has no atoms"),
    ],
)
def test_bad_structures_are_named_and_nothing_is_written(name, message, capsys, tmp_path):
    structures = crystals()
    damage(name, structures[2])
    write("some.traj", structures)
    for path in ("some.traj", "some.traj@2"):
        assert message in refused(capsys, "evaluate", path, "--out", "out.extxyz")
    if name != "coincident":
        assert message in refused(capsys, "relax", "some.traj", "--out", "out.extxyz")
    assert [path.name for path in tmp_path.iterdir()] == ["some.traj"]


@pytest.mark.parametrize("command", ["evaluate", "relax", "convert"])
def test_bad_files_are_one_line_and_nothing_is_written(command, capsys, tmp_path):
    write("good.extxyz", crystals())
    Path("garbage.xyz").write_text("3\n\nSi 0 0\n")
    Path("noise.dat").write_bytes(b"\x00\x93\xff")
    Path("empty.extxyz").touch()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def message(*files, out="out.extxyz"):
        return refused(capsys, command, *files, *((out,) if command == "convert" else ("--out", out)))

    assert "absent.cif: no such file" in message("absent.cif")
    assert "garbage.xyz: ASE cannot read it" in message("garbage.xyz")
    assert "noise.dat: ASE cannot read it" in message("noise.dat")
    assert "empty.extxyz" in message("empty.extxyz")
    assert "good.extxyz: holds 3 structures, none at @5" in message("good.extxyz@5")
    assert "is a folder" in message(".")
    assert "good.extxyz exists; pass --overwrite" in message("good.extxyz", out="good.extxyz")
    assert "there is no folder nowhere" in message("good.extxyz", out="nowhere/out.extxyz")
    assert "out.unknown: ASE writes no format 'unknown'" in message("good.extxyz", out="out.unknown")
    assert "ASE writes no format" in message("good.extxyz", out="out")
    assert "cif" not in message("good.extxyz", out="POSCAR")
    assert "vasp holds one structure, not 3" in message("good.extxyz", out="POSCAR")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_wrong_arguments_are_one_line(capsys):
    write("good.extxyz", crystals())
    relax = ("relax", "good.extxyz", "--out", "out.extxyz")
    assert "invalid choice: 'explode'" in refused(capsys, "explode")
    assert "COMMAND" in refused(capsys)
    assert "--out" in refused(capsys, "relax", "good.extxyz")
    assert "give a number or a slice" in refused(capsys, "evaluate", "good.extxyz", "--index", "last")
    assert "fmax is -1" in refused(capsys, *relax, "--fmax", "-1")
    assert "batch_size 0" in refused(capsys, *relax, "--batch", "0")
    assert "scalar_pressure is nan" in refused(capsys, *relax, "--pressure", "nan")
    assert "a fixed cell feels none" in refused(capsys, *relax, "--pressure", "1", "--fixed-cell")
    assert "no MAISE model 'unobtainium'" in refused(capsys, *relax, "--model", "unobtainium")
    assert not Path("out.extxyz").exists()


def cut(text):
    return "\n".join(text.splitlines()[:50]) + "\n"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, "bad.model, line 51: expected"),
        (lambda text: text.replace("maise.3.0.00", "maise.2.1.00"), "expected maise version 2.4.00 or later"),
        (lambda text: "<html>\n" + text, "bad.model, line 1: expected a rule of dashes"),
        (lambda text: text.replace("neural network general", "Sutton-Chen general"), "line 2: expected a neural"),
    ],
)
def test_bad_models_are_named_with_line_expected_and_found(spoil, message, capsys):
    text = SILICON.read_text()
    Path("bad.model").write_text(spoil(text))
    write("good.extxyz", crystals())
    for arguments in (
        ("info", "bad.model"),
        ("evaluate", "good.extxyz", "--model", "bad.model"),
        ("relax", "good.extxyz", "--model", "bad.model", "--out", "out.extxyz"),
    ):
        line = refused(capsys, *arguments)
        assert message in line
        assert "found" in line
    assert not Path("out.extxyz").exists()


def test_relax_does_what_batch_relax_does_and_keeps_the_order(capsys):
    structures = crystals()
    write("some.extxyz", structures)
    structures = read("some.extxyz", ":")
    header, *rows, last = run(
        capsys, "relax", "some.extxyz", "--out", "out.extxyz", "--pressure", "2", "--fmax", "0.005"
    )
    assert last == "wrote out.extxyz: 3 of 3 structures"
    expected = {
        end.index: end
        for end in batch_relax(
            structures, MaisePotential.from_file(find_model("silicon")), fmax=0.005, scalar_pressure=2 * units.GPa
        )
    }
    assert "change meV/atom" in header
    assert [row.split()[0] for row in rows] == [f"some.extxyz@{index}" for index in expected]  # as they were ready
    for index, atoms in enumerate(read("out.extxyz", ":")):
        assert len(atoms) == len(structures[index])
        assert atoms.get_potential_energy() == pytest.approx(expected[index].evaluation.energy, abs=1e-6)
        assert atoms.cell.array == pytest.approx(expected[index].atoms.cell.array, abs=1e-6)
        assert -atoms.get_stress()[:3].mean() / units.GPa == pytest.approx(2, abs=0.1)
        assert atoms.info["converged"]
        row = next(row.split() for row in rows if row.startswith(f"some.extxyz@{index} "))
        assert int(row[3]) == atoms.info["n_steps"] == expected[index].n_steps


def test_failed_relaxations_are_reported_with_their_reason_and_status_1(capsys):
    structures = crystals()
    structures[1] = bulk("Si", a=5.4)
    structures[1].positions[1] = [0.01, 0, 0]
    write("some.extxyz", structures)
    capsys.readouterr()
    assert main(["relax", "some.extxyz", "--out", "out.extxyz", "--steps", "200"]) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = next(line for line in lines if line.startswith("some.extxyz@1"))
    assert "FAILED: two atoms are 0.01 Å apart, limit 0.5 Å" in failed
    assert lines[-1] == "wrote out.extxyz: 2 of 3 structures, 1 failed"
    assert [len(atoms) for atoms in read("out.extxyz", ":")] == [2, 8]
    assert main(["relax", "some.extxyz@0", "--out", "short.extxyz", "--steps", "1"]) == 1
    out = capsys.readouterr().out
    assert "NOT CONVERGED" in out
    assert "1 not converged" in out
    assert not read("short.extxyz").info["converged"]
    assert main(["relax", "some.extxyz@1", "--out", "none.extxyz"]) == 1
    assert "none.extxyz is not written: 0 of 1 structures, 1 failed" in capsys.readouterr().out
    assert not Path("none.extxyz").exists()


def press_control_c():
    raise KeyboardInterrupt


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)


def run_out_of_memory():
    raise MemoryError


@pytest.mark.parametrize("end", [press_control_c, terminate, run_out_of_memory])
def test_what_is_relaxed_is_kept_when_the_command_is_stopped(end, capsys, monkeypatch):
    write("some.extxyz", crystals())

    def stopped(self, structures, **options):
        ends = list(batch_relax(structures, self.potential, **options))
        yield from ends[:2]
        end()

    monkeypatch.setattr(MaiseCalculator, "batch_relax", stopped)
    arguments = ["relax", "some.extxyz", "--out", "out.extxyz"]
    if end is not run_out_of_memory:
        assert main(arguments) == 130
        assert capsys.readouterr().err == "error: interrupted; 1 structures are not relaxed\n"
    else:
        with pytest.raises(MemoryError):
            main(arguments)
    assert len(read("out.extxyz", ":")) == 2
    assert sorted(path.name for path in Path().iterdir()) == ["out.extxyz", "some.extxyz"]


def test_fixed_cells_constraints_and_clusters(capsys):
    crystal = bulk("Si", a=5.5, cubic=True)
    crystal.rattle(0.1, seed=1)
    crystal.set_constraint(FixAtoms([0]))
    cluster = Atoms("Si4", [[0, 0, 0], [2.4, 0, 0], [0, 2.5, 0], [1.2, 1.3, 1.9]])
    write("some.traj", [crystal, cluster])
    assert "@0: has constraints, which only --fixed-cell heeds" in refused(
        capsys, "relax", "some.traj", "--out", "o.traj"
    )
    assert "@1: is no crystal" in refused(capsys, "relax", "some.traj@1:", "--out", "o.traj")
    run(capsys, "relax", "some.traj", "--out", "o.traj", "--fixed-cell", "--fmax", "0.02", "--optimizer", "BFGS")
    first, second = read("o.traj", ":")
    assert first.positions[0] == pytest.approx(crystal.positions[0], abs=1e-12)
    assert first.cell.array == pytest.approx(crystal.cell.array, abs=1e-12)
    assert np.linalg.norm(first.get_forces(), axis=1).max() < 0.02
    assert np.linalg.norm(second.get_forces(), axis=1).max() < 0.02
    assert second.get_potential_energy() < MaiseCalculator().get_potential_energy(cluster)
    cluster.positions[1] = cluster.positions[0]
    write("bad.traj", cluster)
    assert main(["relax", "bad.traj", "--out", "none.traj", "--fixed-cell"]) == 1
    assert "FAILED: atoms 0 (Si) and 1 (Si) coincide" in capsys.readouterr().out


def test_poscars_follow_the_order_of_a_model_and_come_back(capsys):
    atoms = bulk("SiMg", "zincblende", a=6, cubic=True)
    atoms.rattle(0.1, seed=3)
    write("in.extxyz", atoms)
    assert run(capsys, "convert", "in.extxyz", "POSCAR", "--model", ALLOY) == [
        "wrote POSCAR: Mg4Si4, species in the order Mg Si"
    ]
    assert Path("POSCAR").read_text().splitlines()[5].split() == ["Mg", "Si"]
    ordered = read_poscar("POSCAR")
    run(capsys, "convert", "POSCAR", "back.extxyz")
    back = read("back.extxyz")
    for found in (ordered, back):
        assert found.symbols.get_chemical_formula() == "Mg4Si4"
        assert MaiseCalculator(ALLOY).get_potential_energy(found) == pytest.approx(
            MaiseCalculator(ALLOY).get_potential_energy(atoms), abs=1e-5
        )
    run(capsys, "convert", "in.extxyz", "POSCAR", "--species", "Si", "Mg", "--overwrite")
    assert Path("POSCAR").read_text().splitlines()[5].split() == ["Si", "Mg"]
    before = Path("POSCAR").read_bytes()
    message = refused(capsys, "convert", "in.extxyz", "POSCAR", "--model", SILICON, "--overwrite")
    assert "in.extxyz: structure has Mg; the species are Si" in message
    assert Path("POSCAR").read_bytes() == before
    assert "is for a POSCAR" in refused(capsys, "convert", "in.extxyz", "out.cif", "--model", SILICON)


def test_outputs_of_maise_become_trajectories(capsys):
    folder = RUNS / "ok_relax_full_first_last_5GPa"
    run(capsys, "convert", folder / "OUTCAR", "out.extxyz")
    steps = read("out.extxyz", ":")
    assert len(steps) == 2
    assert steps[-1].get_stress()[:3].mean() == pytest.approx(-5 * units.GPa, rel=2e-3)  # it was relaxed at 5 GPa
    assert np.abs(steps[-1].get_forces()).max() < np.abs(steps[0].get_forces()).max()
    assert steps[-1].info["enthalpy"] == pytest.approx(
        steps[-1].get_potential_energy() + 5 * units.GPa * steps[-1].get_volume(), abs=1e-3
    )
    text = (folder / "OUTCAR").read_text()
    Path("OUTCAR").write_text(text[: text.index(" Total CPU")])
    assert "OUTCAR: cut off" in refused(capsys, "convert", "OUTCAR", "cut.extxyz")


def test_models_are_written_anew_and_merged_into_their_mean(capsys):
    for source in (SILICON, ALLOY, GUPTA):
        run(capsys, "convert", source, "same.model", "--overwrite")
        assert Path("same.model").read_bytes() == source.read_bytes()
    first = read_model(ALLOY)
    second = replace(first, weights=tuple(0.9 * matrix for matrix in first.weights))
    write_model(second, "second.model")
    run(capsys, "convert", ALLOY, "second.model", "mean.model")
    atoms = bulk("MgSi", "zincblende", a=6)
    energies = [MaiseCalculator(model).get_potential_energy(atoms) for model in (first, second, "mean.model")]
    assert energies[2] == pytest.approx(np.mean(energies[:2]), abs=1e-9)
    assert "expected a neural network" in refused(capsys, "convert", ALLOY, GUPTA, "out.model")
    assert "models differ in species" in refused(capsys, "convert", ALLOY, SILICON, "out.model")
    write("in.extxyz", atoms)
    assert "in.extxyz is none" in refused(capsys, "convert", ALLOY, "in.extxyz", "out.model")
    assert "the files are models" in refused(capsys, "convert", ALLOY, "out.model", "--species", "Mg")
    assert not Path("out.model").exists()


def test_a_full_disk_is_one_line_and_leaves_no_half_file(tmp_path):
    write("many.traj", crystals() * 20)
    Path("POSCAR").write_text("old")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code = f"""
import resource, signal, sys
from maise_bridge.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
codes = [
    main(["evaluate", "many.traj@:30", "--out", "out.extxyz"]),
    main(["evaluate", "many.traj@:30", "--out", "out.traj"]),
    main(["relax", "many.traj@:3", "--out", "out.json", "--steps", "2"]),
    main(["convert", "many.traj@2", "POSCAR", "--overwrite"]),
    main(["convert", {str(ALLOY)!r}, "out.model"]),
]
sys.exit(codes != [2] * 5)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    names = ("out.extxyz", "out.traj", "out.json", "POSCAR", "out.model")
    assert [line.startswith(f"error: cannot write {name}: ") for line, name in zip(lines, names, strict=True)] == [
        True
    ] * 5
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_bar_runs_below_the_lines_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress(2) as show:
        show("first")
        show("second")
    out, err = capsys.readouterr()
    assert out == "first\nsecond\n"
    assert "0/2" in err


def test_tables_keep_their_columns_and_show_dashes():
    table = Table("name", ["a", "longer"], {"energy eV": ".3f", "n": "4d"})
    assert table.header == "name    energy eV     n"
    assert table.row("a", [1.23456, None]) == "a           1.235     -"
