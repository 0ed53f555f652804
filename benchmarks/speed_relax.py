"""Time relaxations of many crystals at once against ASE's loop with the same potential, on one core, in one run.

    OMP_NUM_THREADS=1 python benchmarks/speed_relax.py [--n 200] [--labels FILE]

Takes crystals of up to 8 atoms from a file of labelled structures (default: the labels of the shipped silicon model),
rattles them by 0.1 Å and strains them by 3 %, and relaxes positions and cell to 0.01 eV/Å: by `batch_relax`, by ASE's
FIRE and BFGS with FrechetCellFilter on MaiseCalculator (a tenth of them), and by the real
`maise` (a few) where it is on PATH. Prints processor milliseconds per step and relaxation and writes
benchmarks/results/speed_relax.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.optimize import BFGS, FIRE
from ase.optimize.optimize import Optimizer

from maise_bridge import MaiseCalculator
from maise_bridge.batch_relax import batch_relax

ROOT = Path(__file__).parents[1]
FMAX, STEPS = 0.01, 500


def starts(path: Path, n: int) -> list[Atoms]:
    """Distorted crystals of up to 8 atoms, spread over the file."""
    known = [atoms for atoms in read(path, ":") if len(atoms) <= 8]
    out = []
    for number in np.linspace(0, len(known) - 1, n).astype(int):
        rng = np.random.default_rng(number)
        atoms = Atoms(known[number].numbers, known[number].positions, cell=known[number].cell, pbc=True)
        atoms.rattle(0.1, rng=rng)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.03 * rng.normal(size=(3, 3))), scale_atoms=True)
        out.append(atoms)
    return out


def measured(call: Callable[[], list[tuple[int, float]]]) -> dict[str, float]:
    """Milliseconds per step and per relaxation of a call that returns steps and final energies."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.process_time()
    results = call()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = time.process_time() - start + after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    steps = sum(n for n, _ in results)
    return {
        "relaxations": len(results),
        "steps": steps,
        "ms_per_step": 1e3 * seconds / steps,
        "ms_per_relaxation": 1e3 * seconds / len(results),
    }


def by_batch(structures: list[Atoms], calc: MaiseCalculator, optimizer: str = "FIRE") -> list[tuple[int, float]]:
    """All at once."""
    results = batch_relax(structures, calc.potential, fmax=FMAX, max_steps=STEPS, optimizer=optimizer)
    return [(r.n_steps, r.evaluation.energy) for r in sorted(results, key=lambda r: r.index)]


def by_ase(
    structures: list[Atoms], calc: MaiseCalculator, optimizer: type[Optimizer] = FIRE
) -> list[tuple[int, float]]:
    """One after the other with ASE's own classes."""
    out = []
    for given in structures:
        atoms = given.copy()
        atoms.calc = calc
        dynamics = optimizer(FrechetCellFilter(atoms), logfile=None)
        dynamics.run(fmax=FMAX, steps=STEPS)
        out.append((dynamics.nsteps, atoms.get_potential_energy()))
    return out


def by_maise(structures: list[Atoms], calc: MaiseCalculator) -> list[tuple[int, float]]:
    """By the real program's own optimiser; its iterations are no steps of FIRE."""
    from maise_bridge import Maise, MaiseProfile

    out = []
    for atoms in structures:
        with tempfile.TemporaryDirectory() as folder:
            program = Maise(calc.model_path, directory=folder, profile=MaiseProfile("maise"), shortest_distance=0.0)
            result = program.relax(atoms, must_converge=False)
        out.append((result.n_iterations, result.atoms.get_potential_energy()))
    return out


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=200, help="crystals [%(default)s]")
    parser.add_argument("--labels", type=Path, default=ROOT / "maise_bridge" / "models" / "silicon_labels.extxyz.gz")
    options = parser.parse_args()
    structures, calc = starts(options.labels, options.n), MaiseCalculator("silicon")
    by_batch(structures[:2], calc)  # compile
    tenth = structures[:: max(1, options.n // 20)]
    rows: dict[str, dict[str, Any]] = {
        "batch_relax": measured(lambda: by_batch(structures, calc)),
        "batch_relax, BFGS": measured(lambda: by_batch(structures, calc, "BFGS")),
        "ASE FIRE + FrechetCellFilter": measured(lambda: by_ase(tenth, calc)),
        "ASE BFGS + FrechetCellFilter": measured(lambda: by_ase(tenth, calc, BFGS)),
    }
    if shutil.which("maise"):
        rows["maise executable"] = measured(lambda: by_maise(tenth[:3], calc))
    difference = max(
        abs(a[1] - b[1]) for a, b in zip(by_batch(tenth, calc), by_ase(tenth, calc), strict=True) if a[0] < STEPS
    )
    fast = rows["batch_relax"]
    for name, row in rows.items():
        row["step_over_batch"] = row["ms_per_step"] / fast["ms_per_step"]
        row["relaxation_over_batch"] = row["ms_per_relaxation"] / fast["ms_per_relaxation"]
        counts = f"{row['relaxations']:4d} relaxations, {row['steps']:6d} steps"
        step = f"{row['ms_per_step']:8.3f} ms a step ({row['step_over_batch']:.1f} x)"
        print(
            f"{name:30s} {counts}, {step}, {row['ms_per_relaxation']:8.1f} each ({row['relaxation_over_batch']:.1f} x)"
        )
    print(f"largest difference of final energies from ASE's: {difference:.1e} eV")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    record = {"git": commit.stdout.strip(), "machine": platform.machine(), "n": options.n, "rows": rows}
    target = ROOT / "benchmarks" / "results" / "speed_relax.json"
    target.write_text(json.dumps(record | {"largest_energy_difference_ev": difference}, indent=1) + "\n")


if __name__ == "__main__":
    main()
