"""A candidate as a row of an ase.db database."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db.core import Database
from ase.db.row import AtomsRow

from ase_hvae.candidate import Candidate

_ARRAYS = ("latent", "target_rdf", "rdf", "frequencies", "elastic_tensor")
_CALCULATED = ("energy", "forces", "stress")
# Free text could read like a number, which ase.db refuses as a key.
_TEXTS = ("failure", "phonon_failure", "child_failure", "elastic_failure")
_COLUMNS = ("id", "energy", "numbers", "cell", "key_value_pairs")


@dataclass(frozen=True, slots=True)
class Entry:
    """What orders and selects candidates, without their arrays.

    Attributes
    ----------
    index, replica, depth : int
        As those of the candidate.
    status, stage : str
        As those of the candidate.
    energy_per_atom : float or None
        eV/atom.
    energy_above : float or None
        eV/atom above the reference.
    volume_per_atom : float
        Å³/atom.
    stable : bool
        Whether phonons were computed and are stable.
    """

    index: int
    replica: int
    depth: int
    status: str
    stage: str
    energy_per_atom: float | None
    energy_above: float | None
    volume_per_atom: float
    stable: bool


def select_entries(database: Database, **conditions: Any) -> Iterable[Entry]:
    """Entries of the rows whose keys have the given values."""
    for row in database.select(include_data=False, columns=_COLUMNS, **conditions):
        pairs = row.key_value_pairs
        energy = row.get("energy")
        yield Entry(
            index=pairs["candidate"],
            replica=pairs["replica"],
            depth=pairs["depth"],
            status=pairs["status"],
            stage=pairs["stage"],
            energy_per_atom=None if energy is None else energy / row.natoms,
            energy_above=pairs.get("energy_above"),
            volume_per_atom=row.volume / row.natoms,
            stable=bool(pairs.get("stable", False)),
        )


def write_row(database: Database, candidate: Candidate, row_id: int | None) -> int:
    """Insert the candidate, or replace the row of that id; returns the id."""
    pairs, data = _to_row(candidate)
    atoms = candidate.atoms.copy()
    results = {name: getattr(candidate, name) for name in _CALCULATED if getattr(candidate, name) is not None}
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    if row_id is None:
        return database.write(atoms, key_value_pairs=pairs, data=data)
    unset = [spec.name for spec in dataclasses.fields(candidate) if getattr(candidate, spec.name) is None]
    database.update(row_id, atoms=atoms, delete_keys=unset, data=data, **pairs)
    return row_id


def read_row(row: AtomsRow) -> Candidate:
    """The candidate of a row."""
    names = {spec.name for spec in dataclasses.fields(Candidate)} - {"index", "atoms"}
    values = {name: value for name, value in row.key_value_pairs.items() if name in names}
    values.update({name: value for name, value in row.data.items() if name in names})
    values.update({name: row.get(name) for name in _CALCULATED})
    for name in {"stable", "mechanically_stable"} & values.keys():
        values[name] = bool(values[name])
    atoms: Atoms = row.toatoms()
    atoms.calc = None
    return Candidate(index=row.get("candidate"), atoms=atoms, **values)


def _to_row(candidate: Candidate) -> tuple[dict[str, Any], dict[str, Any]]:
    pairs: dict[str, Any] = {"candidate": candidate.index}
    data: dict[str, Any] = {}
    for spec in dataclasses.fields(candidate):
        value = getattr(candidate, spec.name)
        if spec.name in ("index", "atoms", *_CALCULATED) or value is None:
            continue
        if spec.name in _ARRAYS:
            data[spec.name] = np.asarray(value, dtype=float)
        elif spec.name in _TEXTS:
            data[spec.name] = value
        else:
            pairs[spec.name] = value
    return pairs, data
