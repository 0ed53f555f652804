"""Rows of candidates and the run folder."""

import dataclasses
import functools
import json
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.db import connect

from ase_hvae.candidate import Candidate
from ase_hvae.database import CandidateDatabase, RunFolder
from ase_hvae.errors import RunFolderError
from ase_hvae.ranking import format_table, rank


def make_candidate(index=3, **changes):
    candidate = Candidate(
        index=index,
        replica=1,
        atoms=bulk("Cu", "fcc", 3.6),
        latent=np.array([0.1, -0.2]),
        target_rdf=np.linspace(0.0, 1.0, 5),
        pearson_initial=0.9,
        spacegroup_initial=225,
        symbol_initial="Fm-3m",
        stage="symmetrize",
    )
    return candidate.evolve(**changes)


def make_ranked(index=3, **changes):
    atoms = bulk("Cu", "fcc", 3.6)
    atoms.calc = EMT()
    values = {
        "status": "ranked",
        "stage": "rank",
        "energy": atoms.get_potential_energy(),
        "energy_initial": 0.1,
        "forces": atoms.get_forces(),
        "stress": atoms.get_stress(),
        "energy_above": 0.05,
        "n_steps": 4,
        "spacegroup": 225,
        "symbol": "Fm-3m",
        "rdf": np.arange(5.0),
        "pearson_replica": 0.8,
        "pearson_known": 0.7,
        "nearest_known": "fcc",
        "known": "new",
        "extrapolation": 0.0,
        "frequencies": np.array([[-0.5, 1.0, 2.0]]),
        "min_frequency": -0.5,
        "stable": False,
    }
    return make_candidate(index, **(values | changes))


def test_a_lock_that_a_killed_run_left_behind_holds_up_nothing(tmp_path, monkeypatch):
    """ASE waits for its lock file without end."""
    path = tmp_path / "candidates.db"
    CandidateDatabase(path).write(make_candidate())
    (tmp_path / "candidates.db.lock").touch()
    monkeypatch.setattr("ase.utils.time.sleep", lambda seconds: pytest.fail("waits for a lock"))
    database = CandidateDatabase(path)
    database.write(make_candidate(status="failed", failure="none"))
    database.write(make_candidate(index=4))
    assert [candidate.index for candidate in database.read()] == [3, 4]


def test_a_database_is_whole_from_the_start(tmp_path, monkeypatch):
    """Its tables are made in a file of another name, which a killed run may have left behind."""
    path, partial = tmp_path / "candidates.db", tmp_path / ".part.candidates.db"
    partial.write_text("half of a database")
    seen = []
    replace = type(path).replace
    monkeypatch.setattr(type(path), "replace", lambda file, to: (seen.append(path.exists()), replace(file, to)))
    CandidateDatabase(path).write(make_candidate())
    assert seen == [False]
    assert not partial.exists()
    assert connect(path).count() == 1


def test_a_database_that_another_program_holds_is_named(tmp_path, monkeypatch):
    path = tmp_path / "candidates.db"
    database = CandidateDatabase(path)
    database.write(make_candidate())
    monkeypatch.setattr("ase.db.sqlite.sqlite3.connect", functools.partial(_connect, sqlite3.connect))
    other = sqlite3.connect(path)
    other.execute("BEGIN EXCLUSIVE")
    message = r"cannot use .*candidates.db: database is locked; free space, or end the other program"
    with pytest.raises(RunFolderError, match=message):
        database.write(make_candidate(index=4))
    assert [candidate.index for candidate in CandidateDatabase(path).read()] == [3]  # who reads does not wait
    other.close()


def _connect(connect, name, timeout=0.0):
    """Without the 20 s of patience that ASE has."""
    return connect(name, timeout=0.0)


def assert_same(left, right):
    for spec in dataclasses.fields(Candidate):
        if spec.name == "atoms":
            assert (left.atoms.cell.array == right.atoms.cell.array).all()
            assert (left.atoms.positions == right.atoms.positions).all()
        elif isinstance(getattr(left, spec.name), np.ndarray):
            np.testing.assert_array_equal(getattr(left, spec.name), getattr(right, spec.name))
        else:
            assert getattr(left, spec.name) == getattr(right, spec.name), spec.name


@pytest.mark.parametrize(
    "candidate",
    [
        make_candidate(),
        make_ranked(),
        make_ranked(stable=True),
        make_candidate().failed("relax", "volume\nexploded"),
        make_candidate().failed("relax", "7"),
        make_ranked(status="duplicate", duplicate_of=0, known=None),
    ],
)
def test_round_trip(tmp_path, candidate):
    CandidateDatabase(tmp_path / "c.db").write(candidate)
    (read,) = CandidateDatabase(tmp_path / "c.db").read()
    assert_same(candidate, read)


def test_row_has_the_promised_keys(tmp_path):
    CandidateDatabase(tmp_path / "c.db").write(make_ranked())
    row = connect(tmp_path / "c.db").get(candidate=3)
    assert row.energy == make_ranked().energy
    assert (row.status, row.stage, row.spacegroup, row.known) == ("ranked", "rank", 225, "new")
    assert (row.energy_above, row.pearson_replica, row.pearson_known) == (0.05, 0.8, 0.7)
    assert row.stable in (False, 0)
    assert set(row.data) == {"latent", "target_rdf", "rdf", "frequencies"}
    assert "duplicate_of" not in row


def test_writing_again_replaces_the_row(tmp_path):
    database = CandidateDatabase(tmp_path / "c.db")
    database.write(make_candidate(0))
    database.write(make_candidate(1))
    reopened = CandidateDatabase(tmp_path / "c.db")
    reopened.write(make_ranked(0))
    reopened.write(make_ranked(2))
    assert [(c.index, c.status) for c in reopened.read()] == [(0, "ranked"), (1, "pending"), (2, "ranked")]
    assert_same(reopened.read()[0], make_ranked(0))


def test_a_run_is_never_overwritten_unasked(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.clear()
    folder.config.write_text("")
    with pytest.raises(RunFolderError, match=r"holds a run already \(config.toml\); add --resume"):
        RunFolder(tmp_path / "run")
    with pytest.raises(RunFolderError, match="exclude each other"):
        RunFolder(tmp_path / "run", resume=True, overwrite=True)
    with pytest.raises(RunFolderError, match="holds no run to resume"):
        RunFolder(tmp_path / "other", resume=True)
    with pytest.raises(RunFolderError, match="is a file"):
        RunFolder(folder.config)


def test_files_named_as_a_run_names_them_are_not_overwritten_either(tmp_path):
    (tmp_path / "structures").mkdir()
    (tmp_path / "structures" / "mine.cif").touch()
    with pytest.raises(RunFolderError, match="structures"):
        RunFolder(tmp_path)


def test_overwrite_removes_the_run_and_nothing_else(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    folder = RunFolder(tmp_path)
    folder.clear()
    folder.config.write_text("")
    CandidateDatabase(folder.database).write(make_candidate())
    folder.write_summary({"seed": 1})
    RunFolder(tmp_path, overwrite=True).clear()
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_summary_is_json(tmp_path):
    RunFolder(tmp_path).write_summary({"seed": 1, "funnel": {"ranked": 2}})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"seed": 1, "funnel": {"ranked": 2}}


def test_structures_are_named_by_rank(tmp_path):
    RunFolder(tmp_path).write_structures([make_ranked(5), make_ranked(1)])
    assert sorted(file.name for file in (tmp_path / "structures").iterdir()) == [
        "001_00005_225.cif",
        "002_00001_225.cif",
    ]


def test_rank_orders_by_energy_then_index():
    candidates = [
        make_ranked(0, energy_above=0.2),
        make_ranked(1, energy_above=0.1),
        make_ranked(2, energy_above=0.1),
        make_ranked(3, energy_above=-1.0, status="duplicate"),
        make_candidate(4).failed("relax", "x"),
    ]
    assert [candidate.index for candidate in rank(candidates)] == [1, 2, 0]


def test_table_shows_energies_in_mev_and_missing_values():
    table = format_table([make_ranked(7), make_ranked(8, stable=None, known="fcc")]).splitlines()
    assert table[0].split()[:3] == ["rank", "id", "dE"]
    assert "50.0" in table[2]
    assert "unstable (-0.5 THz)" in table[2]
    assert "not checked" in table[3]
    assert "9.047" in table[2]  # 63.546 amu in 3.6^3 / 4 Å^3
    assert "1 more" in format_table([make_ranked(7)], n_more=1)
    assert format_table([make_ranked(7, energy_above=-1e-9)]).splitlines()[2].split()[2] == "0.0"


def test_a_run_has_one_program_and_a_killed_one_leaves_no_lock(tmp_path):
    code = (
        "import sys, time\nfrom ase_hvae.database import RunFolder\n"
        "with RunFolder(sys.argv[1]).locked():\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "run"], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with (
            pytest.raises(RunFolderError, match=rf"another program \(process {other.pid} on .*\) works on the run"),
            RunFolder(tmp_path / "run").locked(),
        ):
            pass
        other.kill()
    with RunFolder(tmp_path / "run").locked():
        pass


def test_a_replica_whose_line_is_torn_is_not_finished(tmp_path):
    folder = RunFolder(tmp_path)
    folder.add_finished_replica(4, {"proposed": 10})
    folder.add_finished_replica(2, {"proposed": 20})
    file = tmp_path / "replicas.jsonl"
    file.write_bytes(file.read_bytes()[:-3])
    assert folder.finished_replicas() == {4: {"proposed": 10}}
    folder.add_finished_replica(2, {"proposed": 20})
    assert folder.finished_replicas() == {4: {"proposed": 10}, 2: {"proposed": 20}}


def test_candidates_written_together_are_all_there_or_none(tmp_path):
    database = CandidateDatabase(tmp_path / "c.db")
    database.write(make_candidate(0), make_candidate(1))
    bad = make_candidate(2).evolve(nearest_known="1.5")  # ase.db refuses texts that read like numbers
    with pytest.raises(ValueError, match="can be interpreted as float"):
        database.write(make_candidate(3), make_candidate(0, status="failed"), bad)
    assert [(c.index, c.status) for c in database.read()] == [(0, "pending"), (1, "pending")]
    database.write(make_candidate(3), make_candidate(0, status="failed"))
    assert [(entry.index, entry.status) for entry in database.entries()] == [
        (0, "failed"),
        (1, "pending"),
        (3, "pending"),
    ]
    assert [entry.index for entry in database.entries(status="pending")] == [1, 3]


def test_candidates_are_read_in_the_order_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("ase_hvae.database.candidates.CHUNK", 2)
    database = CandidateDatabase(tmp_path / "c.db")
    database.write(*(make_candidate(index) for index in range(5)))
    assert [candidate.index for candidate in database.iterate([3, 0, 4, 2, 1])] == [3, 0, 4, 2, 1]
