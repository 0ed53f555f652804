"""Cost of a training epoch against the number of leapfrog steps, and of decoding replicas.

    OMP_NUM_THREADS=1 python benchmarks/speed_hvae.py [--retrain]

Epochs of the shipped recipe (57 crystals x 32 copies, minibatches of 64, two latent dimensions, Adam), processor time,
in turns: every repetition runs each K once, and the ratio to K = 0 is taken within the repetition. The last column
has the pullback of the decoder replaced by reverse-mode autograd with a graph, which is what a generic force costs.
--retrain also trains the shipped weights again and compares their sha256. Writes benchmarks/results/speed_hvae.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ase_hvae import load_model, train
from ase_hvae.data import load_known
from ase_hvae.dataset import Augmentation, CrystalDataset, standardisation
from ase_hvae.hvae import HVAE, fit
from ase_hvae.replicas import decode

ROOT = Path(__file__).parents[1]
STEPS = (0, 1, 2, 3, 5, 10)
LIMIT = 4.0  # most VAE epochs that an epoch with K = 3 may cost
REPEATS, EPOCHS = 7, 2


class NaiveHVAE(HVAE):
    """The same model with forces by automatic differentiation of the potential."""

    def potential_and_gradient(self, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Potential and gradient; the graph of the gradient is kept for its own derivative."""
        z = z if z.requires_grad else z.requires_grad_()
        energy = self.potential(z, x)
        (gradient,) = torch.autograd.grad(energy.sum(), z, create_graph=True)
        return energy, gradient


def epoch_seconds(kind: type[HVAE], n_leapfrog: int, features: Tensor) -> float:
    """Processor time of one epoch."""
    model = kind(features.shape[1], n_leapfrog=n_leapfrog, noise_floor=1.0)
    mean, scale = standardisation(features.numpy())
    model.set_standardisation(torch.from_numpy(mean), torch.from_numpy(scale))
    begin = time.process_time()
    fit(model, features, rng=torch.Generator().manual_seed(0), epochs=EPOCHS, weight_decay=0.01)
    return (time.process_time() - begin) / EPOCHS


def epochs(features: Tensor) -> list[dict[str, Any]]:
    """Rows of seconds and of ratios to K = 0, median and range over repetitions."""
    kinds: dict[str, type[HVAE]] = {"pullback": HVAE, "autograd": NaiveHVAE}
    cases = [("pullback", k) for k in STEPS] + [("autograd", 3)]
    epoch_seconds(HVAE, 3, features)  # warm up
    times = np.array([[epoch_seconds(kinds[kind], k, features) for kind, k in cases] for _ in range(REPEATS)])
    ratios = times / times[:, :1]
    return [
        {
            "force": kind,
            "n_leapfrog": k,
            "seconds": float(np.median(times[:, i])),
            "ratio": float(np.median(ratios[:, i])),
            "ratio_range": [float(ratios[:, i].min()), float(ratios[:, i].max())],
        }
        for i, (kind, k) in enumerate(cases)
    ]


def seconds(call: Callable[[], object]) -> float:
    """Least processor time of three calls."""
    call()
    times = []
    for _ in range(3):
        begin = time.process_time()
        call()
        times.append(time.process_time() - begin)
    return min(times)


def retrain() -> dict[str, Any]:
    """Train the shipped weights again."""
    begin = time.process_time(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = train(out=Path(folder) / "model.safetensors").path
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    processor, wall = time.process_time() - begin[0], time.perf_counter() - begin[1]
    return {"processor_seconds": processor, "wall_seconds": wall, "same_weights": digest == load_model().card["sha256"]}


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--retrain", action="store_true", help="train the shipped weights again, too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    features = torch.from_numpy(CrystalDataset(load_known()).augmented(Augmentation(), 0))
    rows = epochs(features)
    for row in rows:
        low, high = row["ratio_range"]
        print(f"K = {row['n_leapfrog']:2d} {row['force']}: {row['seconds']:.3f} s an epoch,", end=" ")
        print(f"{row['ratio']:.2f} VAE epochs ({low:.2f} to {high:.2f})")
    ratio = next(row["ratio"] for row in rows if (row["force"], row["n_leapfrog"]) == ("pullback", 3))
    print(f"K = 3 costs {ratio:.2f} VAE epochs, limit {LIMIT}: {'kept' if ratio <= LIMIT else 'BROKEN'}")
    model, latents = load_model(), np.random.default_rng(0).standard_normal((10_000, 2))
    decoding = seconds(lambda: decode(model, latents))
    print(f"decoding 10,000 replicas: {decoding:.3f} s")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    record: dict[str, Any] = {
        "git_sha": commit.stdout.strip(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "machine": platform.machine(),
        "n_rows": len(features),
        "epochs": rows,
        "decode_10000_seconds": decoding,
    }
    if args.retrain:
        record["retrain"] = retrain()
        print(record["retrain"])
    target = ROOT / "benchmarks/results/speed_hvae.json"
    target.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
