"""Summary, figures and tables of quality_hvae_silicon.py, from its finished trainings."""

from __future__ import annotations

import json
import platform
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from ase_hvae.data import load_known
from ase_hvae.dataset import CrystalDataset

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/quality_hvae_silicon.json"
PAGE = ROOT / "docs/hvae.md"
NAMES = {0: "VAE", 3: "HVAE, K = 3"}
COLORS = {0: "tab:orange", 3: "tab:blue"}
KINDS = {  # of trainings in the scan of rates: name, color and shift of the marks, by K and first step size
    (0, 0.25): ("VAE", "tab:orange", 0.88),
    (3, 0.25): ("HVAE, K = 3", "tab:blue", 1.0),
    (3, 0.05): ("HVAE, K = 3, first steps 0.05", "tab:green", 1.13),
}
DENSITIES = ("train_elbo", "train_log_likelihood", "held_out_elbo", "held_out_log_likelihood")
Rows = dict[Any, dict[str, Any]]


def report(rows: Rows, commit: str) -> None:
    """Write JSON, figures (PNG, SVG) and the tables of docs/hvae.md."""
    rdfs = CrystalDataset(load_known()).rdfs
    correlations = np.corrcoef(rdfs) - 2 * np.eye(len(rdfs))
    null = {"pairs": float(np.corrcoef(rdfs)[np.triu_indices(len(rdfs), k=1)].mean())}
    null["nearest_other"] = float(correlations.max(axis=1).mean())
    summary: dict[str, Any] = {
        "git_sha": commit,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "n_runs": len(rows),
        "null_correlation": null,
        "curves": curves(rows),
        "rates": rates(rows),
        "densities": densities(rows),
        "finite": finite(rows),
    }
    RESULT.write_text(json.dumps(summary, indent=1) + "\n")
    plot_curves(summary["curves"])
    plot_rates(summary["rates"])
    plot_densities(summary["densities"])
    insert("curves", curve_table(summary["curves"], null))
    insert("rates", rate_table(summary["rates"]))
    insert("densities", density_table(summary["densities"]))
    diverged, not_finite, left_out = list(summary["finite"].values())[1:]
    sentence = (
        f"Of {summary['finite']['n_trainings']} trainings {diverged} diverged, {not_finite} had a loss that was not"
    )
    insert("finite", f"{sentence} finite and {left_out} left out at least one minibatch.")


# -- numbers ---------------------------------------------------------------------------------------------------------


def change(losses: Sequence[float]) -> float:
    """Mean absolute difference between neighbouring epochs over the last half."""
    return float(np.abs(np.diff(losses[len(losses) // 2 :])).mean())


def curves(rows: Rows) -> list[dict[str, Any]]:
    """Loss against epoch of the figure's trainings, and their stability and replicas."""
    groups: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for run, row in rows.items():
        if run.part == "figure" and not row["diverged"]:
            groups[run.n_leapfrog, run.epochs].append(row)
    result = []
    for (n_leapfrog, epochs), group in sorted(groups.items()):
        losses = np.array([row["losses"] for row in group])
        ends = losses[:, -10:].mean(axis=1)
        entry = {
            "n_leapfrog": n_leapfrog,
            "epochs": epochs,
            "n_seeds": len(group),
            "seconds_per_epoch": float(np.median([row["seconds"] / epochs for row in group])),
            "loss_mean": losses.mean(axis=0).round(3).tolist(),
            "loss_sd": losses.std(axis=0, ddof=1).round(3).tolist() if len(group) > 1 else [0.0] * epochs,
            "end": mean_and_error(ends),
            "end_spread": float(ends.std(ddof=1)) if len(group) > 1 else 0.0,
            "change": mean_and_error([change(row["losses"]) for row in group]),
        }
        for name in ("replica_spread", "replica_to_nearest", "replica_to_all"):
            entry[name] = mean_and_error([row[name] for row in group])
        result.append(entry)
    return result


def rates(rows: Rows) -> list[dict[str, Any]]:
    """Stability against learning rate; a training failed if it diverged or ended above its first epoch."""
    groups: dict[tuple[bool, float, int, float], list[dict[str, Any]]] = defaultdict(list)
    for run, row in rows.items():
        if run.part == "rates":
            groups[run.gradient_clip is not None, run.learning_rate, run.n_leapfrog, -run.step_size].append(row)
    result = []
    for (clipped, rate, n_leapfrog, step_size), group in sorted(groups.items()):
        good = [row for row in group if not row["diverged"] and np.mean(row["losses"][-10:]) < row["losses"][0]]
        ends = [float(np.mean(row["losses"][-10:])) for row in good]
        spikes = sum(max(row["losses"]) > 2 * row["losses"][0] for row in good)
        entry = {"clipped": clipped, "learning_rate": rate, "n_leapfrog": n_leapfrog, "n_seeds": len(group)}
        entry |= {"step_size": -step_size, "n_failed": len(group) - len(good), "n_with_spikes": spikes, "ends": ends}
        entry["end_median"] = float(np.median(ends)) if ends else None
        entry["end_spread"] = float(np.std(ends, ddof=1)) if len(ends) > 1 else None
        entry["change_median"] = float(np.median([change(row["losses"]) for row in good])) if good else None
        result.append(entry)
    return result


def densities(rows: Rows) -> list[dict[str, Any]]:
    """Densities of trained and held-out crystals, and differences from the VAE of the same seed and optimizer."""
    groups: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = defaultdict(dict)
    for run, row in rows.items():
        if run.held_out and not row["diverged"]:
            group = (run.optimizer, run.noise_floor, run.epochs, run.n_leapfrog, run.tempering, run.shared_step_size)
            groups[group][run.seed] = row
    result = []
    for group, by_seed in sorted(groups.items()):
        optimizer, noise_floor, epochs, n_leapfrog, tempering, shared = group
        base = groups[optimizer, noise_floor, 200, 0, "none", False]
        entry: dict[str, Any] = {
            "optimizer": optimizer,
            "noise_floor": noise_floor,
            "epochs": epochs,
            "n_leapfrog": n_leapfrog,
            "tempering": tempering,
            "shared_step_size": shared,
            "n_seeds": len(by_seed),
            "seconds": float(np.median([row["seconds"] for row in by_seed.values()])),
            "energy_error": float(np.median([row["energy_error"] for row in by_seed.values()])),
        }
        for name in DENSITIES:
            entry[name] = mean_and_error([row[name] for row in by_seed.values()])
            gains = [row[name] - base[seed][name] for seed, row in by_seed.items() if seed in base]
            entry[f"{name}_gain"] = mean_and_error(gains)
        result.append(entry)
    return result


def finite(rows: Rows) -> dict[str, int]:
    """Of the hundred short trainings: how many diverged, had a loss that was not finite, left a minibatch out."""
    group = [row for run, row in rows.items() if run.part == "finite"]
    return {
        "n_trainings": len(group),
        "n_diverged": sum(row["diverged"] for row in group),
        "n_with_loss_not_finite": sum(not np.isfinite(row["losses"]).all() for row in group),
        "n_with_minibatch_left_out": sum(row.get("n_skipped", 0) > 0 for row in group),
    }


def mean_and_error(values: Sequence[float] | np.ndarray) -> list[float]:
    """Mean and its standard error."""
    error = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")
    return [float(np.mean(values)) if len(values) else float("nan"), error]


# -- figures ---------------------------------------------------------------------------------------------------------


def save(figure: Any, name: str) -> None:
    """Write PNG and SVG beside the JSON."""
    for suffix in ("png", "svg"):
        figure.savefig(RESULT.with_name(f"{RESULT.stem}_{name}.{suffix}"), dpi=150)
    plt.close(figure)


def plot_curves(entries: list[dict[str, Any]]) -> None:
    """The loss against epoch and against processor time: mean and standard deviation over seeds."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained", sharey=True)
    for entry in entries:
        k, mean, sd = entry["n_leapfrog"], np.array(entry["loss_mean"]), np.array(entry["loss_sd"])
        epoch = np.arange(1, len(mean) + 1)
        for axis, x in ((axes[0], epoch), (axes[1], epoch * entry["seconds_per_epoch"])):
            if (axis is axes[0] and len(mean) > 150) or (axis is axes[1] and (k, len(mean)) == (0, 150)):
                continue
            axis.plot(x, mean, "-" if k else "--", color=COLORS[k], label=NAMES[k], linewidth=1.5, zorder=3 - k / 3)
            axis.fill_between(x, mean - sd, mean + sd, color=COLORS[k], alpha=0.25, linewidth=0)
    axes[0].set(xlabel="epoch", ylabel="training loss, -ELBO (nats)", title="equal epochs")
    longest = max((e["epochs"] * e["seconds_per_epoch"] for e in entries if e["n_leapfrog"] == 3), default=None)
    axes[1].set(xlabel="processor time (s)", title="equal time", xlim=(0, longest))
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend()
    save(figure, "loss")


def plot_rates(entries: list[dict[str, Any]]) -> None:
    """Loss at the end, its change from epoch to epoch and failures against the learning rate."""
    figure, axes = plt.subplots(3, 2, figsize=(9, 8), layout="constrained", sharex=True, sharey="row")
    for entry in entries:
        _, color, shift = KINDS[entry["n_leapfrog"], entry["step_size"]]
        x = entry["learning_rate"] * shift
        top, middle, bottom = axes[:, 0 if entry["clipped"] else 1]
        top.plot([x] * len(entry["ends"]), entry["ends"], "o", color=color, markersize=4, alpha=0.7)
        if entry["change_median"] is not None:
            middle.plot(x, entry["change_median"], "o", color=color)
        bottom.bar(x, entry["n_failed"], width=0.11 * x, color=color)
        bottom.bar(x, entry["n_with_spikes"], width=0.11 * x, bottom=entry["n_failed"], color=color, alpha=0.35)
    axes[0, 0].set(title="gradient norm at most 20", ylabel="loss at the end (nats)")
    axes[0, 1].set_title("gradients as they are")
    axes[1, 0].set(yscale="log", ylabel="change an epoch (nats)")
    axes[1, 0].set_yticks([1, 2, 5], ["1", "2", "5"])
    axes[1, 0].minorticks_off()
    axes[2, 0].set(ylabel="failed, pale: with spikes (of 5)", ylim=(0, 5.3))
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.set_xscale("log")
    for axis in axes[2]:
        axis.set_xlabel("learning rate (SGD)")
    handles = [plt.Line2D([], [], marker="o", linestyle="", color=kind[1], label=kind[0]) for kind in KINDS.values()]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    save(figure, "rates")


def plot_densities(entries: list[dict[str, Any]]) -> None:
    """Gains over the VAE against the number of leapfrog steps, with standard errors over seeds."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    titles = ("crystals trained on", "held-out crystals")
    for axis, part, title in zip(axes, ("train", "held_out"), titles, strict=True):
        for optimizer, color, shift in (("adam", "tab:green", -0.1), ("sgd", "tab:purple", 0.1)):
            mine = [e for e in entries if (e["optimizer"], e["noise_floor"], e["epochs"]) == (optimizer, 1.0, 200)]
            mine = [e for e in mine if e["tempering"] == "none" and not e["shared_step_size"]]
            for name, style, more in (("elbo", "-o", -0.05), ("log_likelihood", "--s", 0.05)):
                gains = np.array([e[f"{part}_{name}_gain"] for e in mine]).reshape(-1, 2)
                steps = [e["n_leapfrog"] + shift + more for e in mine]
                label = f"{'Adam' if optimizer == 'adam' else 'SGD'}, {'ELBO' if name == 'elbo' else 'log p'}"
                axis.errorbar(steps, *gains.T, fmt=style, color=color, label=label, capsize=3, markersize=4)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(title=title, xlabel="leapfrog steps K", ylabel="gain over the VAE (nats a crystal)")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    save(figure, "densities")


# -- tables ----------------------------------------------------------------------------------------------------------


def pair(value: Sequence[float], digits: int = 1) -> str:
    """Mean and standard error."""
    return f"{value[0]:.{digits}f} ± {value[1]:.{digits}f}"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def curve_table(entries: list[dict[str, Any]], null: dict[str, float]) -> str:
    """Ends of the figure's curves."""
    head = ("", "epochs", "CPU s", "loss at the end", "its sd over seeds", "change an epoch", "replica spread")
    head += ("r to nearest known - null", "r to all known - null")
    lines = [
        (
            "VAE" if e["n_leapfrog"] == 0 else f"HVAE, K = {e['n_leapfrog']}",
            str(e["epochs"]),
            f"{e['epochs'] * e['seconds_per_epoch']:.1f}",
            pair(e["end"]),
            f"{e['end_spread']:.2f}",
            pair(e["change"], 2),
            pair(e["replica_spread"], 3),
            pair([e["replica_to_nearest"][0] - null["pairs"], e["replica_to_nearest"][1]], 3),
            pair([e["replica_to_all"][0] - null["pairs"], e["replica_to_all"][1]], 3),
        )
        for e in entries
    ]
    note = f"Null: two different known crystals correlate at {null['pairs']:.3f} on average, "
    note += f"a known crystal and the nearest other one at {null['nearest_other']:.3f}."
    return table(head, lines) + "\n\n" + note


def rate_table(entries: list[dict[str, Any]]) -> str:
    """Stability against learning rate."""
    head = (
        "gradients",
        "rate",
        "K",
        "first step size",
        "failed",
        "with spikes",
        "loss at the end",
        "its sd",
        "change an epoch",
    )
    lines = []
    for e in entries:
        numbers = [e["end_median"], e["end_spread"], e["change_median"]]
        shown = ["-" if number is None else f"{number:.2f}" for number in numbers]
        kind = "norm ≤ 20" if e["clipped"] else "as they are"
        counts = (f"{e['n_failed']} of {e['n_seeds']}", str(e["n_with_spikes"]))
        first = f"{e['step_size']:g}" if e["n_leapfrog"] else "-"
        lines.append((kind, f"{e['learning_rate']:g}", str(e["n_leapfrog"]), first, *counts, *shown))
    return table(head, lines)


def density_table(entries: list[dict[str, Any]]) -> str:
    """Densities, nats a crystal, and gains over the VAE."""
    head = ("optimizer", "K", "model", "epochs", "seeds", "CPU s", "trained: ELBO", "gain", "log p", "gain")
    head += ("held out: ELBO", "gain", "log p", "gain")
    lines = []
    for e in sorted(entries, key=lambda e: (e["optimizer"], -e["noise_floor"], e["epochs"], e["n_leapfrog"])):
        words = [f"tempering {e['tempering']}"] if e["tempering"] != "none" else []
        words += ["one step size"] if e["shared_step_size"] else []
        words += [f"noise floor {e['noise_floor']:g}"] if e["noise_floor"] != 1 else []
        values = []
        for name in DENSITIES:
            values += [f"{e[name][0]:.1f}", pair(e[f"{name}_gain"], 2)]
        first = (e["optimizer"], str(e["n_leapfrog"]), ", ".join(words) or "-", str(e["epochs"]), str(e["n_seeds"]))
        lines.append((*first, f"{e['seconds']:.0f}", *values))
    return table(head, lines)


def insert(name: str, text: str) -> None:
    """Replace what stands between the marks of a generated part of docs/hvae.md."""
    page = PAGE.read_text(encoding="utf-8")
    pattern = rf"(<!-- begin {name}[^>]*-->\n).*?(<!-- end {name} -->)"
    if not re.search(pattern, page, flags=re.DOTALL):
        raise ValueError(f"{PAGE} has no marks '<!-- begin {name} -->' and '<!-- end {name} -->'")
    new = re.sub(pattern, lambda match: f"{match[1]}{text}\n{match[2]}", page, flags=re.DOTALL)
    PAGE.write_text(new, encoding="utf-8")
