"""Crystals in the latent space of trained weights: where they lie, how likely they are, what lies between them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

from ase_hvae.dataset import crystal_features, crystal_name
from ase_hvae.errors import ModelError
from ase_hvae.hvae import HVAE
from ase_hvae.rdf import RDFSettings

LOG_LIKELIHOOD_STAGE = 121  # first entry of the seed's spawn key


@dataclass(frozen=True, eq=False)
class LatentMap:
    """The latent plane on a square grid, with known crystals in it.

    Attributes
    ----------
    axis : ndarray, (n,)
        Values of both latents; z1 runs along the second axis of the arrays below, z2 along the first.
    nearest : ndarray of int, (n, n)
        Number of the known crystal whose RDF correlates best with the decoded one.
    correlation : ndarray, (n, n)
        That Pearson correlation.
    volume_per_atom : ndarray, (n, n)
        Decoded; Å^3.
    names : tuple of str
        Of the known crystals.
    means, stds : ndarray, (n_crystals, 2)
        Of the posterior q0(z|x) of each.
    """

    axis: np.ndarray
    nearest: np.ndarray
    correlation: np.ndarray
    volume_per_atom: np.ndarray
    names: tuple[str, ...]
    means: np.ndarray
    stds: np.ndarray


def encode(model: HVAE, structures: Sequence[Atoms]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of the posterior q0(z|x) of crystals, each ``(n, latent_dim)``.

    Raises
    ------
    ModelError
        If the weights' card holds no RDF settings, or a crystal has other species than the weights know.
    """
    mean, std = model.encode(_features(model, structures))
    return mean.double().numpy(), std.double().numpy()


def log_likelihood(model: HVAE, structures: Sequence[Atoms], *, n_samples: int = 1000, seed: int = 0) -> np.ndarray:
    """Estimate log p(x) of crystals by importance sampling, ``(n,)``, in nats of the standardised features.

    log p(x) = log E[w] over the trajectories' weights w (`HVAE.log_weight`). The mean of `n_samples` weights is an
    unbiased estimate of p(x), so its logarithm is a lower bound on average that rises with the number of samples. It
    is a density: compare it between crystals or between weights with the same standardisation, it has no zero.

    Parameters
    ----------
    model : HVAE
    structures : sequence of Atoms
        Not modified.
    n_samples : int
        At least 1.
    seed : int
        The same seed gives the same numbers.

    Raises
    ------
    ModelError
        As `encode`.

    References
    ----------
    Burda, Grosse, Salakhutdinov, ICLR 2016; Caterini, Doucet, Sejdinovic, NeurIPS 2018.
    """
    if n_samples < 1:
        raise ValueError(f"n_samples is {n_samples}; at least 1 sample is needed")
    state = np.random.SeedSequence(seed, spawn_key=(LOG_LIKELIHOOD_STAGE,)).generate_state(1, np.uint64)[0]
    rng = torch.Generator().manual_seed(int(state) >> 1)
    return model.log_likelihood(_features(model, structures), rng=rng, n_samples=n_samples).double().numpy()


def interpolate(start: np.ndarray, end: np.ndarray, n: int = 11) -> np.ndarray:
    """Return n points on the line between two latents ``(latent_dim,)``, ends included, ``(n, latent_dim)``."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    if n < 2 or start.ndim != 1 or start.shape != end.shape:
        raise ValueError(
            f"n is {n}, the ends have shapes {start.shape}, {end.shape}; n must be at least 2, the ends (latent_dim,)"
        )
    return start + np.linspace(0, 1, n)[:, None] * (end - start)


def latent_map(model: HVAE, known: Sequence[Atoms], *, n_per_axis: int = 81, extent: float = 3.0) -> LatentMap:
    """Decode a square grid of the latent plane and compare it with known crystals.

    Parameters
    ----------
    model : HVAE
        With two latent dimensions.
    known : sequence of Atoms
        At least one; ``info["name"]`` names a crystal.
    n_per_axis : int
    extent : float
        The grid spans -extent to extent on both axes.

    Raises
    ------
    ModelError
        If the weights have another number of latent dimensions, or as `encode`.
    """
    if model.latent_dim != 2:
        raise ModelError(f"the weights have {model.latent_dim} latent dimensions; a map needs 2")
    if n_per_axis < 2 or not extent > 0:
        raise ValueError(f"n_per_axis={n_per_axis}, extent={extent}; they must be at least 2 and positive")
    features = _features(model, known)
    means, stds = model.encode(features)
    axis = np.linspace(-extent, extent, n_per_axis)
    second, first = np.meshgrid(axis, axis, indexing="ij")
    rdfs, volumes = model.decode(torch.from_numpy(np.stack([first.ravel(), second.ravel()], axis=1)))
    correlations = np.corrcoef(rdfs.double().numpy(), features[:, :-1].numpy())[: len(rdfs), len(rdfs) :]
    shape = (n_per_axis, n_per_axis)
    return LatentMap(
        axis=axis,
        nearest=correlations.argmax(axis=1).reshape(shape),
        correlation=correlations.max(axis=1).reshape(shape),
        volume_per_atom=volumes.double().numpy().reshape(shape),
        names=tuple(crystal_name(atoms, index) for index, atoms in enumerate(known)),
        means=means.double().numpy(),
        stds=stds.double().numpy(),
    )


def plot_latent_map(latents: LatentMap, path: str | os.PathLike[str], *, coverage: float = 0.9) -> Path:
    """Draw a map: correlation with the nearest known crystal, borders between these, and the crystals themselves.

    Parameters
    ----------
    latents : LatentMap
    path : path
        Picture to write; its suffix (``.png``, ``.svg``, ``.pdf``) is the format.
    coverage : float
        The dashed square spans this central part of the prior on each axis, as `ase_hvae.hvae.central_grid`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw(axes, latents, coverage)
    path = Path(path)
    figure.savefig(path, dpi=150)
    return path


def _draw(axes: Any, latents: LatentMap, coverage: float) -> None:
    """Field, borders, crystals and the square of the grid."""
    axis, half = latents.axis, torch.special.ndtri(torch.tensor(0.5 + coverage / 2, dtype=torch.float64)).item()
    mesh = axes.pcolormesh(axis, axis, latents.correlation, shading="nearest", cmap="viridis", rasterized=True)
    axes.figure.colorbar(mesh, ax=axes, label="Pearson correlation of g(r) with the nearest known crystal")
    for crystal in np.unique(latents.nearest):
        inside = (latents.nearest == crystal).astype(float)
        axes.contour(axis, axis, inside, levels=[0.5], colors="white", linewidths=0.5, alpha=0.6)
    axes.plot([-half, half, half, -half, -half], [-half, -half, half, half, -half], "--", color="white", linewidth=1)
    axes.errorbar(*latents.means.T, *latents.stds.T[::-1], fmt="o", color="tab:red", markersize=3, linewidth=0.7)
    placed: list[np.ndarray] = []
    for name, mean in zip(latents.names, latents.means, strict=True):
        inside_map = (np.abs(mean) < axis[-1]).all()
        if inside_map and all((np.abs(mean - other) > (0.45, 0.1)).any() for other in placed):  # no name over another
            placed.append(mean)
            outline = {"boxstyle": "round,pad=0.1", "facecolor": "black", "alpha": 0.45, "linewidth": 0}
            axes.annotate(name, mean, (4, 3), textcoords="offset points", fontsize=6.5, color="white", bbox=outline)
    axes.set(xlim=axis[[0, -1]], ylim=axis[[0, -1]], xlabel="latent $z_1$", ylabel="latent $z_2$", aspect="equal")


def _features(model: HVAE, structures: Sequence[Atoms]) -> torch.Tensor:
    """Physical features of crystals under the settings of the weights, ``(n, n_features)``, float64."""
    if "rdf" not in model.card or "species" not in model.card:
        raise ModelError("the weights' card holds no RDF settings and species; use weights that ase_hvae.train wrote")
    species = list(model.card["species"])
    for index, atoms in enumerate(structures):
        found = sorted(set(atoms.symbols))
        if found != sorted(species):
            raise ModelError(
                f"{crystal_name(atoms, index)} holds {', '.join(found) or 'no atoms'}, the weights know crystals of "
                f"{', '.join(species)}; pass such crystals or other weights"
            )
    return torch.from_numpy(crystal_features(structures, RDFSettings(**model.card["rdf"]), species))
