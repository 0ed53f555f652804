"""Time energy, forces and stress of a MAISE model, on one core, in one run.

    OMP_NUM_THREADS=1 python benchmarks/speed_potential.py [MODEL]

Diamond structures at the density of silicon (86 neighbours) and of tin (46), rattled: single cells as a relaxation
calls them, a batch of 64 cells of 8 atoms that move by 0.02 Å a step with neighbour lists kept, the same batch by
torch, and the real `maise` where it is on PATH (single points of 64 atoms, time of the process less that of a 2-atom
run). Prints a table and writes benchmarks/results/speed_potential.json: processor microseconds per atom (median and
minimum over repeats), ratios to the batch, memory for 1000 atoms, and the arithmetic that the batch needs.
"""

from __future__ import annotations

import json
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import numba
import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

from maise_bridge import Maise, MaiseCalculator, MaisePotential, MaiseProfile
from maise_bridge.calculator import find_model
from maise_bridge.neighbors import NeighborListCache, neighbor_list

ROOT = Path(__file__).parents[1]
LATTICE = {86: 5.43, 46: 6.65}  # lattice constant of diamond with so many neighbours within 7.5 Å
STATED = {86: 6530.0, 46: 1590.0}  # MAISE's C code as measured by itself on a like machine, microseconds per atom


def diamond(neighbours: int, repeat: int, seed: int = 0) -> Atoms:
    """Rattled diamond structure: 2 atoms, or 8 repeat³."""
    a = LATTICE[neighbours]
    atoms = bulk("Si", a=a) if repeat == 0 else bulk("Si", a=a, cubic=True) * ((repeat,) * 3)
    atoms.rattle(0.05, seed=seed)
    return atoms


def timed(call: Callable[[], object], repeats: int, n_atoms: int) -> dict[str, float]:
    """Processor microseconds per atom of a call."""
    call()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(1e6 * (time.process_time() - start) / n_atoms)
    return {"median_us": float(np.median(times)), "least_us": float(np.min(times))}


def single_cells(model: str) -> list[dict[str, Any]]:
    """Moving single cells through MaiseCalculator."""
    rows = []
    for repeat, repeats in ((0, 200), (1, 100), (2, 20), (5, 4)):
        atoms = diamond(86, repeat)
        atoms.calc = MaiseCalculator(model)
        rng = np.random.default_rng(1)

        def call(atoms: Atoms = atoms, rng: np.random.Generator = rng) -> None:
            atoms.positions += rng.normal(size=atoms.positions.shape) * 1e-3
            atoms.get_forces()

        rows.append({"what": "single cell", "n_atoms": len(atoms), "neighbours": 86} | timed(call, repeats, len(atoms)))
    return rows


def batch(model: str, neighbours: int, repeats: int, **options: Any) -> dict[str, Any]:
    """64 cells of 8 atoms in one call, moving, neighbour lists kept."""
    potential = MaisePotential(MaiseCalculator(model).potential.model, **options)
    structures = [diamond(neighbours, 1, seed) for seed in range(64)]
    cache = NeighborListCache(potential.cutoff)
    rng = np.random.default_rng(2)

    def call() -> None:
        for atoms in structures:
            step = rng.normal(size=(8, 3))
            atoms.positions += 0.02 * step / np.linalg.norm(step, axis=1, keepdims=True)
        potential.evaluate(structures, neighbors=cache.get(structures))

    times = timed(call, repeats, 512)
    name = "batch of 64" + (", torch" if options else "")
    return {
        "what": name,
        "n_atoms": 8,
        "neighbours": neighbours,
        "steps_per_search": 64 * (repeats + 1) / cache.n_searches,
    } | times


def real_program(model: str, neighbours: int) -> dict[str, Any]:
    """Single points of 64 atoms by the maise executable, less the time of 2 atoms."""

    def seconds(repeat: int) -> float:
        atoms = diamond(neighbours, repeat)
        with tempfile.TemporaryDirectory() as folder:
            atoms.calc = Maise(model=model, directory=folder, profile=MaiseProfile("maise"))
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            atoms.get_forces()
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    times = [1e6 * (seconds(2) - seconds(0)) / 62 for _ in range(3)]
    spread = {"median_us": float(np.median(times)), "least_us": float(np.min(times))}
    return {"what": "maise executable", "n_atoms": 64, "neighbours": neighbours} | spread


def memory(model: str, **options: Any) -> dict[str, float]:
    """Peak memory of processes that evaluate 2 and 1000 atoms; MB."""
    code = (
        "import re, sys; from ase.build import bulk; from maise_bridge import MaiseCalculator, MaisePotential\n"
        f"potential = MaisePotential(MaiseCalculator({model!r}).potential.model, **{options!r})\n"
        "potential.evaluate([bulk('Si') if sys.argv[1] == '2' else bulk('Si', cubic=True) * 5])\n"
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024)"
    )
    out = {}
    for n_atoms in ("2", "1000"):
        run = subprocess.run([sys.executable, "-c", code, n_atoms], capture_output=True, text=True, check=True)
        out[n_atoms] = float(run.stdout)
    return out


def arithmetic(cutoff: float) -> dict[str, float]:
    """Exponentials and fused multiply-adds per atom at silicon density, as the loops are written."""
    bonds = neighbor_list([diamond(86, 1, seed) for seed in range(8)], cutoff)
    n_bonds, n_triangles = (len(array) / 64 for array in (bonds.topology.centre, bonds.topology.triangles[1]))
    # three corners: 64 to sum up, 128 to differentiate; radial factors, powers and cosines take some 100 more
    return {
        "triangles": n_triangles,
        "exponentials": n_bonds * 15,
        "exponentials_if_every_corner_had_its_own": 3 * n_triangles * 7,
        "multiply_adds": n_triangles * (3 * 64 + 3 * 128 + 100),
    }


def main() -> None:
    """Run, print, write."""
    torch.set_num_threads(1)
    model = sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "tests" / "data" / "bridge" / "si.model")
    rows = single_cells(model)
    rows += [batch(model, 86, 40), batch(model, 46, 40), batch(model, 86, 5, device="cpu")]
    if shutil.which("maise"):
        rows += [real_program(str(find_model(model)), neighbours) for neighbours in LATTICE]
    fast = {row["neighbours"]: row["median_us"] for row in rows if row["what"] == "batch of 64"}
    for row in rows:
        row["over_batch"] = row["median_us"] / fast[row["neighbours"]]
        size = f"{row['what']:20s} {row['n_atoms']:5d} atoms, {row['neighbours']} neighbours"
        print(
            f"{size}: {row['median_us']:6.0f} us/atom (least {row['least_us']:6.0f}), {row['over_batch']:5.2f} batches"
        )
    for neighbours, stated in STATED.items():
        ratio = stated / fast[neighbours]
        print(f"batch, {neighbours} neighbours: {ratio:.0f} times as fast as stated for MAISE's C code")
    work = arithmetic(7.4998)
    peaks = {"compiled": memory(model), "torch": memory(model, device="cpu")}
    rate = work["multiply_adds"] / fast[86] / 1000
    print(f"{work['triangles']:.0f} triangles, {work['exponentials']:.0f} exponentials and", end=" ")
    print(f"{work['multiply_adds']:.0f} multiply-adds an atom: {rate:.1f} multiply-adds a nanosecond")
    for name, peak in peaks.items():
        print(f"peak memory, {name}: {peak['1000']:.0f} MB for 1000 atoms, {peak['2']:.0f} MB for 2")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    versions = {"python": platform.python_version(), "numba": numba.__version__, "torch": torch.__version__}
    record = {
        "git": commit.stdout.strip(),
        "machine": platform.machine(),
        "versions": versions | {"numpy": np.__version__, "ase": ase.__version__},
        "model": Path(model).name,
        "stated_for_maise_us": STATED,
        "rows": rows,
        "arithmetic_per_atom": work,
        "peak_memory_mb": peaks,
    }
    target = ROOT / "benchmarks" / "results" / "speed_potential.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
