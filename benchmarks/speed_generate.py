"""Time the stages of `generate` for several numbers of candidates and workers, and what they mean for larger runs.

    python benchmarks/speed_generate.py [--run N WORKERS ...] [--seed 0] [--json OUT]

Each run is a process of its own with the shipped weights and potential; ``--run 200 1 --run 200 2 --run 2000 2`` are
the default. Wall seconds, so run it on an idle machine. The cost of larger runs is that of the last run with as many
workers: what is done for each candidate (reconstruction, relaxation, comparison) in proportion, what is done for the
best ones (phonons, elasticity) as it is. Prints Markdown tables and writes benchmarks/results/speed_generate.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PER_CANDIDATE = ("reconstruct", "relax", "compare")
STAGES = ("reference", *PER_CANDIDATE, "phonons", "elasticity")
LARGER = (10_000, 100_000, 1_000_000)


def measure(n: int, workers: int, seed: int) -> dict[str, Any]:
    """Stage times, outcome and memory of one run; seconds and MB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ase_hvae", "generate", "--n", str(n), "--seed", str(seed)]
        command += ["--workers", str(workers), "--out", f"{folder}/run"]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
        wall = time.perf_counter() - start
        summary = json.loads(Path(folder, "run", "summary.json").read_text())
        size = Path(folder, "run", "candidates.db").stat().st_size
    funnel = summary["funnel"]
    return {
        "n": n,
        "workers": workers,
        "seed": seed,
        "wall": round(wall, 1),
        "seconds": summary["seconds"],
        "ranked": funnel["ranked"],
        "duplicates": funnel["duplicates"],
        "failed": funnel["failed"],
        "children": funnel["children"]["made"],
        "database_mb": round(size / 1e6, 1),
        # of the largest process so far, the main one or a worker
        "peak_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3),
    }


def extrapolate(run: dict[str, Any], n: int) -> float:
    """Hours for `n` candidates with the workers of `run`."""
    seconds = run["seconds"]
    return sum(seconds[stage] * (n / run["n"] if stage in PER_CANDIDATE else 1.0) for stage in STAGES) / 3600.0


def markdown(runs: list[dict[str, Any]]) -> str:
    """Tables of stage times and of larger runs."""
    lines = [f"| n | workers | {' | '.join(STAGES)} | wall | ranked | peak MB |", "|---" * (len(STAGES) + 5) + "|"]
    for run in runs:
        stages = " | ".join(f"{run['seconds'][stage]:.1f}" for stage in STAGES)
        lines.append(
            f"| {run['n']} | {run['workers']} | {stages} | {run['wall']} | {run['ranked']} | {run['peak_mb']} |"
        )
    last = runs[-1]
    hours = ", ".join(f"{n:,}: {extrapolate(last, n):.1f} h" for n in LARGER)
    per = ", ".join(f"{stage} {1e3 * last['seconds'][stage] / last['n']:.1f}" for stage in PER_CANDIDATE)
    return "\n".join([*lines, "", f"Per candidate with {last['workers']} workers, ms: {per}. Larger runs: {hours}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs=2, type=int, action="append", metavar=("N", "WORKERS"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "speed_generate.json")
    options = parser.parse_args()
    runs: list[dict[str, Any]] = []
    for n, workers in options.run or [(200, 1), (200, 2), (2000, 2)]:
        runs.append(measure(n, workers, options.seed))
        options.json.write_text(json.dumps(runs, indent=1) + "\n")
    print(markdown(runs))


if __name__ == "__main__":
    main()
