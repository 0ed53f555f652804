"""What fits of one label set share: descriptor tables, their ranges and whitening, the zeros of energy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from maise_bridge.basis import Basis, standard_basis
from maise_bridge.dataset import Labels
from maise_bridge.families import Split
from maise_bridge.inputs import species_indices
from maise_bridge.network import Whitening
from maise_bridge.objective import Group, Table, compute_tables, make_groups
from maise_bridge.stratified import FrozenNetworks


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Everything that fits with different seeds share; made by :func:`prepare`.

    Attributes
    ----------
    labels : Labels
    split : Split
    basis : Basis
    species : tuple of str
        In the order of the model.
    whitenings : tuple of Whitening
        Of each species.
    references : ndarray, shape (n_species,)
        Energies per atom that those of the networks are relative to; eV.
    zeros, above : ndarray, shape (n,)
        Energies of cells that follow from `references`, and energies above the lowest; eV, eV/atom.
    train, validation : tuple of Group
        Whitened tables.
    frozen : FrozenNetworks or None
    """

    labels: Labels
    split: Split
    basis: Basis
    species: tuple[str, ...]
    whitenings: tuple[Whitening, ...]
    references: np.ndarray
    zeros: np.ndarray = field(repr=False)
    above: np.ndarray = field(repr=False)
    train: tuple[Group, ...] = field(repr=False)
    validation: tuple[Group, ...] = field(repr=False)
    frozen: FrozenNetworks | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the fit."""
        return self.train[0].tables[0].dtype

    @property
    def n_bytes(self) -> int:
        """Memory of the tables; bytes."""
        return sum(group.n_bytes for group in (*self.train, *self.validation))


def prepare(
    labels: Labels,
    split: Split,
    *,
    basis: Basis | None = None,
    species: Sequence[str] | None = None,
    whitening_floor: float = 1e-8,
    like_maise: bool = False,
    frozen: FrozenNetworks | None = None,
    tables: Sequence[Table] | None = None,
) -> TrainingData:
    """Compute descriptors, their ranges and the whitening.

    Parameters
    ----------
    labels : Labels
        One to three species.
    split : Split
        Rows for training, validation and test; input ranges are taken over all, whitening over training rows.
    basis : Basis, optional
        The standard 51 functions by default, or that of `frozen`.
    species : sequence of str, optional
        Order of the model; by atomic number by default, or that of `frozen`.
    whitening_floor : float
        See :meth:`maise_bridge.network.Whitening.fit`.
    like_maise : bool
        Inputs scaled only, energies relative to nothing, float64: the weights are those of the model file.
    frozen : FrozenNetworks, optional
        Parts of the networks to keep, from :func:`maise_bridge.stratified.freeze_models`; implies float64.
    tables : sequence of (descriptors, derivatives), optional
        From :func:`maise_bridge.objective.compute_tables`, if at hand.

    Raises
    ------
    ValueError
        If there are fewer than two rows to train on, a species is missing among them, or there are more than three.
    """
    if len(split.train) < 2:
        raise ValueError(f"{len(split.train)} rows to train on are too few")
    species = tuple(species or labels.species) if frozen is None else frozen.species
    basis = (basis or standard_basis(51)) if frozen is None else frozen.basis
    dtype = torch.float64 if like_maise or frozen is not None else torch.float32
    if tables is None:
        tables = compute_tables(labels, basis, species)
    rows: list[Table | None] = list(tables)
    whitenings = _whitenings(labels, split, tables, species, like_maise, frozen, whitening_floor)
    references, zeros, above = _energies(labels, split, species)
    if dtype == torch.float64:
        references, zeros = np.zeros_like(references), np.zeros_like(zeros)
    del tables
    groups = [
        tuple(make_groups(labels, part, rows, whitenings, species, dtype=dtype))
        for part in (split.train, split.validation)
    ]
    return TrainingData(
        labels=labels,
        split=split,
        basis=basis,
        species=species,
        whitenings=whitenings,
        references=references,
        zeros=zeros,
        above=_above_category(labels) if like_maise else above,
        train=groups[0],
        validation=groups[1],
        frozen=frozen,
    )


def _whitenings(
    labels: Labels,
    split: Split,
    tables: Sequence[Table],
    species: Sequence[str],
    like_maise: bool,
    frozen: FrozenNetworks | None,
    floor: float,
) -> tuple[Whitening, ...]:
    kinds = [species_indices([atoms], species) for atoms in labels.structures]
    found = []
    for s, symbol in enumerate(species):
        inputs = np.concatenate([tables[row][0][kinds[row] == s] for row in split.train])
        if len(inputs) < 2:
            raise ValueError(f"the training rows hold {len(inputs)} atoms of {symbol}; add structures with {symbol}")
        maximum = np.max([table[0][kind == s].max(0, initial=0) for table, kind in zip(tables, kinds, strict=True)], 0)
        maximum = np.where(maximum > 0, maximum, 1.0)
        if frozen is not None:
            maximum[: frozen.n_first] = frozen.maximum[s]
        if like_maise:
            found.append(Whitening.identity(maximum))
        elif frozen is not None:
            found.append(Whitening.fit_last(inputs, maximum, frozen.n_first, floor=floor))
        else:
            found.append(Whitening.fit(inputs, maximum, floor=floor))
    return tuple(found)


def _energies(labels: Labels, split: Split, species: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Energies per atom of species, of cells made of them, and of rows above the lowest training row.

    Of one species it is the lowest energy of a training row; of several, what fits those rows best.
    """
    counts = np.array(
        [np.bincount(species_indices([atoms], species), minlength=len(species)) for atoms in labels.structures]
    )
    shares, energies = counts / labels.n_atoms[:, None], labels.energies_per_atom
    if len(species) == 1:
        references = energies[split.train].min(keepdims=True)
    else:
        references = np.linalg.lstsq(shares[split.train], energies[split.train], rcond=None)[0]
    above = energies - shares @ references
    return references, counts @ references, above - above[split.train].min()


def _above_category(labels: Labels) -> np.ndarray:
    """Energies above the lowest of each category, as MAISE has it; (n,) in eV/atom."""
    names = np.array(labels.categories)
    lowest = {name: labels.energies_per_atom[names == name].min() for name in set(labels.categories)}
    return labels.energies_per_atom - np.array([lowest[name] for name in labels.categories])
