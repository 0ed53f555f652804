"""Compare the HVAE with the VAE (no leapfrog steps) on the known silicon crystals.

    OMP_NUM_THREADS=1 python benchmarks/quality_hvae_silicon.py [--steps 0 3] [--seeds 0 1 2]

Trains with the shipped recipe, prints a table and writes benchmarks/results/quality_hvae_silicon.json: loss at the end,
ELBO and importance-sampled log-likelihood of held-out crystals (by a model that has not seen them), spread of the 225
replicas of the grid, correlation of reconstructions, seconds. Nats are those of the standardised features.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import ase_hvae
from ase_hvae import train

ROOT = Path(__file__).parents[1]
COLUMNS = (
    "final_loss", "held_out_elbo", "held_out_log_likelihood", "replica_spread", "reconstruction_correlation",
)  # fmt: skip


def measure(n_leapfrog: int, seed: int) -> dict[str, float]:
    """Train once and collect what the model's card says."""
    with tempfile.TemporaryDirectory() as folder:
        result = train(out=Path(folder) / "model.safetensors", n_leapfrog=n_leapfrog, seed=seed)
    row = {"n_leapfrog": n_leapfrog, "seed": seed, "seconds": round(result.seconds, 1)}
    return row | {name: round(result.model.card[name], 3) for name in COLUMNS}


def main() -> None:
    """Run all trainings, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 3], help="numbers of leapfrog steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    rows = []
    print("K  seed  " + "  ".join(COLUMNS) + "  seconds")
    for seed in args.seeds:
        for n_leapfrog in args.steps:
            row = measure(n_leapfrog, seed)
            rows.append(row)
            print(n_leapfrog, seed, *(row[name] for name in COLUMNS), row["seconds"], sep="  ", flush=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    content = {"git_sha": commit.stdout.strip(), "ase_hvae": ase_hvae.__version__, "rows": rows}
    (ROOT / "benchmarks/results/quality_hvae_silicon.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
