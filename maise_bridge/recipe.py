"""From label files to a model file with its card: the whole recipe of a potential in one call."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
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
    keep : tuple of str
        Shell patterns of tags; families with such a row are not held out.
    """

    hidden: tuple[int, int] = (20, 20)
    seed: int = 0
    n_members: int = 1
    split_seed: int = 0
    keep: tuple[str, ...] = ()
    n_lbfgs: int = 2000
    n_epochs: int = 20
    weight_decay: float = 0.3
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


def split_labels(labels: Labels, *, seed: int, keep: Sequence[str] = (), threshold: float = 0.03) -> Split:
    """Split labels by family; families with a row whose tag matches one of the patterns `keep` are not held out."""
    features = crystal_features(labels.structures, standard_basis(51), labels.species)
    families = find_families(features, labels.n_atoms, labels.tags, threshold=threshold)
    kept = np.array([any(fnmatchcase(tag, pattern) for pattern in keep) for tag in labels.tags])
    return split_families(families, keep=kept, rng=np.random.default_rng(seed))


def fit(label_files: Sequence[str | Path], out: str | Path, recipe: Recipe) -> dict[str, Any]:
    """Fit a potential, write the model file and ``OUT.json``, and return that card.

    Parameters
    ----------
    label_files : sequence of paths
        See :func:`maise_bridge.dataset.read_labels`.
    out : path
        Model file, replaced if there.
    recipe : Recipe

    Raises
    ------
    LabelError
        If label files are wrong.
    ValueError
        If they hold several species or too few families.
    """
    start = time.perf_counter()
    labels = read_labels(label_files)
    split = split_labels(labels, seed=recipe.split_seed, keep=recipe.keep)
    data = prepare(labels, split)
    results = [train(data, recipe.settings(member)) for member in range(recipe.n_members)]
    errors = {}
    merged = merge_models([result.model for result in results])
    for part in ("train", "validation", "test"):
        errors[part] = _errors(merged, labels, getattr(split, part))
    model = merge_models([result.model for result in results], info=_header(labels, split, errors))
    write_model(model, out)
    card = {
        "recipe": asdict(recipe),
        "labels": {Path(path).name: _sha256(path) for path in label_files},
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
    _write_card(card, Path(f"{out}.json"))
    return card


def _write_card(card: Mapping[str, Any], path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(json.dumps(card, indent=1) + "\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


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
