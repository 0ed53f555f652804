"""Time and memory of training, for the shipped labels and for a set several times as large.

    OMP_NUM_THREADS=1 python benchmarks/speed_train.py [--times 3]

Each set is prepared and fitted (51-20-20-1, float32, nine rows in ten to train on) in a process of its own: processor
seconds to prepare, for an epoch of Adam (one is run) and an iteration of L-BFGS (20 are; line search and looks at the
validation rows included), memory of the tables that the fit holds and peak of the process. The larger set repeats the
rows, displaced by 0.02 Å, labelled by the shipped model. The last row of the table lies on the straight line through
both sets. The split into families is not measured.
Prints Markdown and writes benchmarks/results/speed_train.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maise_bridge import MaisePotential, read_model
from maise_bridge.calculator import find_model
from maise_bridge.dataset import Labels, read_labels
from maise_bridge.families import Split
from maise_bridge.preparation import prepare
from maise_bridge.training import TrainingSettings, train

ROOT = Path(__file__).parents[1]
TARGET = 20_000
N_EPOCHS, N_LBFGS = 1, 20


def enlarge(labels: Labels, times: int, batch: int = 32) -> Labels:
    """Return the rows and, times - 1, displaced copies labelled by the shipped model."""
    potential, rng = MaisePotential(read_model(find_model("silicon"))), np.random.default_rng(0)
    rows = np.tile(np.arange(len(labels)), times)
    large = labels.select(rows)
    structures = tuple(atoms.copy() for atoms in large.structures)
    energies, forces, stresses = large.energies.copy(), list(large.forces), large.stresses.copy()
    for first in range(len(labels), len(rows), batch):
        part = structures[first : first + batch]
        for atoms in part:
            atoms.positions += rng.normal(0, 0.02, atoms.positions.shape)
        for row, found in enumerate(potential.evaluate(part), start=first):
            energies[row], forces[row], stresses[row] = found.energy, found.forces, found.stress
    return replace(large, structures=structures, energies=energies, forces=tuple(forces), stresses=stresses)


def peak() -> float:
    """Largest resident memory of this process so far; MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(times: int) -> dict[str, Any]:
    """Prepare and fit one set in this process."""
    torch.set_num_threads(1)
    before = peak()
    labels = read_labels(ROOT / "maise_bridge" / "models" / "silicon_labels.extxyz.gz")
    if times > 1:
        labels = enlarge(labels, times)
    order = np.random.default_rng(0).permutation(len(labels))
    n_held = len(labels) // 10
    start = time.process_time()
    data = prepare(labels, Split(order[n_held:], order[:n_held], order[:0]))
    prepared = time.process_time() - start
    marks = [("start", time.process_time())]
    settings = TrainingSettings(n_epochs=N_EPOCHS, n_lbfgs=N_LBFGS, patience=N_LBFGS)
    train(data, settings, save=lambda state: marks.append((state["stage"], time.process_time())))
    ends = dict(marks)  # the last of each stage
    return {
        "n_rows": len(labels),
        "n_atoms": int(labels.n_atoms.sum()),
        "table_mb": data.n_bytes / 1e6,
        "prepare_s": prepared,
        "adam_epoch_s": (ends["adam"] - ends["start"]) / N_EPOCHS,
        "lbfgs_iteration_s": (ends["lbfgs"] - ends["adam"]) / N_LBFGS,
        "start_mb": before,
        "peak_mb": peak(),
    }


def extrapolate(rows: list[dict[str, Any]], n_rows: int) -> dict[str, Any]:
    """Values on the straight line through the first and the last set."""
    first, last = rows[0], rows[-1]
    share = (n_rows - first["n_rows"]) / (last["n_rows"] - first["n_rows"])
    return {name: first[name] + share * (last[name] - first[name]) for name in first} | {"n_rows": n_rows}


def markdown(result: dict[str, Any]) -> str:
    """Table of the sets."""
    lines = [
        "| rows | atoms | tables, MB | prepare, s | Adam, s an epoch | L-BFGS, s an iteration | peak memory, MB |",
        "|---" * 7 + "|",
    ]
    for row in (*result["sets"], result["extrapolated"]):
        title = f"{row['n_rows']}{' (extrapolated)' if row is result['extrapolated'] else ''}"
        lines.append(
            f"| {title} | {row['n_atoms']:.0f} | {row['table_mb']:.0f} | {row['prepare_s']:.1f} | "
            f"{row['adam_epoch_s']:.2f} | {row['lbfgs_iteration_s']:.3f} | {row['peak_mb']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3, help="how many times as large the larger set is")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)  # one set, in this process
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "speed_train.json")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only)))
        return
    sets = []
    for times in (1, options.times):
        command = [sys.executable, __file__, "--only", str(times)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        sets.append(json.loads(done.stdout.splitlines()[-1]))
    versions = {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine()}
    result = {"sets": sets, "extrapolated": extrapolate(sets, TARGET), "versions": versions}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(result))


if __name__ == "__main__":
    main()
