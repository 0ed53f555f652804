"""From label files to a model file with its card: the whole recipe of a potential in one call."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maise_bridge.basis import standard_basis
from maise_bridge.committee import merge_models
from maise_bridge.dataset import Labels, read_labels
from maise_bridge.evaluation import residuals, window_errors
from maise_bridge.families import Split, crystal_features, find_families, split_families
from maise_bridge.model_file import MaiseModel, write_model
from maise_bridge.objective import ObjectiveSettings
from maise_bridge.potential import MaisePotential
from maise_bridge.training import TrainingSettings, prepare, train


@dataclass(frozen=True)
class Recipe:
    """Choices of a fit; see :class:`maise_bridge.training.TrainingSettings` and `ObjectiveSettings`.

    Attributes
    ----------
    seed : int
        Of the first member; the others count on.
    n_members : int
        Networks to fit from different initial weights; the model is their mean.
    split_seed : int
        Of the split by family.
    """

    hidden: tuple[int, int] = (20, 20)
    seed: int = 0
    n_members: int = 1
    split_seed: int = 0
    n_lbfgs: int = 600
    n_epochs: int = 20
    weight_decay: float = 1e-2
    energy_window: float = 0.5
    tag_weights: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if self.n_members < 1:
            raise ValueError(f"n_members is {self.n_members}; at least one network is needed")
        self.settings(0)

    def settings(self, member: int) -> TrainingSettings:
        """Return the settings of one member."""
        return TrainingSettings(
            hidden=self.hidden,
            n_epochs=self.n_epochs,
            n_lbfgs=self.n_lbfgs,
            weight_decay=self.weight_decay,
            objective=ObjectiveSettings(energy_window=self.energy_window, tag_weights=self.tag_weights),
            seed=self.seed + member,
        )


def split_labels(
    labels: Labels, pretraining: Labels | None, *, seed: int, threshold: float = 0.05
) -> tuple[Split, np.ndarray]:
    """Split labels by family, and say which rows for pretraining are of no held-out family.

    Returns
    -------
    split : Split
    allowed : ndarray of int
        Rows of `pretraining`; empty without.
    """
    everything = [labels] if pretraining is None else [labels, pretraining]
    structures = [atoms for part in everything for atoms in part.structures]
    features = crystal_features(structures, standard_basis(51), labels.species)
    families = find_families(
        features,
        np.concatenate([part.n_atoms for part in everything]),
        [tag for part in everything for tag in part.tags],
        threshold=threshold,
    )
    n = len(labels)
    _, compact = np.unique(families[:n], return_inverse=True)
    split = split_families(compact, rng=np.random.default_rng(seed))
    held = families[np.concatenate([split.validation, split.test])]
    return split, np.flatnonzero(~np.isin(families[n:], held))


def fit(
    label_files: Sequence[str | Path], out: str | Path, recipe: Recipe, *, pretraining: Sequence[str | Path] = ()
) -> dict[str, Any]:
    """Fit a potential, write the model file and ``OUT.json``, and return that card.

    Parameters
    ----------
    label_files : sequence of paths
        See :func:`maise_bridge.dataset.read_labels`.
    out : path
        Model file, replaced if there.
    recipe : Recipe
    pretraining : sequence of paths
        Cheaper labels to start from; rows of held-out families are left out.

    Raises
    ------
    LabelError
        If label files are wrong.
    ValueError
        If they hold several species or too few families.
    """
    start = time.perf_counter()
    labels = read_labels(label_files)
    cheap = read_labels(pretraining) if pretraining else None
    split, allowed = split_labels(labels, cheap, seed=recipe.split_seed)
    data = prepare(labels, split, pretraining=None if cheap is None else cheap.select(allowed))
    results = [train(data, recipe.settings(member)) for member in range(recipe.n_members)]
    errors = {}
    merged = merge_models([result.model for result in results])
    for part in ("train", "validation", "test"):
        errors[part] = _errors(merged, labels, getattr(split, part))
    model = merge_models([result.model for result in results], info=_header(labels, split, errors))
    write_model(model, out)
    card = {
        "recipe": asdict(recipe),
        "labels": {str(path): _sha256(path) for path in label_files},
        "pretraining": {str(path): _sha256(path) for path in pretraining},
        "n_pretraining": len(allowed),
        "members": [
            {
                "seed": recipe.seed + member,
                "validation_loss": result.validation_loss,
                "test": _errors(result.model, labels, split.test),
            }
            for member, result in enumerate(results)
        ],
        "errors": errors,
        "split": {part: [labels.sources[row] for row in getattr(split, part)] for part in ("validation", "test")},
        "sha256": _sha256(out),
        "seconds": round(time.perf_counter() - start, 1),
    }
    Path(f"{out}.json").write_text(json.dumps(card, indent=1) + "\n")
    return card


def _errors(model: MaiseModel, labels: Labels, rows: np.ndarray) -> list[dict[str, float | None]]:
    chosen = labels.select(rows)
    found = residuals(MaisePotential(model, core_repulsion=False), chosen)
    lowest = float(labels.energies_per_atom.min())
    return [
        {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
        for row in (window.as_dict() for window in window_errors(found, chosen, lowest=lowest))
    ]


def _header(labels: Labels, split: Split, errors: Mapping[str, Sequence[Mapping[str, float | None]]]) -> dict[str, str]:
    train, test = errors["train"][-1], errors["test"][-1]
    return {
        "train energy data": str(len(split.train)),
        "test energy data": str(len(split.test)),
        "total structures": str(len(labels)),
        "max atom number": str(int(labels.n_atoms.max())),
        "train energy error": f"{train['energy']:.6f}  eV/atom",
        "test Energy error": f"{test['energy']:.6f}  eV/atom",
        "train force error": f"{train['forces']:.6f}  eV/Ang",
        "test Force error": f"{test['forces']:.6f}  eV/Ang",
    }


def _sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
