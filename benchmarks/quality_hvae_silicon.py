"""Compare the HVAE with the VAE (no leapfrog steps) on the known silicon crystals.

    OMP_NUM_THREADS=1 python benchmarks/quality_hvae_silicon.py [--parts figure rates ...] [--report]

Every finished training is a line of benchmarks/results/quality_hvae_silicon.jsonl; a training that has its line is not
run again, so that the benchmark can be stopped, resumed and run in parts. In the end (or with --report alone)
quality_hvae_report.py makes the summary, the figures and the tables of docs/hvae.md of all lines.

Parts. figure: loss against epoch and against time, SGD, ten seeds. rates: learning rates up to where each breaks,
with and without clipped gradients, and with shorter leapfrog steps to begin with. held_out: K = 0 to 10, Adam and
SGD, crystals that were not trained on. steps: shared or own step sizes, tempering. noise: a lower floor of the
likelihood's standard deviation. time: a VAE with three times the epochs. finite: a hundred short trainings. Nats are
those of the standardised features.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ase_hvae.data import load_known
from ase_hvae.dataset import Augmentation, CrystalDataset, mean_pair_correlation, standardisation
from ase_hvae.errors import ModelError
from ase_hvae.hvae import HVAE, central_grid, fit

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "benchmarks/results/quality_hvae_silicon.jsonl"
STEPS = (0, 1, 2, 3, 5, 10)
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SHORT_STEP, SHORT_STEP_RATES = 0.05, (3e-3, 1e-2, 3e-2)  # shorter steps to begin with, and the rates they are tried at
N_COPIES = 8  # of each crystal, deformed as in the shipped recipe
HELD_OUT = 11  # crystals, about 20 %
N_COPIES_HELD_OUT = 4  # of each of them, to measure on


@dataclass(frozen=True)
class Run:
    """One training; its fields are its name."""

    part: str
    n_leapfrog: int
    seed: int
    optimizer: str = "sgd"
    learning_rate: float = 3e-3
    epochs: int = 150
    anneal: bool = False
    gradient_clip: float | None = 20.0
    tempering: str = "none"
    shared_step_size: bool = False
    noise_floor: float = 1.0
    held_out: int = 0
    step_size: float = 0.25


def planned(part: str) -> Iterator[Run]:
    """Trainings of one part."""
    adam: dict[str, Any] = {"optimizer": "adam", "learning_rate": 5e-3}
    sgd: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 1e-2}
    longer: dict[str, Any] = {"epochs": 200, "anneal": True, "held_out": HELD_OUT}
    if part == "figure":
        yield from (Run(part, k, seed, epochs=n) for seed in range(10) for k, n in ((0, 450), (3, 150), (0, 150)))
    for seed in range({"finite": 100, "steps": 3}.get(part, 5)):
        if part == "rates":
            for rate in RATES:
                for clip in (20.0, None):
                    options: dict[str, Any] = {"learning_rate": rate, "epochs": 60, "gradient_clip": clip}
                    yield from (Run(part, k, seed, **options) for k in (0, 3))
                    if rate in SHORT_STEP_RATES:
                        yield Run(part, 3, seed, step_size=SHORT_STEP, **options)
        elif part == "held_out":
            yield from (Run(part, k, seed, **options, **longer) for k in STEPS for options in (adam, sgd))
        elif part == "steps":
            for mode in ("none", "fixed", "free"):
                for shared in (False, True):
                    if shared or mode != "none":  # that one is in held_out
                        yield Run(part, 3, seed, tempering=mode, shared_step_size=shared, **adam, **longer)
            yield Run(part, 10, seed, shared_step_size=True, **adam, **longer)
        elif part == "noise":
            yield from (Run(part, k, seed, noise_floor=0.3, **adam, **longer) for k in (0, 1, 3))
        elif part == "time":
            yield from (Run(part, 0, seed, **options, **(longer | {"epochs": 600})) for options in (adam, sgd))
        elif part == "finite":
            yield Run(part, 3, seed, epochs=4, **adam)


PARTS = ("figure", "rates", "held_out", "time", "steps", "noise", "finite")


@lru_cache(maxsize=1)
def crystals() -> CrystalDataset:
    """The known crystals with the shipped RDF settings."""
    return CrystalDataset(load_known())


@lru_cache(maxsize=4)
def augmented(seed: int) -> np.ndarray:
    """Features of deformed copies, ``(n_crystals, N_COPIES, n_features)``."""
    return crystals().augmented(Augmentation(n_copies=N_COPIES), seed).reshape(len(crystals()), N_COPIES, -1)


def data(run: Run) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Features to train on and to test on; the split depends on the seed, the copies do not."""
    rows = augmented(0)
    if not run.held_out:
        return torch.from_numpy(rows.reshape(-1, rows.shape[-1])), None
    order = np.random.default_rng(np.random.SeedSequence(run.seed, spawn_key=(1,))).permutation(len(rows))
    inside, outside = rows[np.sort(order[run.held_out :])], rows[np.sort(order[: run.held_out])]
    outside = outside[:, :N_COPIES_HELD_OUT]
    return torch.from_numpy(inside.reshape(-1, rows.shape[-1])), torch.from_numpy(outside.reshape(-1, rows.shape[-1]))


def perform(run: Run) -> dict[str, Any]:
    """Train once and measure."""
    inside, outside = data(run)
    model = HVAE(
        inside.shape[1],
        n_leapfrog=run.n_leapfrog,
        tempering=run.tempering,
        shared_step_size=run.shared_step_size,
        step_size=run.step_size,
        noise_floor=run.noise_floor,
        rng=torch.Generator().manual_seed(1000 + run.seed),
    )
    mean, scale = standardisation(inside.numpy())
    model.set_standardisation(torch.from_numpy(mean), torch.from_numpy(scale))
    losses: list[float] = []
    row: dict[str, Any] = {"diverged": False}
    begin = time.process_time()
    try:
        history = fit(
            model,
            inside,
            rng=torch.Generator().manual_seed(2000 + run.seed),
            epochs=run.epochs,
            learning_rate=run.learning_rate,
            optimizer=run.optimizer,
            weight_decay=0.01 if run.optimizer == "adam" else 0.0,
            gradient_clip=float("inf") if run.gradient_clip is None else run.gradient_clip,
            anneal=run.anneal,
            callback=lambda epoch, loss: losses.append(loss),
        )
        row |= {"energy_error": history.energy_error[-1], "n_skipped": history.n_skipped}
        row |= {"largest_energy_error": history.energy_error.max()}
    except ModelError:
        row["diverged"] = True
    row |= {"seconds": time.process_time() - begin, "losses": [round(loss, 2) for loss in losses]}
    if not row["diverged"] and run.part != "finite":
        row |= replica_quality(model, inside)
    if outside is not None and not row["diverged"]:
        row |= densities(model, inside, outside, run.seed)
    return row


def replica_quality(model: HVAE, inside: torch.Tensor) -> dict[str, Any]:
    """Spread of the 225 replicas of the grid and their Pearson correlation with the database."""
    known = crystals().rdfs
    replicas = model.decode(central_grid())[0].double().numpy()
    pairs = np.corrcoef(replicas, known)[: len(replicas), len(replicas) :]
    return {
        "replica_spread": 1 - mean_pair_correlation(replicas),
        "replica_to_nearest": pairs.max(axis=1).mean(),
        "replica_to_all": pairs.mean(),
        "kl": model.kl_per_dimension(inside).tolist(),
    }


def densities(model: HVAE, inside: torch.Tensor, outside: torch.Tensor, seed: int) -> dict[str, float]:
    """ELBO and importance-sampled log-likelihood, nats, means over rows."""
    rng = torch.Generator().manual_seed(3000 + seed)
    result = {}
    for name, features in (("train", inside[::N_COPIES]), ("held_out", outside)):
        with torch.no_grad():
            result[f"{name}_elbo"] = model.elbo(features, rng=rng, n_samples=100).mean().item()
        likelihood = model.log_likelihood(features, rng=rng, n_samples=1000, chunk=100)
        result[f"{name}_log_likelihood"] = likelihood.mean().item()
    return result


def finished() -> dict[Run, dict[str, Any]]:
    """Trainings that have their line, with what was measured."""
    if not RUNS.exists():
        return {}
    lines = [json.loads(line) for line in RUNS.read_text().splitlines()]
    return {Run(**line["run"]): line["row"] for line in lines}


def append(run: Run, row: dict[str, Any]) -> None:
    """Write the line of one training; numbers to six digits."""
    plain = {
        name: float(f"{value:.6g}") if isinstance(value, float | np.floating) else value for name, value in row.items()
    }
    RUNS.parent.mkdir(exist_ok=True)
    with RUNS.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"run": asdict(run), "row": plain}) + "\n")


def main() -> None:
    """Run what is missing, print a line each, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--report", action="store_true", help="train nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    done = finished()
    for part in () if args.report else args.parts:
        for run in planned(part):
            if run in done:
                continue
            row = perform(run)
            append(run, row)
            last = row["losses"][-1] if row["losses"] else float("nan")
            print(run, f"loss {last:.2f}, {row['seconds']:.1f} s", "diverged" if row["diverged"] else "", flush=True)

    from quality_hvae_report import report

    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    report({run: row for run, row in finished().items() if run.part in PARTS}, commit.stdout.strip())


if __name__ == "__main__":
    main()
