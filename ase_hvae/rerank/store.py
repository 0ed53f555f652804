"""Results of a rerank: a database of its own in the run folder, and the labels that follow from it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db.row import AtomsRow
from ase.io import write

from ase_hvae.calculators import CalculatorRecord
from ase_hvae.calculators.labels import label
from ase_hvae.config import differences
from ase_hvae.database import SqliteStore, said_clearly
from ase_hvae.errors import ConfigError

_TEXTS = ("became", "failure", "name")  # free text could read like a number, which ase.db refuses as a key


@dataclass(frozen=True, eq=False)
class Reranked:
    """A candidate, or the reference crystal, by a second calculator.

    Attributes
    ----------
    candidate : int or None
        Its number in the run; None for the reference.
    name : str
        In words.
    start : Atoms
        The minimum of the run's calculator, whose forces (eV/Å) its calculator holds.
    energy_above_run : float
        Enthalpy above the reference by the run's calculator; eV/atom.
    single_point, relaxed : Atoms or None
        As for :class:`ase_hvae.rerank.opinion.Opinion`, by the second calculator.
    energy_above, energy_above_single_point : float or None
        Enthalpy above the reference by the second calculator, of the final crystals (relaxed, or of the single points
        if there are no others) and at the minima of the run's calculator; eV/atom.
    volume_change : float or None
        Relative change of the volume by relaxation.
    spacegroup_run, spacegroup : int or None
        International number before and after.
    became : str or None
        ``same`` if it stayed the same crystal, else the candidate or known crystal that it is now, or ``new``.
    n_steps : int
        Optimizer steps.
    failure : str or None
        Why there is no energy.
    """

    candidate: int | None
    name: str
    start: Atoms
    energy_above_run: float
    single_point: Atoms | None = None
    relaxed: Atoms | None = None
    energy_above: float | None = None
    energy_above_single_point: float | None = None
    volume_change: float | None = None
    spacegroup_run: int | None = None
    spacegroup: int | None = None
    became: str | None = None
    n_steps: int = 0
    failure: str | None = None


GO_ON = "give the same line again"
_STRUCTURES = ("start", "single_point", "relaxed")
_COLUMNS = tuple(spec.name for spec in dataclasses.fields(Reranked) if spec.name not in (*_STRUCTURES, *_TEXTS))


def file_stem(calculator: str, model: str) -> str:
    """Part of file names that tells calculators and models apart; only letters, digits, dots and dashes of them."""
    name = (
        calculator if model == "silicon" or not calculator.startswith("maise") else f"{calculator}_{Path(model).name}"
    )
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name)


class RerankDatabase:
    """Rows of an ase.db database, one for the reference and one for each candidate; written one by one.

    Parameters
    ----------
    path : Path
        File of the database (SQLite); made with the first row.
    settings : mapping
        What decides about the numbers; JSON types.

    Raises
    ------
    ConfigError
        If the file holds results of other settings.
    RunFolderError
        If the file cannot be read or written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.settings = json.loads(json.dumps(settings))
        self._store = SqliteStore(path, metadata={"settings": self.settings}, go_on=GO_ON)
        if not self._store.exists():
            return
        with self._store.opened() as database:
            before = database.metadata.get("settings")
        if before is None:
            raise ConfigError(f"{path} was not written by rerank; move it away, or add --overwrite to replace it")
        changed = list(differences(before, self.settings))
        if changed:
            raise ConfigError(
                f"{path} holds results of other settings: {'; '.join(changed)}; bring those back, or add --overwrite "
                "to begin anew"
            )

    def write(self, row: Reranked) -> None:
        """Insert a row, or replace the one of the same candidate."""
        found = next(atoms for atoms in (row.relaxed, row.single_point, row.start) if atoms is not None)
        pairs = {name: value for name in _COLUMNS if (value := getattr(row, name)) is not None}
        pairs["role"] = "reference" if row.candidate is None else "candidate"
        data: dict[str, Any] = {name: value for name in _TEXTS if (value := getattr(row, name)) is not None}
        data |= {name: _to_data(getattr(row, name)) for name in _STRUCTURES if getattr(row, name) is not None}
        self._store.create()
        with self._store.opened() as database:
            key = {"role": "reference"} if row.candidate is None else {"candidate": row.candidate}
            before = [old.id for old in database.select(include_data=False, **key)]
            database.write(found, key_value_pairs=pairs, data=data, id=before[0] if before else None)

    def read(self) -> dict[int | None, Reranked]:
        """Rows by number of the candidate; None is the reference."""
        if not self._store.exists():
            return {}
        with self._store.opened() as database:
            rows = [_from_row(row) for row in database.select()]
        return {row.candidate: row for row in rows}


def write_labels(rows: Sequence[Reranked], record: CalculatorRecord, path: Path) -> None:
    """Write the single points and the minima as labels, in one step; the file follows from the database.

    Parameters
    ----------
    rows : sequence of Reranked
        Those without a single point have no label.
    record : CalculatorRecord
        Of the second calculator.
    path : Path
        Extended XYZ.
    """
    labels = []
    for row in rows:
        tag = "rerank_reference" if row.candidate is None else f"rerank_{row.candidate}"
        structures = [row.single_point] if row.n_steps == 0 else [row.single_point, row.relaxed]
        labels += [label(atoms, record, config_type=tag) for atoms in structures if atoms is not None]
    if not labels:
        return
    partial = path.with_name(f".part.{path.name}")
    with said_clearly(str(path), GO_ON):
        write(partial, labels, format="extxyz")
        partial.replace(path)


def _to_data(atoms: Atoms) -> dict[str, Any]:
    results = {} if atoms.calc is None else atoms.calc.results
    return {
        "numbers": atoms.numbers,
        "positions": atoms.positions,
        "cell": atoms.cell.array,
        "results": {name: results[name] for name in ("energy", "forces", "stress") if name in results},
    }


def _from_data(data: Mapping[str, Any]) -> Atoms:
    atoms = Atoms(data["numbers"], positions=data["positions"], cell=data["cell"], pbc=True)
    if data["results"]:
        results = {name: value if name == "energy" else np.array(value) for name, value in data["results"].items()}
        atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def _from_row(row: AtomsRow) -> Reranked:
    values: dict[str, Any] = {name: row.key_value_pairs.get(name) for name in _COLUMNS}
    values |= {name: row.data.get(name) for name in _TEXTS}
    values |= {name: _from_data(row.data[name]) if name in row.data else None for name in _STRUCTURES}
    return Reranked(**values)
