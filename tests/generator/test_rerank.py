"""A second opinion on the best candidates of a run: laws of energies, survival of kills, labels, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.db import connect
from ase.io import read, write

from ase_hvae.calculators import CalculatorRecord
from ase_hvae.candidate import Candidate
from ase_hvae.cli import main
from ase_hvae.config import GenerateConfig, write_config
from ase_hvae.database import CandidateDatabase, RunFolder
from ase_hvae.errors import ConfigError, RelaxationError, RunFolderError
from ase_hvae.relax import relax
from ase_hvae.rerank.report import compare_rankings, format_report
from ase_hvae.rerank.run import rerank
from ase_hvae.rerank.store import Reranked, file_stem
from ase_hvae.symmetry import symmetrize
from maise_bridge.dataset import read_labels

FACTORIES = """
import os
import numpy as np
from ase.calculators.emt import EMT
from ase.units import GPa
__version__ = "7"

def emt():
    return EMT()

class Pressed(EMT):
    '''EMT with 10 GPa times the volume added: its minima are those of EMT under 10 GPa more.'''
    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        for name in ("energy", "free_energy"):
            self.results[name] += 10 * GPa * atoms.cell.volume
        self.results["stress"] = self.results["stress"] + 10 * GPa * np.array([1, 1, 1, 0, 0, 0])

class Scaled(EMT):
    '''EMT with all energies doubled.'''
    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        for name in ("energy", "free_energy", "forces", "stress"):
            self.results[name] = 2 * self.results[name]

class Fragile(EMT):
    '''EMT that fails for two atoms, or kills its process at the third structure.'''
    structures = 0
    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        if "KILL" in os.environ:
            Fragile.structures += 1
            if Fragile.structures > int(os.environ["KILL"]):
                os.kill(os.getpid(), 9)
        elif len(atoms) == 2 and "HEALED" not in os.environ:
            raise RuntimeError("no luck with two atoms")
        super().calculate(atoms, properties, system_changes)
"""


@pytest.fixture(autouse=True)
def factories(tmp_path, monkeypatch):
    """A module of calculators that factories make."""
    (tmp_path / "factories_of_rerank.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "factories_of_rerank", raising=False)
    return "factories_of_rerank"


KNOWN = {
    "fcc": bulk("Cu", "fcc", 3.6),
    "bcc": bulk("Cu", "bcc", 2.9),
    "hcp": bulk("Cu", "hcp", 2.55, 4.2),
}
PRESSURE = 5.0  # GPa


def make_run(folder: Path, pressure: float = PRESSURE) -> Path:
    """Folder of a finished run of copper by EMT at a pressure, as generate leaves it."""
    for name, atoms in KNOWN.items():
        atoms.info["name"] = name
    write(folder / "known.extxyz", list(KNOWN.values()))
    run = folder / "run"
    run_folder = RunFolder(run)
    run_folder.clear()
    config = GenerateConfig().with_options(
        calculator="factories_of_rerank:emt", known=str(folder / "known.extxyz"), pressure=pressure, fmax=1e-3
    )
    write_config(config, run_folder.config)
    run_folder.write_calculator(asdict(CalculatorRecord("factories_of_rerank:emt", version="7", species=("Cu",))))
    minima = [relax(atoms, EMT(), fmax=1e-3, scalar_pressure=pressure * units.GPa) for atoms in KNOWN.values()]
    enthalpies = [minimum.enthalpy / len(minimum.atoms) for minimum in minima]
    database = CandidateDatabase(run_folder.database)
    for index, (minimum, enthalpy) in enumerate(zip(minima, enthalpies, strict=True)):
        found = symmetrize(minimum.atoms)
        database.write(
            Candidate(
                index=index, replica=0, atoms=minimum.atoms, latent=np.zeros(2), target_rdf=np.zeros(4),
                pearson_initial=0.9, spacegroup_initial=1, status="ranked", stage="rank", spacegroup=found.number,
                symbol=found.symbol, energy=minimum.energy, forces=minimum.forces, stress=minimum.stress,
                energy_above=enthalpy - enthalpies[0], known="new",
            )
        )  # fmt: skip
    run_folder.write_summary({"reference": {"name": "fcc", "energy_per_atom": enthalpies[0]}})
    return run


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path)


def test_the_run_s_own_calculator_agrees_with_itself(run):
    result = rerank(run, "factories_of_rerank:emt")
    assert [row.candidate for row in result.rows] == [row.candidate for row in sorted(
        result.rows, key=lambda row: row.energy_above_run
    )]  # fmt: skip
    agreement = compare_rankings(result.rows)
    assert agreement.n == 3
    assert agreement.kendall_tau == 1.0
    assert agreement.rms_error < 1e-5  # eV/atom; what is left of a relaxation to 1e-3 eV/Å
    assert agreement.force_rmse < 1e-9
    assert agreement.n_force_components == 3 * sum(map(len, KNOWN.values()))
    assert all(row.became == "same" and row.spacegroup == row.spacegroup_run for row in result.rows)


def test_doubled_energies_give_doubled_differences_at_the_run_s_minima(tmp_path):
    run = make_run(tmp_path, pressure=0.0)
    (tmp_path / "more.py").write_text("from factories_of_rerank import Scaled\n")
    result = rerank(run, "more:Scaled", single_point=True)
    for row in result.rows:
        assert row.energy_above == pytest.approx(2 * row.energy_above_run, abs=1e-5)
        np.testing.assert_allclose(row.single_point.get_forces(), 2 * row.start.get_forces(), atol=1e-9)
        assert row.relaxed is None
    agreement = compare_rankings(result.rows)
    worst = max(row.energy_above_run for row in result.rows)
    assert agreement.max_error == pytest.approx(-worst, abs=1e-5)
    assert agreement.kendall_tau == 1.0


def test_enthalpies_are_compared_under_the_pressure_of_the_run(run):
    result = rerank(run, "factories_of_rerank:Pressed")
    pressure = PRESSURE * units.GPa

    def enthalpy(atoms: Atoms) -> float:
        return (atoms.get_potential_energy() + pressure * atoms.cell.volume) / len(atoms)

    for row in result.rows:
        above = enthalpy(row.relaxed) - enthalpy(result.reference.relaxed)
        assert row.energy_above == pytest.approx(above, abs=1e-12)
        assert row.volume_change == pytest.approx(row.relaxed.cell.volume / row.start.cell.volume - 1, abs=1e-12)
        alone = relax(row.start, EMT(), fmax=1e-3, scalar_pressure=3 * pressure)  # 10 GPa of it by the calculator
        assert row.relaxed.get_potential_energy() / len(alone.atoms) == pytest.approx(
            (alone.energy + 2 * pressure * alone.atoms.cell.volume) / len(alone.atoms), abs=1e-5
        )
        assert row.volume_change < -0.03
    again = rerank(run, "factories_of_rerank:Pressed")
    assert format_report(again) == format_report(result)


def test_ranking_of_the_run_is_untouched_and_overwrite_removes_the_rerank(run):
    before = (run / "candidates.db").read_bytes()
    rerank(run, "factories_of_rerank:Pressed", top=1)
    assert (run / "candidates.db").read_bytes() == before
    assert {path.name for path in run.glob("*factories*")} == {
        "rerank_factories_of_rerank_Pressed.db",
        "labels_factories_of_rerank_Pressed.extxyz",
    }
    RunFolder(run, overwrite=True).clear()
    assert [path.name for path in run.iterdir()] == [".lock"]


def test_labels_are_read_for_a_fit(run):
    result = rerank(run, "factories_of_rerank:Pressed")
    labels = read_labels(result.labels)
    assert len(labels) + labels.removed["repeats"] == len(read(result.labels, ":"))
    # fcc is candidate 0 too: one of two labels of a structure is kept
    assert set(labels.tags) == {"rerank_reference", "rerank_1", "rerank_2"}
    assert labels.records[0]["calculator"] == "factories_of_rerank:Pressed"
    assert labels.records[0]["program.factories_of_rerank:Pressed"] == "7"
    row = result.rows[-1]
    found = [number for number, tag in enumerate(labels.tags) if tag == f"rerank_{row.candidate}"]
    assert labels.energies[found[0]] == pytest.approx(row.single_point.get_potential_energy(), abs=1e-6)
    np.testing.assert_allclose(labels.stresses[found[0]], row.single_point.get_stress(), atol=1e-7)


def test_a_killed_rerank_goes_on_to_the_same_result(run, monkeypatch):
    monkeypatch.setenv("HEALED", "1")
    calculator = "factories_of_rerank:Fragile"
    command = [sys.executable, "-m", "ase_hvae", "rerank", str(run), "--calculator", calculator, "--single-point"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(run.parent), *sys.path]), "KILL": "2"}
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == -9
    database = run / "rerank_factories_of_rerank_Fragile.db"
    done = {row.id: row.mtime for row in connect(database).select()}
    assert len(done) == 2  # the reference and a candidate
    again = rerank(run, calculator, single_point=True)
    rows = list(connect(database).select())
    assert len(rows) == 4
    assert {row.id: row.mtime for row in rows if row.id in done} == done
    whole = rerank(run, "factories_of_rerank:emt", single_point=True)
    for row, other in zip(again.rows, whole.rows, strict=True):
        assert row.energy_above == pytest.approx(other.energy_above, abs=1e-12)


def test_failures_are_kept_and_tried_again_on_request(run, monkeypatch):
    result = rerank(run, "factories_of_rerank:Fragile")
    failed = [row for row in result.rows if row.failure]
    assert [len(row.start) for row in failed] == [2]
    assert "no luck with two atoms" in failed[0].failure
    assert compare_rankings(result.rows).n == 2
    assert "2 candidates by both, 1 failed" in format_report(result)
    monkeypatch.setenv("HEALED", "1")
    assert [row.failure for row in rerank(run, "factories_of_rerank:Fragile").rows].count(None) == 2
    assert [row.failure for row in rerank(run, "factories_of_rerank:Fragile", retry=True).rows] == [None] * 3
    assert len(list(connect(result.database).select())) == 4


def test_a_worker_process_changes_nothing(run):
    alone = rerank(run, "factories_of_rerank:Pressed", single_point=True)
    again = rerank(run, "factories_of_rerank:Pressed", single_point=True, overwrite=True, time_limit=500.0)
    assert [row.energy_above for row in again.rows] == [row.energy_above for row in alone.rows]


@pytest.mark.usefixtures("no_programs")
@pytest.mark.filterwarnings("ignore:Loaded .*VASP.* from environment")
def test_vasp_by_a_stand_in_that_computes_emt(run, tmp_path, monkeypatch, capsys):
    potcar = tmp_path / "potentials" / "potpaw_PBE" / "Cu" / "POTCAR"
    potcar.parent.mkdir(parents=True)
    potcar.write_text("  PAW_PBE Cu\n   TITEL  = PAW_PBE Cu 22Jun2005\n   ENMAX  =  295.446; ENMIN  =  221.585 eV\n")
    monkeypatch.setenv("VASP_PP_PATH", str(tmp_path / "potentials"))
    standin = Path(__file__).with_name("standin_vasp.py")
    monkeypatch.setenv("ASE_VASP_COMMAND", f"{sys.executable} {standin} good")
    (tmp_path / "vasp.toml").write_text("[vasp]\nencut = 350\n")
    main(["rerank", str(run), "--calculator", "vasp", "--config", str(tmp_path / "vasp.toml"), "--single-point",
          "--top", "2"])  # fmt: skip
    table = capsys.readouterr().out
    assert "Kendall tau 1.000 (n = 2)" in table
    assert "dE run - dE: mean 0.0, RMS 0.0" in table.replace("-0.0", "0.0")
    labels = read_labels(run / "labels_vasp.extxyz")
    assert labels.records[0]["encut"] == "350"
    assert set(labels.spacings) == {0.2}
    for atoms, energy in zip(labels.structures, labels.energies, strict=True):
        assert EMT().get_potential_energy(atoms) == pytest.approx(energy, abs=1e-6)
    rows = list(connect(run / "rerank_vasp.db").select(role="candidate"))
    assert [row.energy_above for row in rows] == pytest.approx([row.energy_above_run for row in rows], abs=1e-5)


def row(number: int, run: float, second: float | None) -> Reranked:
    atoms = KNOWN["fcc"].copy()
    return Reranked(number, "", atoms, run, energy_above=second)


def test_agreement_by_hand():
    rows = [row(0, 0.0, 0.01), row(1, 0.1, 0.05), row(2, 0.2, 0.04), row(3, 0.3, None)]
    found = compare_rankings(rows)
    assert found.n == 3
    assert found.kendall_tau == pytest.approx(1 / 3)  # two pairs in order, one not
    assert found.mean_error == pytest.approx((-0.01 + 0.05 + 0.16) / 3)
    assert found.rms_error == pytest.approx(np.sqrt((0.01**2 + 0.05**2 + 0.16**2) / 3))
    assert (found.max_error, found.max_candidate) == (pytest.approx(0.16), 2)
    assert found.force_rmse is None
    assert compare_rankings(rows[3:]) == replace(found, n=0, kendall_tau=None, mean_error=None, rms_error=None,
                                                 max_error=None, max_candidate=None)  # fmt: skip
    assert compare_rankings(rows[:1]).kendall_tau is None


def test_file_names_are_safe():
    assert file_stem("package.module:factory", "silicon") == "package.module_factory"
    assert file_stem("maise", "/some/where/my model.txt") == "maise_my_model.txt"
    assert file_stem("maise", "silicon") == "maise"


def test_other_settings_are_refused_on_resume(run, tmp_path):
    rerank(run, "factories_of_rerank:Pressed", top=1)
    (tmp_path / "loose.toml").write_text("[relax]\nfmax = 0.5\n")
    with pytest.raises(ConfigError, match=r"relax\.fmax was 0\.001, now 0\.5; bring those back, or add --overwrite"):
        rerank(run, "factories_of_rerank:Pressed", config=tmp_path / "loose.toml")
    with pytest.raises(ConfigError, match=r"mode\.single_point was False, now True"):
        rerank(run, "factories_of_rerank:Pressed", single_point=True)
    assert len(rerank(run, "factories_of_rerank:Pressed", top=2).rows) == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--calculator", "factories_of_rerank:emt", "--top", "9"], "has 3 ranked candidates; give a number from 1"),
        (["--calculator", "emt"], "unknown calculator"),
        (["--calculator", "vasp,maise"], "must be a single one"),
        (["--calculator", "vasp"], "vasp"),
        (["--calculator", "factories_of_rerank:emt", "--config", "vasp.toml"], "vasp has no meaning for a rerank by"),
        (
            ["--calculator", "factories_of_rerank:emt", "--config", "press.toml"],
            "pressure = 1 GPa, but the run has 5.0",
        ),
        (["--calculator", "factories_of_rerank:emt", "--time-limit", "-1"], "time_limit = -1.0 must be finite"),
    ],
)
@pytest.mark.usefixtures("no_programs")
def test_bad_input_is_one_line_and_writes_nothing(run, tmp_path, monkeypatch, capsys, args, message):
    (tmp_path / "vasp.toml").write_text("[vasp]\nencut = 400\n")
    (tmp_path / "press.toml").write_text("[relax]\npressure = 1\n")
    monkeypatch.chdir(tmp_path)
    before = sorted(run.iterdir())
    with pytest.raises(SystemExit) as stopped:
        main(["rerank", str(run), *args])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert sorted(run.iterdir()) == before


def test_what_is_no_finished_run_is_refused(run, tmp_path):
    with pytest.raises(RunFolderError, match="holds no run"):
        rerank(tmp_path, "factories_of_rerank:emt")
    (run / "summary.json").write_text(json.dumps({"reference": {"name": "fcc", "energy_per_atom": 1.0}}))
    with pytest.raises(ConfigError, match=r"in the run it had 1\.0000"):
        rerank(run, "factories_of_rerank:emt")
    (run / "summary.json").write_text(json.dumps({"reference": {"name": "iron", "energy_per_atom": 1.0}}))
    with pytest.raises(ConfigError, match="'iron' of the run is no longer among its known crystals"):
        rerank(run, "factories_of_rerank:emt")
    (run / "candidates.db").unlink()
    with pytest.raises(RunFolderError, match="has no ranked candidates"):
        rerank(run, "factories_of_rerank:emt")


def test_a_database_of_something_else_is_refused(run):
    connect(run / "rerank_factories_of_rerank_emt.db").write(KNOWN["fcc"])
    with pytest.raises(ConfigError, match="was not written by rerank"):
        rerank(run, "factories_of_rerank:emt")


def test_a_failing_reference_ends_the_rerank_and_leaves_nothing(run, tmp_path):
    (tmp_path / "loose.toml").write_text("[relax]\nmax_steps = 1\n")
    with pytest.raises(RelaxationError, match=r"reference crystal fcc failed by .*not converged"):
        rerank(run, "factories_of_rerank:Pressed", config=tmp_path / "loose.toml")
    assert not list(run.glob("rerank_*"))
