"""From label files to a model file with its card: the whole recipe of a potential in one call."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from maise_bridge.basis import read_basis, standard_basis
from maise_bridge.checkpoint import Checkpoint
from maise_bridge.committee import merge_models
from maise_bridge.dataset import Labels, match_tags, read_labels
from maise_bridge.evaluation import residuals, window_errors
from maise_bridge.families import Split, crystal_features, find_families, split_families
from maise_bridge.filters import Filters
from maise_bridge.model_file import MaiseModel, read_network, write_model
from maise_bridge.objective import MaiseObjective, ObjectiveSettings
from maise_bridge.out_file import check_out_file
from maise_bridge.potential import MaisePotential
from maise_bridge.preparation import TrainingData, prepare
from maise_bridge.stratified import freeze_models
from maise_bridge.training import Report, TrainingResult, TrainingSettings, train

logger = logging.getLogger(__name__)

Watch = Callable[[int], Report]  # of the member's number


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
    fold : tuple of int, optional
        Which of how many disjoint test sets to hold out; see :func:`maise_bridge.families.split_families`.
    keep : tuple of str
        Shell patterns of tags; families with such a row are not held out.
    auxiliary : tuple of str
        Shell patterns of tags; such rows train and are no relatives of others, as labels of a cheaper method.
    filters : Filters
        Rows to leave out.
    maise : MaiseObjective, optional
        Weigh errors as MAISE does, and start from its weights (of `seed`, which must be positive then).
    frozen : tuple of str
        Model files of the elements, or of three binaries, to keep: stratified training. Gives basis and layers.
    basis : str, optional
        File of the symmetry functions to use; the standard 51 by default.
    early_stopping : bool
        Hold out validation rows and keep the weights that do best on them; if not, train on those rows, too, and keep
        the last weights.
    """

    hidden: tuple[int, int] = (20, 20)
    seed: int = 0
    n_members: int = 1
    split_seed: int = 0
    fold: tuple[int, int] | None = None
    keep: tuple[str, ...] = ()
    auxiliary: tuple[str, ...] = ()
    n_lbfgs: int = 2000
    n_epochs: int = 20
    weight_decay: float = 0.3
    energy_window: float = 0.5
    near_tolerance: float = 1.0
    tag_weights: tuple[tuple[str, float], ...] = ()
    filters: Filters = field(default_factory=Filters)
    maise: MaiseObjective | None = None
    frozen: tuple[str, ...] = ()
    basis: str | None = None
    early_stopping: bool = True

    def __post_init__(self) -> None:
        if self.frozen and self.basis is not None:
            raise ValueError(f"basis {self.basis}: the models to keep have theirs; leave it out")
        if self.n_members < 1:
            raise ValueError(f"n_members is {self.n_members}; at least one network is needed")
        if self.maise is not None and self.seed < 1:
            raise ValueError(f"seed is {self.seed}; MAISE's objective takes its random numbers from a positive seed")
        self.settings(0)

    def split(self, labels: Labels) -> Split:
        """Return the rows to train on, to validate by and to hold out."""
        own = np.flatnonzero(~labels.auxiliary)
        split = split_labels(
            labels.select(own), seed=self.split_seed, keep=self.keep, fold=self.fold, validate=self.early_stopping
        )
        train = np.union1d(own[split.train], np.flatnonzero(labels.auxiliary))
        return Split(train=train, validation=own[split.validation], test=own[split.test])

    def settings(self, member: int) -> TrainingSettings:
        """Return the settings of one member."""
        own = ObjectiveSettings(
            energy_window=self.energy_window, near_tolerance=self.near_tolerance, tag_weights=self.tag_weights
        )
        return TrainingSettings(
            hidden=self.hidden,
            n_epochs=self.n_epochs,
            n_lbfgs=self.n_lbfgs,
            early_stopping=self.early_stopping,
            weight_decay=self.weight_decay,
            objective=own if self.maise is None else self.maise,
            seed=self.seed + member,
        )


@dataclass(frozen=True, eq=False)
class FitResult:
    """A fitted potential, which has been written to its file.

    Attributes
    ----------
    model : MaiseModel
        The mean of the members.
    card : dict
        What ``OUT.json`` holds.
    labels : Labels
        The rows that passed the filters.
    split : Split
    histories : tuple of ndarray, shapes (n, 3)
        Of each member, see :class:`maise_bridge.training.TrainingResult`.
    """

    model: MaiseModel
    card: dict[str, Any]
    labels: Labels
    split: Split
    histories: tuple[np.ndarray, ...]


def split_labels(
    labels: Labels,
    *,
    seed: int,
    keep: Sequence[str] = (),
    fold: tuple[int, int] | None = None,
    threshold: float = 0.08,
    validate: bool = True,
) -> Split:
    """Split labels by family, also into one of several disjoint test sets (`fold`).

    Families with a row whose tag matches one of the patterns `keep`, or that is for training only (``labels.uses``),
    are not held out; rows that are for test only are, and their families with them. Without `validate` the rows that
    would validate are trained on.
    """
    features = crystal_features(labels.structures, standard_basis(51), labels.species)
    families = find_families(features, labels.n_atoms, labels.tags, threshold=threshold)
    kept = match_tags(labels.tags, keep)
    tested = np.isin(families, families[labels.uses == 3])
    contradicting = np.flatnonzero(tested & (kept | (labels.uses == 2)))
    if len(contradicting):
        raise ValueError(
            f"{labels.sources[contradicting[0]]}: is to be trained on, but a crystal of its family is for test only; "
            "give both one use"
        )
    others = np.flatnonzero(~tested)
    split = split_families(
        families[others], keep=(kept | (labels.uses == 2))[others], fold=fold, rng=np.random.default_rng(seed)
    )
    test = np.sort(np.concatenate([others[split.test], np.flatnonzero(tested)]))
    train, validation = others[split.train], others[split.validation]
    if not validate:
        train, validation = np.union1d(train, validation), validation[:0]
    return Split(train=train, validation=validation, test=test)


def fit(
    label_files: Sequence[str | Path],
    out: str | Path,
    recipe: Recipe,
    *,
    overwrite: bool = False,
    watch: Watch | None = None,
) -> FitResult:
    """Fit a potential, write the model file and its card ``OUT.json``.

    The state of the fit goes to ``OUT.checkpoint`` as it runs; the same call goes on from there after any stop and
    ends with the same bits. The file is removed at the end.

    Parameters
    ----------
    label_files : sequence of paths
        See :func:`maise_bridge.dataset.read_labels`.
    out : path
        Model file.
    recipe : Recipe
    overwrite : bool
        Replace `out`, and the checkpoint of another fit.
    watch : callable, optional
        Called with the number of each member; what it returns is called with step and objectives on training and
        validation rows at each look at the latter.

    Raises
    ------
    LabelError
        If label files are wrong.
    ReadError
        If the basis file is wrong.
    ValueError
        If there are too few families, `out` is there or its folder is not, or a checkpoint is of another fit.
    """
    start = time.perf_counter()
    check_out_file(Path(out), overwrite=overwrite)
    frozen = freeze_models([read_network(path) for path in recipe.frozen]) if recipe.frozen else None
    basis = None if recipe.basis is None else read_basis(recipe.basis)
    labels = read_labels(label_files, filters=recipe.filters, auxiliary=recipe.auxiliary)
    hashes = {Path(path).name: hash_labels(path) for path in label_files}
    kept = [_sha256(path) for path in recipe.frozen]
    content = [asdict(recipe), hashes, kept, basis and basis.text]
    checkpoint = Checkpoint.open(f"{out}.checkpoint", content, overwrite=overwrite)
    split = recipe.split(labels)
    data = prepare(labels, split, basis=basis, like_maise=recipe.maise is not None, frozen=frozen)
    logger.info("tables of derivatives: %.0f MB", data.n_bytes / 1e6)
    results = [_train_member(data, recipe, member, checkpoint, watch) for member in range(recipe.n_members)]
    merged = merge_models([result.model for result in results])
    parts = [part for part in ("train", "validation", "test") if len(getattr(split, part))]
    errors = {part: _errors(merged, labels, getattr(split, part)) for part in parts}
    model = merge_models([result.model for result in results], info=_header(labels, split, errors))
    write_model(model, out)
    card = {
        "recipe": _plain(asdict(recipe)),
        "labels": hashes,
        "removed": dict(labels.removed),
        "frozen": kept,
        "members": [
            {
                "seed": recipe.seed + member,
                "validation_loss": _plain(result.validation_loss),
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
    checkpoint.remove()
    return FitResult(model, card, labels, split, tuple(result.history for result in results))


def _train_member(
    data: TrainingData, recipe: Recipe, member: int, checkpoint: Checkpoint, watch: Watch | None
) -> TrainingResult:
    """Fit one network, from where it was left."""
    return train(
        data,
        recipe.settings(member),
        resume=checkpoint.states.get(member),
        save=lambda state: checkpoint.save(member, state),
        report=None if watch is None else watch(member),
    )


def hash_labels(path: str | Path) -> str:
    """SHA-256 of a label file, or of the names and contents of all files of a tree."""
    path = Path(path)
    if path.is_file():
        return _sha256(path)
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(path)} {_sha256(file)}\n".encode())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """The same with None for numbers that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
    return [_plain(window.as_dict()) for window in window_errors(found, chosen, lowest=lowest)]


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
