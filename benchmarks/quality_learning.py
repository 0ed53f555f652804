"""Learning curve: held-out errors of silicon fits against the number of training rows, and where it leads.

    OMP_NUM_THREADS=1 python benchmarks/quality_learning.py [LABELS] [--folds 0 2] [--draws 1]

The recipe is that of the shipped networks, read from their cards, with the held-out rows of each fold as they are.
Each draw puts the families of the training rows in a random order; 1/8, 1/4, 1/2 and all of the rows are fitted, parts
are nested and no family is cut. A power law error = a n^-b is fitted to each fold and draw, and solved for the number
of rows at which it meets the target. Each finished fit is written to --out; the same line goes on from there. Prints
Markdown and writes benchmarks/results/quality_learning.json and, with matplotlib, .png.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maise_bridge import MaisePotential
from maise_bridge.basis import standard_basis
from maise_bridge.calculator import find_model
from maise_bridge.dataset import Labels, read_labels
from maise_bridge.evaluation import Residuals, residuals
from maise_bridge.families import Split, crystal_features, find_families
from maise_bridge.objective import Table, compute_tables
from maise_bridge.preparation import prepare
from maise_bridge.recipe import Recipe
from maise_bridge.training import train

ROOT = Path(__file__).parents[1]
SHARES = (1 / 8, 1 / 4, 1 / 2, 1)
SECONDS_PER_LABEL = 45  # of processor time
WINDOWS = (0.5, 1.0, 1.5)  # eV/atom above the lowest label
TARGETS = {
    ("energy", 0.5): 0.005,
    ("energy", 1.5): 0.010,
    ("energy_absolute", 0.5): 0.005,
    ("energy_absolute", 1.5): 0.010,
    ("forces", 0.5): 0.12,
    ("forces", 1.0): 0.12,
}  # of an error up to a window: eV/atom or eV/Å; the mean absolute error is given the target of the root mean square
TITLES = {"energy": "energy", "energy_absolute": "energy, mean absolute", "forces": "forces"}


@dataclass(frozen=True, eq=False)
class Rows:
    """Labels with what all fits share: tables of descriptors and family numbers."""

    labels: Labels
    tables: list[Table]
    families: np.ndarray


def shipped_recipe(fold: int) -> Recipe:
    """Recipe of the shipped network of a fold."""
    card = json.loads(find_model("silicon").with_name(f"silicon_{fold}.model.json").read_text())["recipe"]
    return Recipe(
        hidden=tuple(card["hidden"]),
        seed=card["seed"],
        split_seed=card["split_seed"],
        fold=tuple(card["fold"]),
        keep=tuple(card["keep"]),
        n_lbfgs=card["n_lbfgs"],
        n_epochs=card["n_epochs"],
        weight_decay=card["weight_decay"],
        energy_window=card["energy_window"],
        near_tolerance=card["near_tolerance"],
        tag_weights=tuple((pattern, factor) for pattern, factor in card["tag_weights"]),
        early_stopping=card["early_stopping"],
    )


def nested_part(rows: np.ndarray, families: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Rows of whole families in a random order, up to a share of the rows; those that do not fit wait for a larger one.

    The part of one share holds those of the smaller ones.
    """
    numbers, counts = np.unique(families[rows], return_counts=True)
    order = rng.permutation(len(numbers))
    chosen = np.zeros(len(numbers), dtype=bool)
    for limit in (part * len(rows) for part in SHARES if part <= share):
        for family in order:
            if not chosen[family] and counts[chosen].sum() + counts[family] <= limit:
                chosen[family] = True
    return rows[np.isin(families[rows], numbers[chosen])]


def summarise(found: Residuals, labels: Labels, lowest: float) -> list[dict[str, float]]:
    """Errors up to each window: root mean square and mean absolute of energies (eV/atom), and of forces (eV/Å)."""
    above = labels.energies_per_atom - lowest
    result = []
    for window in WINDOWS:
        rows = np.flatnonzero(above <= window)
        energies = found.energies_per_atom[rows]
        forces = np.concatenate([found.forces[row].ravel() for row in rows])
        result.append(
            {
                "window": window,
                "n": len(rows),
                "energy": float(np.sqrt(np.mean(energies**2))),
                "energy_absolute": float(np.mean(np.abs(energies))),
                "forces": float(np.sqrt(np.mean(forces**2))),
            }
        )
    return result


def measure(rows: Rows, fold: int, share: float, draw: int) -> dict[str, Any]:
    """Errors of one fit on held-out and training rows."""
    labels = rows.labels
    recipe = shipped_recipe(fold)
    split = recipe.split(labels)
    rng = np.random.default_rng(np.random.SeedSequence(draw, spawn_key=(1, fold)))
    chosen = nested_part(split.train, rows.families, share, rng)
    start = time.process_time()
    data = prepare(labels, Split(chosen, split.validation, split.test), tables=rows.tables)
    result = train(data, recipe.settings(0))
    potential, lowest = MaisePotential(result.model, core_repulsion=False), float(labels.energies_per_atom.min())
    held_out, fitted = labels.select(split.test), labels.select(chosen)
    return {
        "fold": fold,
        "draw": draw,
        "share": share,
        "n_train": len(chosen),
        "n_families": len(np.unique(rows.families[chosen])),
        "held_out": summarise(residuals(potential, held_out), held_out, lowest),
        "fitted": summarise(residuals(potential, fitted), fitted, lowest),
        "last_step": int(result.history[-1, 0]),
        "seconds": time.process_time() - start,
    }


def errors_of(fits: list[dict[str, Any]], name: str, window: float) -> np.ndarray:
    """One held-out error of several fits."""
    return np.array([next(e[name] for e in fit["held_out"] if e["window"] == window) for fit in fits])


def power_law(sizes: np.ndarray, errors: np.ndarray, target: float) -> dict[str, float | None]:
    """Least squares of log(error) = log(a) - b log(n), and the number of rows at the target.

    The standard error of b is that of the straight line; without a falling line there is no such number.
    """
    x, y = np.log(sizes), np.log(errors)
    slope, constant = np.polyfit(x, y, 1)
    scatter = np.sqrt(np.sum((y - slope * x - constant) ** 2) / (len(x) - 2) / np.sum((x - x.mean()) ** 2))
    n_rows = float(np.exp((np.log(target) - constant) / slope)) if slope < 0 else None
    return {"exponent": float(-slope), "standard_error": float(scatter), "n_rows": n_rows}


def curves(fits: list[dict[str, Any]]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """Fits of each fold and draw, smallest first; all draws end in the fit to all rows."""
    keys = sorted({(fit["fold"], fit["draw"]) for fit in fits})
    found = {(k, d): [f for f in fits if f["fold"] == k and (f["draw"] == d or f["share"] == 1)] for k, d in keys}
    return {key: sorted(part, key=lambda fit: fit["n_train"]) for key, part in found.items()}


def extrapolate(fits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The power law of each finished fold and draw for each target, and of all their fits at once (fold None)."""
    parts = {key: part for key, part in curves(fits).items() if len(part) == len(SHARES)}
    whole = [fit for fit in fits if (fit["fold"], fit["draw"]) in parts]
    result = []
    for (name, window), target in TARGETS.items():
        for (fold, draw), part in (*parts.items(), ((None, None), whole)):
            found = power_law(np.array([fit["n_train"] for fit in part]), errors_of(part, name, window), target)
            result.append({"error": name, "window": window, "target": target, "fold": fold, "draw": draw, **found})
    return result


def markdown(fits: list[dict[str, Any]], laws: list[dict[str, Any]]) -> str:
    """Table of errors, energies in meV/atom, and table of power laws."""
    columns = [(name, window) for window in WINDOWS for name in TITLES]
    titles = " | ".join(f"{TITLES[name]} <= {window}" for name, window in columns)
    lines = [f"| fold, draw | rows | families | {titles} | steps |", "|---" * (len(columns) + 4) + "|"]
    for fit in sorted(fits, key=lambda fit: (fit["fold"], fit["draw"], fit["n_train"])):
        errors = [float(errors_of([fit], name, window)[0]) for name, window in columns]
        named = zip([name for name, _ in columns], errors, strict=True)
        texts = [f"{error:.3f}" if name == "forces" else f"{1e3 * error:.1f}" for name, error in named]
        start = f"| {fit['fold']}, {fit['draw']} | {fit['n_train']} | {fit['n_families']} "
        lines.append(f"{start}| {' | '.join(texts)} | {fit['last_step']} |")
    lines += ["", "| error | up to | target | fold, draw | exponent | rows | processor hours |", "|---" * 7 + "|"]
    for law in laws:
        curve = "all" if law["fold"] is None else f"{law['fold']}, {law['draw']}"
        rows = "-" if law["n_rows"] is None else f"{law['n_rows']:.3g}"
        hours = "-" if law["n_rows"] is None else f"{law['n_rows'] * SECONDS_PER_LABEL / 3600:.3g}"
        start = f"| {TITLES[law['error']]} | {law['window']} | {law['target']} | {curve} "
        lines.append(f"{start}| {law['exponent']:.2f} ± {law['standard_error']:.2f} | {rows} | {hours} |")
    return "\n".join(lines)


def plot(fits: list[dict[str, Any]], path: Path) -> None:
    """Draw errors up to 1 eV/atom of each fold and draw, both axes logarithmic."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, ScalarFormatter

    figure = Figure(figsize=(7, 3), layout="constrained")
    titles = (("energy", "energy error (meV/atom)", 1e3), ("forces", "force error (eV/Å)", 1.0))
    for axes, (name, title, factor) in zip(figure.subplots(1, 2), titles, strict=True):
        for (fold, draw), part in curves(fits).items():
            sizes = [fit["n_train"] for fit in part]
            axes.loglog(sizes, factor * errors_of(part, name, 1.0), "o-", label=f"fold {fold}, draw {draw}")
        axes.set(xlabel="training rows", ylabel=f"held-out {title}")
        axes.set_xticks([150, 300, 600, 1200], ["150", "300", "600", "1200"])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", nargs="?", default=ROOT / "maise_bridge" / "models" / "silicon_labels.extxyz.gz")
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--draws", type=int, default=1, help="random orders of the families")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "quality_learning.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    labels = read_labels(options.labels)
    families = find_families(
        crystal_features(labels.structures, standard_basis(51), labels.species), labels.n_atoms, labels.tags
    )
    rows = Rows(labels, compute_tables(labels, standard_basis(51)), families)
    name = Path(options.labels).name
    fits = json.loads(options.out.read_text())["fits"] if options.out.exists() else []
    done = {(fit["fold"], fit["draw"], fit["share"]) for fit in fits}
    wanted = [(fold, 0, SHARES[-1]) for fold in options.folds]
    wanted += [(fold, d, share) for d in range(options.draws) for share in SHARES[:-1] for fold in options.folds]
    for fold, draw, share in (item for item in wanted if item not in done):
        fits.append(measure(rows, fold, share, draw))
        options.out.write_text(json.dumps({"labels": name, "n_labels": len(labels), "fits": fits}, indent=1) + "\n")
    result = {"labels": name, "n_labels": len(labels), "fits": fits, "power_laws": extrapolate(fits)}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    plot(fits, options.out.with_suffix(".png"))
    print(markdown(fits, result["power_laws"]))


if __name__ == "__main__":
    main()
