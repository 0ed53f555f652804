"""Runs that are killed at any moment, run out of disk or lose workers end as if nothing had happened."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.db import connect

from ase_hvae import generate
from ase_hvae.database import RunFolder
from ase_hvae.errors import RunFolderError

OPTIONS = {
    "n": 8, "natoms": "1-4", "seed": 13, "n_proposals": 300, "n_phonons": 4, "phonon_window": 1000.0,
    "min_length": 6.0, "child_atoms": 8, "n_elastic": 1,
}  # fmt: skip
KILLS = 20

DRIVER = """
import json, os, random, signal, sys, time
import phonopy, symfc  # not used here: their threads would not live on in forks
from ase_hvae import generate
options, folder, n_kills = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
from ase_hvae.funnel import Funnel, GenerateConfig
Funnel.open(GenerateConfig().with_options(**options)).reference()  # loads and compiles what runs need
start = time.perf_counter()
child = os.fork()
if child == 0:
    generate(out=folder + "/whole", workers=1, **options)
    os._exit(0)
os.waitpid(child, 0)
whole = time.perf_counter() - start
rng, kills, number = random.Random(1), 0, 0
while kills < n_kills:
    out, resume = f"{folder}/killed{number}", False
    while True:
        child = os.fork()
        if child == 0:
            overwrite = not resume and os.path.exists(out)
            generate(out=out, resume=resume, overwrite=overwrite, **({} if resume else options | {"workers": 1}))
            os._exit(0)
        time.sleep(rng.uniform(0, 0.6 * whole))
        os.kill(child, signal.SIGKILL)
        if os.waitpid(child, 0)[1] == 0:
            break
        kills += 1
        resume = os.path.exists(out + "/config.toml")
    number += 1
print(kills, number)
"""


def rows(folder: Path) -> dict:
    """What must be the same in two runs with the same seed."""
    return {
        row.candidate: (row.status, row.get("spacegroup"), row.get("duplicate_of"), row.get("known"), row.get("stable"))
        for row in connect(folder / "candidates.db").select()
    }


def energies(folder: Path) -> list[float]:
    return [row.get("energy", np.nan) for row in connect(folder / "candidates.db").select(sort="candidate")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    generate(out=out, workers=1, **OPTIONS)
    counts = json.loads((out / "summary.json").read_text())["funnel"]
    assert counts["children"]["made"]  # so that kills meet every stage
    assert counts["elasticity"]
    return out


def check_same(folder: Path, whole: Path) -> None:
    assert rows(folder) == rows(whole)
    np.testing.assert_allclose(energies(folder), energies(whole), rtol=0, atol=1e-6)
    names = [sorted(path.name for path in (run / "structures").iterdir()) for run in (folder, whole)]
    assert names[0] == names[1]
    funnels = [json.loads((run / "summary.json").read_text())["funnel"] for run in (folder, whole)]
    assert funnels[0] == funnels[1]


@pytest.mark.slow
def test_killed_at_twenty_moments(whole: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DRIVER, json.dumps(OPTIONS), str(tmp_path), str(KILLS)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=True)
    kills, finished = map(int, result.stdout.split())
    assert kills >= KILLS
    for number in range(finished):
        check_same(tmp_path / f"killed{number}", whole)


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["processes", "dask"])
def test_every_executor_gives_the_same_run(whole: Path, tmp_path: Path, executor: str) -> None:
    generate(out=tmp_path / "run", workers=2, executor=executor, **OPTIONS)
    check_same(tmp_path / "run", whole)


FACTORY = """
import os, signal
from maise_bridge import MaiseCalculator

class Crashing(MaiseCalculator):
    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        if len(atoms) == 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        super().calculate(atoms, properties, system_changes)

def make():
    return Crashing("silicon")
"""


def test_only_the_crystal_that_kills_its_worker_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "crashing_factory.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    options = OPTIONS | {"n": 3, "n_phonons": 0, "natoms": "2-3", "seed": 3}
    generate(out=tmp_path / "run", workers=2, calculator="crashing_factory:make", **options)
    found = list(connect(tmp_path / "run" / "candidates.db").select())
    victims = [row for row in found if row.status == "failed"]
    assert victims
    assert all(row.natoms == 3 and "signal 11 (SIGSEGV)" in row.data["failure"] for row in victims)
    assert all(row.natoms != 3 for row in found if row.status != "failed")


def test_a_full_disk_stops_the_run_with_a_word_and_it_resumes(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    pid = os.fork()
    if pid == 0:  # a limit on the size of files looks to SQLite like a full disk
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
        try:
            generate(out=out, workers=1, **OPTIONS)
        except RunFolderError as error:
            os._exit(3 if "free space" in str(error) else 4)
        os._exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    generate(out=out, resume=True)
    check_same(out, whole)


def test_what_a_kill_left_at_the_start_can_be_dealt_with(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "calculator.json").write_text("{}")  # killed before the options were written
    with pytest.raises(RunFolderError, match=r"holds remains of a run without its options.*add --overwrite"):
        RunFolder(out)
    with pytest.raises(RunFolderError, match="holds no run to resume"):
        RunFolder(out, resume=True)
    RunFolder(out, overwrite=True)
    fresh = tmp_path / "fresh"
    generate(out=fresh, workers=1, **OPTIONS | {"n": 1})
    for name in ("calculator.json", "candidates.db", "replicas.jsonl"):  # killed right after them
        (fresh / name).unlink()
    assert generate(out=fresh, resume=True)
