"""Recover offset and scale of a Gaussian model by HVAE, mean field and planar flow.

    OMP_NUM_THREADS=1 python benchmarks/quality_hvae_gaussian.py [--dimensions 2 5 11 25] [--report]

The experiment of Caterini, Doucet & Sejdinovic (NeurIPS 2018). Data x_i = z + Delta + Sigma^(1/2) eps_i, i = 1 ..
10,000, with one z ~ N(0, I) a data set; Delta runs evenly from -(d - 1)/10 to (d - 1)/10, the standard deviations
quadratically from 1 over 0.1 in the middle back to 1. Delta and Sigma are learned by ascending the ELBO with RMSprop,
ten samples a step, from Delta = 0 and a standard deviation of e^3.
The variational families: N(mu, diag s^2) (mean field, which holds the true posterior); ten planar flows of N(0, I);
leapfrog trajectories from N(0, I) with the package's `integrate` and `Tempering`. Data sets are independent rows of
the same tensors, so that all are trained at once.

Errors are squared distances from the truth (which holds |z|^2, d on average: one z cannot be told from the offset) and
from the maximum of the evidence (Delta* = mean of x, Sigma* = variance of x), which a perfect method reaches.
Deviations from the publication: 4,000 steps of rate 0.0075 for 30,000 of 0.001, dimensions to 25 for 301.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn

from ase_hvae.hvae.leapfrog import integrate
from ase_hvae.hvae.tempering import Tempering

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/quality_hvae_gaussian.json"
N_DATA, N_SETS, N_SAMPLES = 10_000, 10, 10
N_ITERATIONS, RATE = 4000, 7.5e-3
MAX_STEP_SIZE = 0.5


class GaussianModel(nn.Module):
    """log p(x, z) of all data of each set, through their mean and variance ``(n_sets, d)``."""

    def __init__(self, mean: Tensor, variance: Tensor) -> None:
        super().__init__()
        self.mean, self.variance = mean, variance
        self.delta = nn.Parameter(torch.zeros_like(mean))
        self.log_sigma = nn.Parameter(torch.full_like(mean, 3.0))

    def potential_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """U(z) = -log p(x, z) ``(..., n_sets)`` without constants, and its gradient."""
        precision = torch.exp(-2 * self.log_sigma)
        residual = self.mean - z - self.delta
        terms = 0.5 * z.square() + N_DATA * (0.5 * precision * (residual.square() + self.variance) + self.log_sigma)
        return terms.sum(-1), z - N_DATA * precision * residual


class MeanField(GaussianModel):
    """q = N(mu, diag s^2)."""

    def __init__(self, mean: Tensor, variance: Tensor) -> None:
        super().__init__(mean, variance)
        self.center = nn.Parameter(torch.zeros_like(mean))
        self.log_width = nn.Parameter(torch.ones_like(mean))

    def elbo(self, rng: torch.Generator) -> Tensor:
        """Estimate of the ELBO without constants, ``(n_sets,)``."""
        noise = torch.randn((N_SAMPLES, *self.mean.shape), generator=rng, dtype=self.mean.dtype)
        energy, _ = self.potential_and_gradient(self.center + self.log_width.exp() * noise)
        return -energy.mean(0) + self.log_width.sum(-1)


class PlanarFlow(GaussianModel):
    """Planar flows z + u tanh(w z + b) of N(0, I); u is bent so that each can be inverted."""

    def __init__(self, mean: Tensor, variance: Tensor, n_flows: int, rng: torch.Generator) -> None:
        super().__init__(mean, variance)
        shape = (n_flows, *mean.shape)
        self.u, self.w = (nn.Parameter(0.1 * torch.randn(shape, generator=rng, dtype=mean.dtype)) for _ in range(2))
        self.b = nn.Parameter(torch.full((n_flows, len(mean)), 0.1, dtype=mean.dtype))

    def elbo(self, rng: torch.Generator) -> Tensor:
        """Estimate of the ELBO without constants, ``(n_sets,)``."""
        z = torch.randn((N_SAMPLES, *self.mean.shape), generator=rng, dtype=self.mean.dtype)
        log_volume = torch.zeros(())
        for u, w, b in zip(self.u, self.w, self.b, strict=True):
            overlap = (u * w).sum(-1)
            bent = u + ((nn.functional.softplus(overlap) - 1 - overlap) / w.square().sum(-1))[:, None] * w
            value = torch.tanh((z * w).sum(-1) + b)
            log_volume = log_volume + torch.log1p((1 - value.square()) * (bent * w).sum(-1))
            z = z + bent * value[..., None]
        return (log_volume - self.potential_and_gradient(z)[0]).mean(0)


class Hamiltonian(GaussianModel):
    """Tempered leapfrog trajectories from N(0, I), a step size for each layer and dimension."""

    def __init__(self, mean: Tensor, variance: Tensor, n_leapfrog: int, mode: str) -> None:
        super().__init__(mean, variance)
        logit = math.log(0.005 / (MAX_STEP_SIZE - 0.005))
        self.step_size_logits = nn.Parameter(torch.full((n_leapfrog, *mean.shape), logit, dtype=mean.dtype))
        self.temperings = nn.ModuleList(Tempering(n_leapfrog, mode, 0.2) for _ in mean).to(mean.dtype)

    def elbo(self, rng: torch.Generator) -> Tensor:
        """Estimate of the ELBO without constants, ``(n_sets,)``."""
        shape = (N_SAMPLES, *self.mean.shape)
        position, noise = (torch.randn(shape, generator=rng, dtype=self.mean.dtype) for _ in range(2))
        paths = [tempering.path(self.mean) for tempering in self.temperings]
        hottest = torch.stack([path.log_beta0 for path in paths])[:, None]
        scales = torch.stack([path.momentum_scales for path in paths], dim=1)[..., None]
        steps = MAX_STEP_SIZE * torch.sigmoid(self.step_size_logits)
        end, _ = integrate(self.potential_and_gradient, position, noise * torch.exp(-0.5 * hottest), steps, scales)
        return -end.energy.mean(0)  # the entropy of N(0, I) and log beta_0 / 2 of momenta and volume are constants


def make_data(d: int, seed: int) -> dict[str, Tensor]:
    """True offset and standard deviation ``(d,)``, mean and variance of each data set ``(n_sets, d)``."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(d,)))
    position = np.arange(d) - (d - 1) / 2
    offset, sigma = position / 5, 3.6 * position**2 / (d - 1) ** 2 + 0.1
    sets = [rng.standard_normal(d) + offset + sigma * rng.standard_normal((N_DATA, d)) for _ in range(N_SETS)]
    statistics = {"mean": np.stack([x.mean(0) for x in sets]), "variance": np.stack([x.var(0) for x in sets])}
    return {name: torch.from_numpy(value) for name, value in ({"offset": offset, "sigma": sigma} | statistics).items()}


def make_models(mean: Tensor, variance: Tensor) -> dict[str, GaussianModel]:
    """The methods by name."""
    models: dict[str, GaussianModel] = {"mean field": MeanField(mean, variance)}
    models["planar flow"] = PlanarFlow(mean, variance, 10, torch.Generator().manual_seed(1))
    for n_leapfrog, mode in ((1, "none"), (1, "fixed"), (10, "none"), (10, "fixed"), (10, "free")):
        models[f"HVAE K={n_leapfrog}, {mode}"] = Hamiltonian(mean, variance, n_leapfrog, mode)
    return models


def learn(name: str, model: GaussianModel, data: dict[str, Tensor]) -> dict[str, Any]:
    """Ascend the ELBO; errors of each data set."""
    rng = torch.Generator().manual_seed(2)
    solver = torch.optim.RMSprop(model.parameters(), lr=RATE)
    begin = time.process_time()
    for _ in range(N_ITERATIONS):
        loss = -model.elbo(rng).sum() / N_DATA
        solver.zero_grad(set_to_none=True)
        loss.backward()
        solver.step()
    variance = torch.exp(2 * model.log_sigma)
    errors = {
        "offset": model.delta - data["offset"],
        "scale": variance - data["sigma"] ** 2,
        "offset_from_evidence": model.delta - data["mean"],
        "scale_from_evidence": variance - data["variance"],
    }
    row: dict[str, Any] = {"method": name, "d": data["mean"].shape[1], "seconds": round(time.process_time() - begin, 1)}
    row |= {key: error.detach().square().sum(-1).tolist() for key, error in errors.items()}
    floors = {"offset": data["mean"] - data["offset"], "scale": data["variance"] - data["sigma"] ** 2}
    return row | {"evidence_from_truth": {key: floor.square().sum(-1).tolist() for key, floor in floors.items()}}


def plot(rows: list[dict[str, Any]]) -> None:
    """Median and quartiles of the errors against dimension, PNG and SVG."""
    figure, axes = plt.subplots(1, 2, figsize=(11.5, 4.2), layout="constrained", sharex=True)
    titles = {
        "offset_from_evidence": r"offset, $|\Delta - \Delta^*|^2$",
        "scale_from_evidence": r"scale, $|\Sigma - \Sigma^*|^2$",
    }
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        for method, marker in zip(methods, "os^vDXP", strict=True):
            mine = sorted((row for row in rows if row["method"] == method), key=lambda row: row["d"])
            low, middle, high = np.array([np.quantile(row[key], (0.25, 0.5, 0.75)) for row in mine]).T
            dimensions = [row["d"] for row in mine]
            style = "--" if "HVAE" not in method else "-"
            (line,) = axis.plot(dimensions, middle, style, marker=marker, markersize=5, label=method)
            axis.fill_between(dimensions, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axis.set(xscale="log", yscale="log", title=title, xlabel="dimension d")
        axis.set_xticks(sorted({row["d"] for row in rows}), [str(d) for d in sorted({row["d"] for row in rows})])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("squared distance from the evidence's maximum")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right center")
    for suffix in ("png", "svg"):
        figure.savefig(RESULT.with_suffix(f".{suffix}"), dpi=150)
    plt.close(figure)


def summary(rows: list[dict[str, Any]]) -> str:
    """Table of median errors for docs/hvae.md."""
    from quality_hvae_report import table

    dimensions = sorted({row["d"] for row in rows})
    head = ["", *(f"offset, d = {d}" for d in dimensions), *(f"scale, d = {d}" for d in dimensions), "CPU s"]
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = {row["d"]: row for row in rows if row["method"] == method}
        cells = [method]
        for key in ("offset_from_evidence", "scale_from_evidence"):
            cells += [f"{np.median(mine[d][key]):.2g}" for d in dimensions]
        lines.append([*cells, f"{sum(row['seconds'] for row in mine.values()):.0f}"])
    truth = ["the evidence's own distance from the truth"]
    first = [row for row in rows if row["method"] == rows[0]["method"]]
    truth += [f"{np.median(row['evidence_from_truth']['offset']):.2g}" for row in first]
    truth += [f"{np.median(row['evidence_from_truth']['scale']):.2g}" for row in first]
    return table(head, [*lines, [*truth, "-"]])


def main() -> None:
    """Run, write, plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dimensions", type=int, nargs="+", default=[2, 5, 11, 25])
    parser.add_argument("--report", action="store_true", help="plot what is there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.report:
        rows = []
        for d in args.dimensions:
            data = make_data(d, seed=0)
            for name, model in make_models(data["mean"], data["variance"]).items():
                rows.append(learn(name, model, data))
                medians = {key: round(float(np.median(v)), 5) for key, v in rows[-1].items() if isinstance(v, list)}
                print(d, name, medians, f"{rows[-1]['seconds']} s", flush=True)
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
        sizes = {"n_data": N_DATA, "n_sets": N_SETS, "n_samples": N_SAMPLES, "n_iterations": N_ITERATIONS, "rate": RATE}
        record = {"git_sha": commit.stdout.strip(), "torch": torch.__version__, "python": platform.python_version()}
        RESULT.write_text(json.dumps(record | sizes | {"rows": rows}, indent=1) + "\n")
    rows = json.loads(RESULT.read_text())["rows"]
    plot(rows)

    from quality_hvae_report import insert

    insert("gaussian", summary(rows))


if __name__ == "__main__":
    main()
