"""Time the search for duplicates and known crystals among many candidates, on one core.

    OMP_NUM_THREADS=1 python benchmarks/speed_compare.py [N_CANDIDATES]

Candidates: 40 % are the known silicon crystals in other cells (supercells, skewed, turned, shifted, strained by 0.5 %,
atoms off by 0.01 Å), 25 % are minima of the shipped potential that shaken known crystals relaxed to, and 35 % are such
minima once more, in other cells. Prints and writes to benchmarks/results/speed_compare.json: seconds of each step, how
many pairs each step leaves, copies that were missed, known crystals that were merged, and the time that
StructureMatcher would take for all pairs, from a subset of 150 candidates in the same run.
"""

from __future__ import annotations

import itertools
import json
import platform
import resource
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import ase
import numpy as np
import pymatgen.core
import spglib
from ase import Atoms
from ase.build import make_supercell
from pymatgen.core import Lattice, Structure
from pymatgen.core.structure_matcher import StructureMatcher

from ase_hvae.compare import find_duplicates, find_known
from ase_hvae.compare.matching import Matcher
from ase_hvae.compare.search import assign_originals
from ase_hvae.data import load_known
from ase_hvae.relax import RelaxResult, relax_many
from maise_bridge import MaiseCalculator

ROOT = Path(__file__).parents[1]
MAX_ATOMS = 48
SUBSET = 150


def disguise(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """The same crystal in a skewed (super)cell, turned, shifted, permuted, slightly strained and rattled."""
    size = int(rng.integers(1, max(1, min(4, MAX_ATOMS // len(atoms))) + 1))
    matrix = np.diag([1, 1, size])[:, rng.permutation(3)][rng.permutation(3)]
    matrix = np.array([[1, rng.integers(-1, 2), 0], [0, 1, 0], [rng.integers(-1, 2), 0, 1]]) @ matrix
    matrix = matrix if np.linalg.det(matrix) > 0 else -matrix
    other = make_supercell(atoms, matrix)
    strain = 0.005 * rng.uniform(-1, 1, (3, 3))
    other.set_cell(other.cell[:] @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
    other.rotate(rng.uniform(0, 180), rng.normal(size=3), rotate_cell=True)
    other.rattle(0.01, rng=rng)
    other.positions += rng.normal(size=3)
    return other[rng.permutation(len(other))]


def minima(n: int, known: list[Atoms], calc: MaiseCalculator, rng: np.random.Generator) -> list[Atoms]:
    """Relaxed crystals from shaken and strained known ones of at most 12 atoms."""
    small = [atoms for atoms in known if len(atoms) <= 12]
    starts = []
    for _ in range(n):
        atoms = small[rng.integers(len(small))].copy()
        if len(atoms) <= 4:
            atoms = atoms * (1, 1, 2)
        strain = 0.12 * rng.uniform(-1, 1, (3, 3))
        atoms.set_cell(atoms.cell[:] @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        atoms.rattle(0.4, rng=rng)
        starts.append(atoms)
    ends = dict(relax_many(starts, calc, fmax=0.02, max_steps=200))
    return [ends[i].atoms for i in range(n) if isinstance(ends[i], RelaxResult)]


def candidates(n: int, rng: np.random.Generator) -> tuple[list[Atoms], np.ndarray, np.ndarray, list[Atoms]]:
    """Candidates in random order, energies per atom, the base crystal of each, and the known crystals."""
    known = load_known("Si")
    calc = MaiseCalculator(model="silicon")
    bases = known + minima(n // 4, known, calc, rng)
    n_minima = len(bases) - len(known)
    energies = [e.energy / len(a) for a, e in zip(bases, calc.potential.evaluate(bases), strict=True)]
    origin = [int(i) for i in rng.integers(len(known), size=4 * n // 10)] + list(range(len(known), len(bases)))
    origin += [len(known) + int(i) for i in rng.integers(n_minima, size=n - len(origin))]
    first = set(range(4 * n // 10, 4 * n // 10 + n_minima))  # minima as they are
    crystals = [bases[i] if place in first else disguise(bases[i], rng) for place, i in enumerate(origin)]
    order = rng.permutation(len(crystals))
    noise = 0.001 * rng.normal(size=len(crystals))  # what relaxations of one crystal differ by, eV/atom
    values = np.array([energies[i] for i in origin]) + noise
    return [crystals[i] for i in order], values[order], np.array(origin)[order], known


def timed(call: Any) -> tuple[float, Any]:
    """Processor seconds of a call, and its result."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def mistakes(duplicate_of: list[int | None], origin: np.ndarray, n_known: int) -> dict[str, int]:
    """Copies of one base that were both kept, and known crystals of which one was dropped as the other."""
    kept: dict[int, int] = defaultdict(int)
    merged = 0
    for i, other in enumerate(duplicate_of):
        if other is None:
            kept[int(origin[i])] += 1
        else:
            merged += origin[i] != origin[other] and max(origin[i], origin[other]) < n_known
    return {"kept": sum(kept.values()), "missed_copies": sum(n - 1 for n in kept.values()), "merged_known": int(merged)}


def all_pairs(crystals: list[Atoms], energies: np.ndarray) -> dict[str, float]:
    """Time of StructureMatcher for every pair, cells reduced beforehand, and where its verdict differs from ours."""
    matcher = StructureMatcher(ltol=0.2, stol=0.2, angle_tol=5.0, primitive_cell=False)

    def reduced(atoms: Atoms) -> Structure:
        structure = Structure(Lattice(atoms.cell[:]), list(atoms.symbols), atoms.get_scaled_positions())
        return structure.get_primitive_structure(tolerance=0.3).get_reduced_structure()

    prepare, structures = timed(lambda: [reduced(atoms) for atoms in crystals])
    pairs = list(itertools.combinations(range(len(crystals)), 2))
    seconds, verdicts = timed(
        lambda: [bool(matcher.fit(structures[i], structures[j], skip_structure_reduction=True)) for i, j in pairs]
    )
    ours, duplicate_of = timed(lambda: find_duplicates(crystals, energies))
    group = [i if other is None else other for i, other in enumerate(duplicate_of)]
    near = [bool(abs(energies[i] - energies[j]) <= 0.02) for i, j in pairs]
    same = [group[i] == group[j] for i, j in pairs]
    return {
        "crystals": len(crystals),
        "seconds_prepare": prepare,
        "seconds_pairs": seconds,
        "ms_per_pair": 1000 * seconds / len(pairs),
        "seconds_find_duplicates": ours,
        "same_for_structure_matcher": sum(verdicts),
        "same_for_both": sum(int(v and s) for v, s in zip(verdicts, same, strict=True)),
        "same_only_for_structure_matcher_near_in_energy": sum(
            int(v and e and not s) for v, s, e in zip(verdicts, same, near, strict=True)
        ),
        "same_only_for_us": sum(int(s and not v) for v, s in zip(verdicts, same, strict=True)),
    }


def main() -> None:
    """Run, print, write."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    crystals, energies, origin, known = candidates(n, np.random.default_rng(0))
    print(f"{n} candidates, {np.mean([len(atoms) for atoms in crystals]):.1f} atoms on average")
    rows: dict[str, Any] = {}
    for size in sorted({n // 10, n // 3, n}):
        matcher = Matcher(volume_tolerance=0.05)
        seconds, duplicate_of = timed(
            lambda size=size, matcher=matcher: assign_originals(
                crystals[:size], energies[:size], matcher, energy_tolerance=0.02, symprec=0.1
            )
        )
        counts = vars(matcher.counts)
        rows[str(size)] = {"seconds": seconds} | counts | mistakes(duplicate_of, origin[:size], len(known))
        print(f"duplicates among {size}: {seconds:.1f} s; {rows[str(size)]}")
    kept = [crystals[i] for i, other in enumerate(duplicate_of) if other is None]
    to_table, found = timed(lambda: find_known(kept, known))
    to_user, _ = timed(lambda: find_known(kept, known, crystals[: n // 5]))
    n_found = sum(atoms is not None for atoms in found)
    print(f"{len(kept)} distinct ones against {len(known)} known: {to_table:.1f} s, {n_found} found; ", end="")
    print(f"with {n // 5} of a user: {to_user:.1f} s")
    pairs = all_pairs(crystals[:SUBSET], energies[:SUBSET])
    estimate = pairs["ms_per_pair"] / 1000 * n * (n - 1) / 2
    print(f"StructureMatcher, all pairs of {SUBSET}: {pairs}")
    print(f"for all pairs of {n}: {estimate / 3600:.0f} h, {estimate / rows[str(n)]['seconds']:.0f} times as long")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    versions = {"python": platform.python_version(), "numpy": np.__version__, "ase": ase.__version__}
    record = {
        "git": commit.stdout.strip(),
        "machine": platform.machine(),
        "versions": versions | {"spglib": spglib.__version__, "pymatgen": pymatgen.core.__version__},
        "seed": 0,
        "mean_n_atoms": float(np.mean([len(atoms) for atoms in crystals])),
        "duplicates": rows,
        "known": {"asked": len(kept), "found": n_found, "seconds_table": to_table, "seconds_table_and_user": to_user},
        "all_pairs": pairs,
        "all_pairs_estimate_seconds": estimate,
        "ratio": estimate / rows[str(n)]["seconds"],
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    target = ROOT / "benchmarks" / "results" / "speed_compare.json"
    target.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
