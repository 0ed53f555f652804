"""Learning curve: held-out errors of silicon fits against the number of training rows.

    OMP_NUM_THREADS=1 python benchmarks/quality_learning.py [LABELS] [--iterations 300]

One split by family with the shipped recipe's `keep` patterns; the validation and held-out rows are the same for all
fits. Each seed draws a random order of the training rows, of which 1/8, 1/4, 1/2 and all are fitted, and the initial
weights. Fits are short (one network, no weights of tags), so errors are larger than those of the shipped model: the
slope is what counts. Prints Markdown and writes benchmarks/results/quality_learning.json and, with matplotlib, .png.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maise_bridge import MaisePotential
from maise_bridge.basis import standard_basis
from maise_bridge.calculator import find_model
from maise_bridge.dataset import Labels, read_labels
from maise_bridge.evaluation import residuals, window_errors
from maise_bridge.families import Split
from maise_bridge.objective import Table, compute_tables
from maise_bridge.preparation import prepare
from maise_bridge.recipe import split_labels
from maise_bridge.training import TrainingSettings, train

ROOT = Path(__file__).parents[1]
SHARES = (1 / 8, 1 / 4, 1 / 2, 1)


def measure(
    labels: Labels, tables: list[Table], split: Split, share: float, settings: TrainingSettings
) -> dict[str, Any]:
    """Errors of one short fit on held-out rows up to 1 eV/atom above the lowest label."""
    rng = np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=(1,)))
    chosen = np.sort(rng.permutation(split.train)[: max(2, round(share * len(split.train)))])
    start = time.process_time()
    data = prepare(labels, Split(chosen, split.validation, split.test), tables=tables)
    result = train(data, settings)
    potential, lowest = MaisePotential(result.model, core_repulsion=False), labels.energies_per_atom.min()
    held_out = labels.select(split.test)
    errors = window_errors(residuals(potential, held_out), held_out, lowest=lowest, windows=(1.0,))[0]
    return {
        "n_train": len(chosen),
        "seed": settings.seed,
        "n_held_out": errors.n_rows,
        "energy": errors.energy,
        "forces": errors.forces,
        "last_step": int(result.history[-1, 0]),
        "seconds": time.process_time() - start,
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """Table of means over seeds."""
    lines = ["| training rows | held-out energy, meV/atom | held-out forces, eV/Å | iterations |", "|---" * 4 + "|"]
    for n_train in sorted({row["n_train"] for row in rows}):
        found = [row for row in rows if row["n_train"] == n_train]
        energies = " / ".join(f"{1e3 * row['energy']:.1f}" for row in found)
        forces = " / ".join(f"{row['forces']:.3f}" for row in found)
        steps = " / ".join(str(row["last_step"]) for row in found)
        lines.append(f"| {n_train} | {energies} | {forces} | {steps} |")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw errors of each fit and their means over seeds, sizes on a logarithmic axis."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(7, 3), layout="constrained")
    sizes = sorted({row["n_train"] for row in rows})
    titles = (("energy", "energy error (meV/atom)", 1e3), ("forces", "force error (eV/Å)", 1.0))
    for axes, (name, title, factor) in zip(figure.subplots(1, 2), titles, strict=True):
        values = [[factor * row[name] for row in rows if row["n_train"] == size] for size in sizes]
        axes.semilogx(sizes, [np.mean(part) for part in values], "-", color="C0")
        for size, part in zip(sizes, values, strict=True):
            axes.plot([size] * len(part), part, "o", color="C0", alpha=0.6)
        axes.set(xlabel="training rows", ylabel=f"held-out {title}", ylim=(0, None))
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", nargs="?", default=ROOT / "maise_bridge" / "models" / "silicon_labels.extxyz.gz")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=300, help="of L-BFGS; the shipped fit has up to 2000")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "quality_learning.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    card = find_model("silicon").with_name("silicon_0.model.json")
    keep = tuple(json.loads(card.read_text())["recipe"]["keep"])
    labels = read_labels(options.labels)
    tables = compute_tables(labels, standard_basis(51))
    split = split_labels(labels, seed=0, keep=keep)
    rows = []
    for share in SHARES:
        for seed in range(options.seeds):
            settings = TrainingSettings(n_lbfgs=options.iterations, seed=seed)
            rows.append(measure(labels, tables, split, share, settings))
            result = {"labels": Path(options.labels).name, "n_lbfgs": options.iterations, "rows": rows}
            options.out.write_text(json.dumps(result, indent=1) + "\n")
    plot(rows, options.out.with_suffix(".png"))
    print(markdown(rows))


if __name__ == "__main__":
    main()
