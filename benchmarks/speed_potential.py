"""Time energy, forces and stress of a MAISE model for diamond at the density of silicon (86 neighbours).

    OMP_NUM_THREADS=1 python benchmarks/speed_potential.py [MODEL]

Prints a table and writes benchmarks/results/speed_potential.json: processor and wall microseconds per atom (minimum
over repeats) for single cells as a relaxation calls them, neighbour list kept with a skin, for a batch of 64 cells,
and their ratio to the batch of the same run. MAISE's C code was measured at 6530 per atom on a like machine.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ase
import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

from maise_bridge import MaiseCalculator, MaisePotential
from maise_bridge.calculator import find_model
from maise_bridge.neighbors import NeighborListCache

ROOT = Path(__file__).parents[1]
MAISE_C = 6530.0  # microseconds per atom, one core, same kind of machine
FALLBACK = ROOT / "tests" / "data" / "bridge" / "si.model"


def fastest(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Least processor and wall time of a call; microseconds."""
    call()
    times = []
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        call()
        times.append((time.process_time() - processor, time.perf_counter() - wall))
    return tuple(1e6 * np.min(times, axis=0))


def diamond(repeat: int, seed: int = 0) -> Atoms:
    """Rattled diamond structure: 2 atoms, or 8 repeat³."""
    atoms = bulk("Si", a=5.43) if repeat == 0 else bulk("Si", a=5.43, cubic=True) * ((repeat,) * 3)
    atoms.rattle(0.05, seed=seed)
    return atoms


def single_cells(model: str) -> list[dict[str, float]]:
    """Moving single cells through MaiseCalculator."""
    rows = []
    for repeat, repeats in ((0, 60), (1, 40), (2, 12), (3, 4)):
        atoms = diamond(repeat)
        atoms.calc = MaiseCalculator(model)
        steps = np.random.default_rng(1).normal(size=(5, len(atoms), 3)) * 1e-3

        def call(atoms: Atoms = atoms, steps: np.ndarray = steps) -> None:
            atoms.positions += steps[int(1e6 * atoms.positions[0, 0]) % 5]
            atoms.get_forces()

        processor, wall = fastest(call, repeats)
        rows.append({"n_atoms": len(atoms), "cells": 1, "cpu_us": processor / len(atoms), "wall_us": wall / len(atoms)})
    return rows


def batch(model: str) -> dict[str, float]:
    """64 cells of 8 atoms in one call, neighbour lists kept."""
    potential = MaisePotential.from_file(find_model(model))
    structures = [diamond(1, seed) for seed in range(64)]
    cache = NeighborListCache(potential.cutoff)
    processor, wall = fastest(lambda: potential.evaluate(structures, neighbors=cache.get(structures)), 4)
    return {"n_atoms": 8, "cells": 64, "cpu_us": processor / 512, "wall_us": wall / 512}


def main() -> None:
    """Run, print, write."""
    torch.set_num_threads(1)
    model = sys.argv[1] if len(sys.argv) > 1 else "silicon"
    if len(sys.argv) == 1 and not (ROOT / "maise_bridge" / "models" / "silicon.model").exists():
        model = str(FALLBACK)
    rows = [*single_cells(model), batch(model)]
    for row in rows:
        row["over_batch"] = row["cpu_us"] / rows[-1]["cpu_us"]
        size = f"{row['cells']:3.0f} x {row['n_atoms']:4.0f} atoms"
        times = f"{row['cpu_us']:7.0f} us/atom processor, {row['wall_us']:7.0f} wall"
        print(f"{size}: {times}, {row['over_batch']:5.2f} of the batch")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    record = {
        "git": commit.stdout.strip(),
        "machine": platform.machine(),
        "versions": versions | {"ase": ase.__version__},
        "model": Path(model).name,
        "maise_c_us": MAISE_C,
        "rows": rows,
    }
    target = ROOT / "benchmarks" / "results" / "speed_potential.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
