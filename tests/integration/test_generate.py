"""The main job as users run it: command line, scripts, resume, other elements, refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.db import connect
from ase.io import read, write

from ase_hvae import HVAEGenerator, generate, train
from ase_hvae.cli import main
from ase_hvae.database import RunFolder
from ase_hvae.errors import ConfigError, RunFolderError, StructureError
from ase_hvae.report import describe
from ase_hvae.source import known_crystals
from maise_bridge import MaiseCalculator

SMALL = ["--n", "6", "--natoms", "1-4", "--n-phonons", "2", "--workers", "1", "--seed", "3"]


def run_cli(*args, cwd):
    """Run ``python -m ase_hvae`` as a user does."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ase_hvae", *args]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


def rows(folder):
    """What must be the same in two runs with the same seed."""
    return {
        row.candidate: (row.status, row.get("spacegroup"), row.get("energy_above"), row.get("duplicate_of"))
        for row in connect(folder / "candidates.db").select()
    }


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A small run from the command line."""
    cwd = tmp_path_factory.mktemp("run")
    result = run_cli("generate", *SMALL, "--out", "run", cwd=cwd)
    assert result.returncode == 0, result.stderr
    return cwd / "run", result


def test_run_folder_is_complete(finished_run):
    folder, result = finished_run
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["seed"] == 3
    assert summary["funnel"]["candidates"] == 6
    assert {"reconstruct", "relax", "compare", "phonons"} <= set(summary["seconds"])
    assert summary["calculator"]["species"] == ["Si"]
    assert summary["calculator"] == json.loads((folder / "calculator.json").read_text())
    outside = [row.extrapolation > 0.01 for row in connect(folder / "candidates.db").select(status="ranked")]
    assert summary["funnel"]["outside_training"] == sum(outside)
    assert len(summary["calculator"]["sha256"]) == len(summary["model"]["sha256"]) == 64
    assert "seed = 3" in (folder / "config.toml").read_text()
    assert "relax" in (folder / "log.txt").read_text()
    assert "rank" in result.stdout
    assert "Traceback" not in result.stderr


def test_rows_hold_what_they_promise(finished_run):
    folder, _ = finished_run
    selected = list(connect(folder / "candidates.db").select())
    assert len(selected) == 6
    assert {row.status for row in selected} <= {"ranked", "duplicate", "failed"}
    ranked = [row for row in selected if row.status == "ranked"]
    assert ranked
    assert len(list((folder / "structures").glob("*.cif"))) == len(ranked)
    for row in ranked:
        atoms = row.toatoms()
        atoms.calc = MaiseCalculator(model="silicon")
        assert atoms.get_potential_energy() == pytest.approx(row.energy, abs=1e-8)  # same potential, same cell
        assert np.abs(atoms.get_forces()).max() < 0.02
        assert row.extrapolation == pytest.approx(atoms.calc.results["extrapolation"].max(), abs=1e-6)
        assert -1 <= row.pearson_replica <= 1
        assert 1 <= row.spacegroup <= 230
    for row in selected:
        if row.status == "duplicate":
            original = connect(folder / "candidates.db").get(candidate=row.duplicate_of)
            assert original.energy / original.natoms == pytest.approx(row.energy / row.natoms, abs=0.01)


def test_cif_files_are_the_ranked_crystals(finished_run):
    folder, _ = finished_run
    for file in (folder / "structures").glob("*.cif"):
        index = int(file.stem.split("_")[1])
        row = connect(folder / "candidates.db").get(candidate=index)
        assert read(file).get_volume() == pytest.approx(row.volume, rel=1e-4)


def test_killed_run_resumes_to_the_same_result(finished_run, tmp_path):
    folder, _ = finished_run
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ase_hvae", "generate", *SMALL, "--out", "run"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    database = tmp_path / "run" / "candidates.db"
    deadline = time.monotonic() + 120
    while not (database.exists() and connect(database).count() >= 1) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "run" / "summary.json").exists()
    assert run_cli("generate", *SMALL, "--out", "run", cwd=tmp_path).returncode == 2
    resumed = run_cli("generate", "--resume", "--out", "run", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert rows(tmp_path / "run").keys() == rows(folder).keys()
    for index, (status, spacegroup, energy_above, duplicate_of) in rows(folder).items():
        again = rows(tmp_path / "run")[index]
        assert again[0::3] == (status, duplicate_of)
        assert again[1] == spacegroup
        assert again[2] == pytest.approx(energy_above, abs=1e-6)


def test_resume_refuses_other_options(finished_run):
    folder, _ = finished_run
    result = run_cli("generate", "--resume", "--out", str(folder), "--seed", "4", cwd=folder)
    assert result.returncode == 2
    assert "seed was 3, now 4" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config", "missing.toml"], "cannot read configuration missing.toml"),
        (["--model", "missing.safetensors"], "missing.safetensors"),
        (["--known", "missing.cif"], "missing.cif"),
        (["--potential", "missing.model"], "missing.model"),
        (["--calculator", "nothing"], "nothing"),
        (["--calculator", "vasp"], "VASP cannot run without the command of VASP"),
        (["--n", "0"], "at least 1"),
        (["--n", "many"], "invalid int value: 'many'"),
        (["--natoms", "0-4"], "natoms"),
        (["--resume"], "holds no run to resume"),
        (["--sampling", "around", "--around", "unobtainium"], "unobtainium"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, monkeypatch, capsys, args, message):
    for variable in ("ASE_VASP_COMMAND", "VASP_COMMAND", "VASP_SCRIPT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["generate", *args])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_uncovered_species_is_refused(tmp_path, monkeypatch, capsys, copper_weights):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["generate", "--model", str(copper_weights[0]), "--known", str(copper_weights[1])])
    assert stopped.value.code == 2
    assert "Cu" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def copper_weights(tmp_path_factory):
    """Weights for another element: a few copper crystals, trained in seconds."""
    folder = tmp_path_factory.mktemp("copper")
    crystals = [bulk("Cu", "fcc", 3.6), bulk("Cu", "bcc", 2.9), bulk("Cu", "sc", 2.4), bulk("Cu", "hcp", 2.55, 4.2)]
    crystals.append(bulk("Cu", "bct", a=2.6, c=3.6))
    for atoms, name in zip(crystals, ["fcc", "bcc", "sc", "hcp", "bct"], strict=True):
        atoms.info["name"] = name
    write(folder / "copper.extxyz", crystals)
    train(folder / "copper.extxyz", folder / "copper.safetensors", epochs=3, seed=1)
    return folder / "copper.safetensors", folder / "copper.extxyz"


def test_another_element_and_calculator(copper_weights, tmp_path):
    weights, known = copper_weights
    options = {
        "model": str(weights), "known": str(known), "calc": EMT(), "n": 6, "natoms": "1-2", "n_phonons": 1,
        "sampling": "posterior", "pearson_threshold": 1.0, "min_length": 8.0, "seed": 2,
    }  # fmt: skip
    ranked = generate(out=tmp_path / "run", **options)
    assert ranked
    assert min(candidate.energy_above for candidate in ranked) > -1e-3  # EMT: fcc is the ground state of copper
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["reference"]["name"] == "fcc"
    with pytest.raises(StructureError, match=r"absent.db does not exist"):
        generate(out=tmp_path / "third", also_known="absent.db", **options)
    assert not (tmp_path / "third").exists()


def test_known_crystals_with_names_like_numbers(copper_weights, tmp_path):
    """ase.db takes no text that reads like a number."""
    _, known = copper_weights
    crystals = read(known, ":")
    for atoms, name in zip(crystals, ["1", "2e3", "True", "nan", "5H"], strict=True):
        atoms.info["name"] = name
    write(tmp_path / "numbered.extxyz", crystals)
    found = known_crystals(str(tmp_path / "numbered.extxyz"), "Cu")
    for atoms in found:
        connect(tmp_path / "some.db").write(atoms, name=atoms.info["name"])
    assert [atoms.info["name"] for atoms in found][-1] == "5H"


@pytest.fixture
def vasp(monkeypatch, tmp_path):
    """A stand-in for VASP that computes copper by EMT and fails for structures of three atoms."""
    potcar = tmp_path / "potentials" / "potpaw_PBE" / "Cu" / "POTCAR"
    potcar.parent.mkdir(parents=True)
    potcar.write_text("  PAW_PBE Cu\n   TITEL  = PAW_PBE Cu 22Jun2005\n   ENMAX  =  295.446; ENMIN  =  221.585 eV\n")
    standin = Path(__file__).parents[1] / "generator" / "standin_vasp.py"
    monkeypatch.setenv("VASP_PP_PATH", str(tmp_path / "potentials"))
    monkeypatch.setenv("ASE_VASP_COMMAND", f"{sys.executable} {standin} exit 3")
    return potcar


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Loaded .*VASP.* from environment")
def test_vasp_takes_over_where_the_potential_does_not_cover_the_element(copper_weights, tmp_path, vasp):
    weights, known = copper_weights[0], tmp_path / "fcc.extxyz"
    write(known, [atoms for atoms in read(copper_weights[1], ":") if atoms.info["name"] == "fcc"])
    options = {
        "model": str(weights), "known": str(known), "calculator": "maise,vasp",
        "vasp": {"encut": 350, "kpts": [2, 2, 2]},
        "n": 8, "natoms": "1,3", "n_phonons": 0, "sampling": "posterior", "pearson_threshold": 1.0, "fmax": 0.5,
        "workers": 2, "seed": 2, "n_proposals": 100,
    }  # fmt: skip
    folder = tmp_path / "run"
    ranked = generate(out=folder, **options)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["calculator"]["name"] == "vasp"
    assert summary["calculator"]["species"] == ["Cu"]
    assert summary["calculator"]["settings"]["encut"] == 350
    assert summary["calculator"]["refused"] == ["maise: model 'silicon' covers Si, not Cu; pass another model"]
    assert summary["funnel"]["outside_training"] is None
    assert summary["pearson_null"] is None  # a single known crystal has no other to be compared with
    assert "dE: energy above fcc by vasp; r: Pearson correlation of g(r)\n" in describe(folder, ranked)
    assert "covers Si, not Cu" in (folder / "log.txt").read_text()
    for candidate in ranked:
        assert len(candidate.atoms) == 1
        assert EMT().get_potential_energy(candidate.atoms) == pytest.approx(candidate.energy, abs=1e-8)
    failed = [row.data["failure"] for row in connect(folder / "candidates.db").select(status="failed")]
    assert ranked
    assert failed
    assert all("vasp failed: vasp in" in text and "ZBRENT: fatal error" in text for text in failed)
    runs = sorted((folder / "calculator_runs").iterdir())
    assert len(runs) >= 2  # a folder for each process: the reference is computed in this one
    assert all("ENCUT = 350" in (run / "INCAR").read_text() for run in runs)
    vasp.write_text(vasp.read_text() + "another version\n")
    with pytest.raises(ConfigError, match=r"calculator is no longer the one that the run began with \(sha256 was"):
        generate(out=folder, resume=True)
    with pytest.raises(ConfigError, match="encut was 350, now 400"):
        generate(out=folder, resume=True, vasp={"encut": 400, "kpts": [2, 2, 2]})
    (folder / "calculator.json").unlink()
    with pytest.raises(RunFolderError, match=r"cannot read .*calculator\.json: .*start the run anew"):
        generate(out=folder, resume=True)
    RunFolder(folder, overwrite=True).clear()
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_generator_yields_crystals_with_provenance():
    first, second = (HVAEGenerator(seed=5, natoms="2-4") for _ in range(2))
    assert first.model.latent_dim == 2
    atoms, again = first.get_new_candidate(), next(iter(second))
    np.testing.assert_array_equal(atoms.positions, again.positions)
    assert atoms.calc is None
    assert 2 <= len(atoms) <= 4
    assert {"candidate", "replica", "latent", "spacegroup", "pearson_replica"} <= set(atoms.info)
    mean, std = first.encode(bulk("Si"))
    assert mean.shape == std.shape == (1, 2)
    assert first.decode(mean)[0].rdf.shape == (200,)
