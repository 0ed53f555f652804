"""Train an HVAE on crystals and write it with a card that says how it came about and how good it is."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

from ase_hvae import __version__
from ase_hvae.data import load_known
from ase_hvae.dataset import (
    Augmentation,
    CrystalDataset,
    crystal_name,
    exclude_matches,
    mean_pair_correlation,
    standardisation,
)
from ase_hvae.errors import ModelError
from ase_hvae.hvae import HVAE, History, central_grid, fit, save_model
from ase_hvae.progress import track
from ase_hvae.rdf import RDFSettings
from ase_hvae.structures import read_structures
from ase_hvae.symmetry import wyckoff_sites

logger = logging.getLogger(__name__)

Structures = str | os.PathLike[str] | Sequence[Atoms]

COLLAPSED_KL = 0.1  # nats; a latent dimension below carries nothing: it is no active unit
MEMORISED_DISTANCE = 0.005  # mean Pearson distance of replicas to the nearest training RDF; below they are copies
COLLAPSED_SPREAD = 0.02  # mean Pearson distance of the grid's replicas; below they are all alike
MODEL_STAGE, FIT_STAGE, EVALUATION_STAGE = 111, 112, 113  # first entries of the seeds' spawn keys


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults make the shipped silicon model.

    Attributes
    ----------
    n_leapfrog : int
        Leapfrog steps K; 0 is the standard VAE.
    tempering : {"none", "fixed", "free"}
    latent_dim : int
    hidden : tuple of int
        Widths of the encoder's hidden layers, the decoder's in reverse.
    noise_floor : float
        Smallest standard deviation of the likelihood for a standardised feature.
    epochs, batch_size : int
    optimizer : {"adam", "sgd"}
    learning_rate, weight_decay, gradient_clip : float
    held_out_fraction : float
        Share of the crystals that a first, separate model does not see, to measure the held-out ELBO; the model that
        is kept is then trained on all crystals. 0 (or too few crystals) skips that first training.
    rdf : RDFSettings
    augmentation : Augmentation
    """

    n_leapfrog: int = 3
    tempering: str = "none"
    latent_dim: int = 2
    hidden: tuple[int, ...] = (128, 64)
    noise_floor: float = 1.0
    epochs: int = 100
    batch_size: int = 64
    optimizer: str = "adam"
    learning_rate: float = 5e-3
    weight_decay: float = 0.01
    gradient_clip: float = 20.0
    held_out_fraction: float = 0.15
    rdf: RDFSettings = field(default_factory=RDFSettings)
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True, eq=False)
class TrainResult:
    """A trained model and what is known about it.

    Attributes
    ----------
    model : HVAE
        Its `card` holds the numbers below and more.
    path : Path
        Of the weights.
    history : History
    names, excluded : tuple of str
        Crystals trained on, and crystals left out because they match an excluded one.
    held_out_elbo : float or None
        Mean ELBO of crystals unseen by a model of the same recipe; nats, standardised features.
    replica_spread : float
        Mean Pearson distance among the replicas of the 15 x 15 grid (about 225 points in more dimensions).
    reconstruction_correlation : float
        Mean Pearson correlation of decoded posterior means with the crystals' RDFs.
    null_correlation : float
        Mean Pearson correlation of the RDFs of different crystals.
    replica_novelty : float
        Mean Pearson distance of the grid's replicas to the nearest RDF that was trained on: near zero the model
        repeats what it knows. The card also has its quantiles and the same distance among the crystals.
    seconds : float
    """

    model: HVAE
    path: Path
    history: History
    names: tuple[str, ...]
    excluded: tuple[str, ...]
    held_out_elbo: float | None
    replica_spread: float
    reconstruction_correlation: float
    null_correlation: float
    replica_novelty: float
    seconds: float

    def __str__(self) -> str:
        divergences = ", ".join(f"{kl:.2f}" for kl in self.model.card["kl_per_dimension"])
        lines = [
            f"{self.path}: {len(self.names)} crystals, {self.seconds:.0f} s, loss {self.history.loss[-1]:.1f} nats",
            f"KL per latent dimension {divergences} nats; Pearson distance of replicas {self.replica_spread:.3f}, "
            f"to the nearest training crystal {self.replica_novelty:.3f}",
            f"Pearson correlation of reconstructions {self.reconstruction_correlation:.3f}, "
            f"of different crystals {self.null_correlation:.3f}",
        ]
        if self.held_out_elbo is not None:
            lines.append(f"ELBO of held-out crystals {self.held_out_elbo:.1f} nats")
        if self.excluded:
            lines.append(f"left out: {', '.join(self.excluded)}")
        return "\n".join(lines)


def train(
    structures: Structures | None = None,
    out: str | os.PathLike[str] = "hvae.safetensors",
    *,
    exclude: Structures | Sequence[str | os.PathLike[str]] | None = None,
    seed: int = 0,
    recipe: Recipe | None = None,
    **changes: Any,
) -> TrainResult:
    """Train an HVAE on the RDFs of crystals of one composition and write weights and card.

    Runs on one thread, so that the same seed, versions and processor give the same weights bit for bit.

    Parameters
    ----------
    structures : path or sequence of Atoms, optional
        File that ASE reads, database or folder; the shipped known silicon crystals when left out.
    out : path
        Weights, ``.safetensors``; the card lies beside it as ``.json``.
    exclude : path, sequence of paths or of Atoms, optional
        Crystals that must not be learned: every structure that matches one of them is dropped and named in the log.
    seed : int
    recipe : Recipe, optional
    **changes
        Fields of the recipe, for instance ``epochs=10, n_leapfrog=0``.

    Raises
    ------
    StructureError
        If the structures cannot be read, are broken or have different compositions.
    ModelError
        If training diverges or the model collapses (all replicas alike); nothing is written then.
    """
    begin = time.perf_counter()
    recipe = replace(recipe or Recipe(), **changes)
    known = load_known() if structures is None else _read(structures)
    kept, dropped = exclude_matches(known, _read(exclude)) if exclude is not None else (known, [])
    if len(kept) < 2:
        raise ModelError(f"{len(kept)} of {len(known)} structures are left to train on; at least 2 are needed")
    with _one_thread():
        dataset = CrystalDataset(kept, recipe.rdf)
        logger.info("training on %d crystals of %s, %d excluded", len(dataset), dataset.composition, len(dropped))
        held_out = _measure_held_out(dataset, recipe, seed)
        model, history = _fit(dataset, recipe, seed, "train")
        quality = assess(model, dataset)
        _refuse_collapse(quality)
    model.card.update(_card(dataset, recipe, seed, history), **quality, **held_out)
    model.card["excluded"] = [crystal_name(atoms, index) for index, atoms in enumerate(dropped)]
    path = save_model(model, out)
    seconds = time.perf_counter() - begin
    logger.info("wrote %s after %.0f s", path, seconds)
    return TrainResult(
        model=model,
        path=path,
        history=history,
        names=dataset.names,
        excluded=tuple(model.card["excluded"]),
        held_out_elbo=held_out["held_out_elbo"],
        replica_spread=quality["replica_spread"],
        reconstruction_correlation=quality["reconstruction_correlation"],
        null_correlation=quality["null_correlation"],
        replica_novelty=quality["replica_novelty"]["mean"],
        seconds=seconds,
    )


def assess(model: HVAE, dataset: CrystalDataset) -> dict[str, Any]:
    """Measure how well a model tells crystals apart and gives them back; plain numbers and lists for its card."""
    features = torch.from_numpy(dataset.features)
    mean, std = model.encode(features)
    rdfs, volumes = model.decode(mean)
    correlations = [np.corrcoef(a, b)[0, 1] for a, b in zip(rdfs.double().numpy(), dataset.rdfs, strict=True)]
    n_per_axis = 15 if model.latent_dim <= 2 else max(2, round(225 ** (1 / model.latent_dim)))
    replicas, replica_volumes = model.decode(central_grid(n_per_axis, 0.9, model.latent_dim))
    sites = [wyckoff_sites(atoms) for atoms in dataset.structures]
    columns = zip(dataset.names, mean.tolist(), std.tolist(), correlations, volumes.tolist(), sites, strict=True)
    divergences = model.kl_per_dimension(features).tolist()
    return {
        "kl_per_dimension": divergences,
        "active_units": {"n": sum(kl >= COLLAPSED_KL for kl in divergences), "threshold": COLLAPSED_KL},
        "replica_novelty": novelty(replicas.double().numpy(), dataset.rdfs),
        "replica_spread": 1 - mean_pair_correlation(replicas.double().numpy()),
        "replica_volumes": [replica_volumes.min().item(), replica_volumes.max().item()],
        "reconstruction_correlation": float(np.mean(correlations)),
        "null_correlation": dataset.null_correlation,
        "crystals": [
            {"name": name, "mean": mu, "std": sd, "pearson": round(float(r), 4), "volume": round(v, 3)}
            | {"spacegroup": number, "wyckoff": list(positions)}
            for name, mu, sd, r, v, (number, positions) in columns
        ],
    }


def novelty(replicas: np.ndarray, rdfs: np.ndarray) -> dict[str, Any]:
    """Pearson distances of replicas to the nearest RDF trained on, and of each of these to the nearest other one.

    Parameters
    ----------
    replicas : ndarray, (n_replicas, n_values)
    rdfs : ndarray, (n_crystals, n_values)
        At least two.

    Returns
    -------
    dict
        ``mean`` and ``quantiles`` (0, 25, 50, 75, 100 %) over replicas; ``between_crystals``, the mean over crystals.
    """
    n = len(replicas)
    correlations = np.corrcoef(replicas, rdfs)
    nearest = 1 - correlations[:n, n:].max(axis=1)
    between = 1 - (correlations[n:, n:] - 2 * np.eye(len(rdfs))).max(axis=1)
    quantiles = np.quantile(nearest, [0, 0.25, 0.5, 0.75, 1]).tolist()
    return {"mean": float(nearest.mean()), "quantiles": quantiles, "between_crystals": float(between.mean())}


def _fit(dataset: CrystalDataset, recipe: Recipe, seed: int, description: str) -> tuple[HVAE, History]:
    features = dataset.augmented(recipe.augmentation, seed)
    model = HVAE(
        features.shape[1],
        latent_dim=recipe.latent_dim,
        hidden=recipe.hidden,
        n_leapfrog=recipe.n_leapfrog,
        tempering=recipe.tempering,
        noise_floor=recipe.noise_floor,
        rng=_generator(seed, MODEL_STAGE),
    )
    mean, scale = standardisation(features)
    model.set_standardisation(torch.from_numpy(mean), torch.from_numpy(scale))
    with track(description, recipe.epochs) as advance:
        history = fit(
            model,
            torch.from_numpy(features),
            rng=_generator(seed, FIT_STAGE),
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            learning_rate=recipe.learning_rate,
            optimizer=recipe.optimizer,
            weight_decay=recipe.weight_decay,
            gradient_clip=recipe.gradient_clip,
            callback=lambda epoch, loss: advance(1),
        )
    return model, history


def _measure_held_out(dataset: CrystalDataset, recipe: Recipe, seed: int) -> dict[str, Any]:
    """Train on a part of the crystals and return the mean ELBO and log-likelihood of the others."""
    if round(recipe.held_out_fraction * len(dataset)) < 1:
        logger.info("%d crystals: none is held out, so no held-out ELBO is measured", len(dataset))
        return {"held_out": [], "held_out_elbo": None, "held_out_log_likelihood": None}
    part, others = dataset.split(recipe.held_out_fraction, seed)
    model, _ = _fit(part, recipe, seed, "validate")
    rng = _generator(seed, EVALUATION_STAGE)
    features = torch.from_numpy(others.features)
    with torch.no_grad():
        elbo = model.elbo(features, rng=rng, n_samples=100).mean().item()
    likelihood = model.log_likelihood(features, rng=rng, n_samples=1000).mean().item()
    return {"held_out": list(others.names), "held_out_elbo": elbo, "held_out_log_likelihood": likelihood}


def _refuse_collapse(quality: dict[str, Any]) -> None:
    divergences, spread = quality["kl_per_dimension"], quality["replica_spread"]
    listed = ", ".join(f"{kl:.3g}" for kl in divergences)
    if max(divergences) < COLLAPSED_KL or spread < COLLAPSED_SPREAD:
        raise ModelError(
            f"the latent space collapsed: KL per dimension {listed} nats (limit {COLLAPSED_KL}), mean Pearson distance "
            f"of the replicas {spread:.3g} (limit {COLLAPSED_SPREAD}); train longer, raise the learning rate or lower "
            "noise_floor"
        )
    if min(divergences) < COLLAPSED_KL:
        logger.warning("a latent dimension is not used: KL per dimension %s nats", listed)
    if quality["replica_novelty"]["mean"] < MEMORISED_DISTANCE:
        logger.warning(
            "the replicas repeat the training crystals: mean Pearson distance to the nearest %.2g (limit %g); train "
            "shorter or raise noise_floor",
            quality["replica_novelty"]["mean"],
            MEMORISED_DISTANCE,
        )


def _card(dataset: CrystalDataset, recipe: Recipe, seed: int, history: History) -> dict[str, Any]:
    packages = ("torch", "numpy", "ase", "safetensors")
    return {
        "species": list(dataset.species),
        "composition": dataset.composition,
        "rdf": asdict(recipe.rdf),
        "latent_dim": recipe.latent_dim,
        "recipe": asdict(recipe),
        "recipe_sha256": hashlib.sha256(repr(recipe).encode()).hexdigest(),
        "seed": seed,
        "data_sha256": dataset.sha256,
        "versions": {
            "ase_hvae": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "final_loss": float(history.loss[-1]),
        "energy_error": float(history.energy_error[-1]),
        "n_skipped_minibatches": history.n_skipped,
    }


def _read(source: Structures | Sequence[str | os.PathLike[str]]) -> list[Atoms]:
    if isinstance(source, str | os.PathLike):
        return read_structures(Path(source))
    structures: list[Atoms] = []
    for entry in source:
        structures += [entry] if isinstance(entry, Atoms) else read_structures(Path(entry))
    return structures


def _generator(seed: int, stage: int) -> torch.Generator:
    state = np.random.SeedSequence(seed, spawn_key=(stage,)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


@contextmanager
def _one_thread() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
