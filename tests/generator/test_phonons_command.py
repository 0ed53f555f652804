"""``python -m ase_hvae phonons``."""

import phonopy
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.db import connect
from ase.io import read, write

from ase_hvae.cli import main

EMT_NAME = "ase.calculators.emt:EMT"
QUICK = ["--calculator", EMT_NAME, "--min-length", "5"]


@pytest.fixture
def unstable(tmp_path):
    file = tmp_path / "sc.extxyz"
    write(file, bulk("Al", "sc", a=2.63))
    return file


def test_a_stable_crystal_with_its_files(tmp_path, capsys):
    write(tmp_path / "Al.cif", bulk("Al", "fcc", a=3.99))
    files = ["--plot", str(tmp_path / "bands.png"), "--params", str(tmp_path / "params.yaml")]
    main(["phonons", str(tmp_path / "Al.cif"), *QUICK, "--temperature", "300", *files])
    shown = capsys.readouterr().out
    assert ": stable" in shown
    assert "free energy of phonons at 300 K" in shown
    assert (tmp_path / "bands.png").stat().st_size > 5000
    again = phonopy.load(tmp_path / "params.yaml", produce_fc=False)
    assert again.run_qpoints([[0.5, 0.5, 0]]).frequencies.max() > 5


def test_the_child_of_an_unstable_crystal_is_lower(unstable, tmp_path, capsys):
    main(["phonons", str(unstable), *QUICK, "--child", str(tmp_path / "child.extxyz"), "--max-atoms", "4"])
    assert ": unstable" in capsys.readouterr().out
    child, parent = read(tmp_path / "child.extxyz"), read(unstable)
    parent.calc = EMT()
    assert child.get_potential_energy() / len(child) < parent.get_potential_energy() - 0.1


def test_one_candidate_of_a_run(tmp_path, capsys):
    database = connect(tmp_path / "candidates.db")
    database.write(bulk("Al", "fcc", a=3.99), candidate=7)
    database.write(bulk("Al", "sc", a=2.63), candidate=9)
    main(["phonons", str(tmp_path / "candidates.db"), "--candidate", "9", *QUICK])
    assert ": unstable" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature", "300"], "no free energy: the lowest frequency"),
        (["--candidate", "3"], "holds no candidate 3"),
        (["--temperature", "-5"], "--temperature -5.0 must be finite and not negative"),
        (["--min-length", "0"], "--min-length 0 must be positive"),
    ],
)
def test_what_cannot_be_done_is_one_line(unstable, capsys, flags, message):
    with pytest.raises(SystemExit) as stopped:
        main(["phonons", str(unstable), *QUICK, *flags])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert message in error[0]
