"""Candidates in an ase.db database, one row each, and the folder of a run around it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.db.core import Database
from ase.db.row import AtomsRow
from ase.io import write

from ase_hvae.candidate import Candidate
from ase_hvae.errors import RunFolderError

_ARRAYS = ("latent", "target_rdf", "rdf", "frequencies", "elastic_tensor")
_CALCULATED = ("energy", "forces", "stress")
# Free text could read like a number, which ase.db refuses as a key.
_TEXTS = ("failure", "phonon_failure", "child_failure", "elastic_failure")


class CandidateDatabase:
    """Rows of an ase.db database keyed by ``candidate``.

    There is one writer, and SQLite guards its file. ASE's lock file beside it is not used: a run that is killed while
    it writes would leave it behind, and the resumed run would wait for it for ever.

    Parameters
    ----------
    path : str or Path
        File name of the database (SQLite); made when the first candidate is written.

    Raises
    ------
    RunFolderError
        On reading or writing, if another program holds the database or the disk is full.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._ids: dict[int, int] = {}
        if self.path.exists():
            with self._opened() as database:
                self._ids = {row.get("candidate"): row.id for row in database.select(include_data=False)}

    def write(self, candidate: Candidate) -> None:
        """Insert the candidate, or replace its row."""
        pairs, data = _to_row(candidate)
        atoms = candidate.atoms.copy()
        results = {name: getattr(candidate, name) for name in _CALCULATED if getattr(candidate, name) is not None}
        if results:
            atoms.calc = SinglePointCalculator(atoms, **results)
        if not self.path.exists():
            self._create()
        with self._opened() as database:
            if candidate.index in self._ids:
                unset = [spec.name for spec in dataclasses.fields(candidate) if getattr(candidate, spec.name) is None]
                database.update(self._ids[candidate.index], atoms=atoms, delete_keys=unset, data=data, **pairs)
            else:
                self._ids[candidate.index] = database.write(atoms, key_value_pairs=pairs, data=data)

    def read(self) -> list[Candidate]:
        """All candidates in the order of their index."""
        if not self.path.exists():
            return []
        with self._opened() as database:
            return sorted((_from_row(row) for row in database.select()), key=lambda candidate: candidate.index)

    def _create(self) -> None:
        """Make the empty database beside its place and move it there: no reader or killed run meets half of one."""
        partial = self.path.with_name(f".part.{self.path.name}")
        partial.unlink(missing_ok=True)
        with _said_clearly(self.path):
            connect(partial, use_lock_file=False).count()
            partial.replace(self.path)

    @contextmanager
    def _opened(self) -> Iterator[Database]:
        with _said_clearly(self.path):
            yield connect(self.path, use_lock_file=False)


@contextmanager
def _said_clearly(path: Path) -> Iterator[None]:
    """Tell what to do if a file of a run cannot be used."""
    try:
        yield
    except (sqlite3.OperationalError, OSError) as error:
        remedy = "free space, or end the other program that uses it, then add --resume to go on"
        raise RunFolderError(f"cannot use {path}: {error}; {remedy}") from error


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


def _from_row(row: AtomsRow) -> Candidate:
    names = {spec.name for spec in dataclasses.fields(Candidate)} - {"index", "atoms"}
    values = {name: value for name, value in row.key_value_pairs.items() if name in names}
    values.update({name: value for name, value in row.data.items() if name in names})
    values.update({name: row.get(name) for name in _CALCULATED})
    for name in {"stable", "mechanically_stable"} & values.keys():
        values[name] = bool(values[name])
    atoms = row.toatoms()
    atoms.calc = None
    return Candidate(index=row.get("candidate"), atoms=atoms, **values)


class RunFolder:
    """Output folder of a run: ``candidates.db``, ``config.toml``, ``summary.json``, ``structures/``, ``log.txt``.

    ``calculator.json`` records the calculator, and programs such as VASP run in folders of ``calculator_runs/``.

    Parameters
    ----------
    path : str or Path
        The folder; made if missing.
    resume, overwrite : bool
        What to do when it holds a run already; without either it is refused.

    Raises
    ------
    RunFolderError
        If the folder holds a run and neither option is given, if there is nothing to resume, or if the path is a file.
    """

    def __init__(self, path: str | Path, *, resume: bool = False, overwrite: bool = False) -> None:
        self.path = Path(path)
        if resume and overwrite:
            raise RunFolderError("resume and overwrite exclude each other; give one of them")
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"{self.path} is a file; name a folder for the run")
        found = [path.name for path in self._contents() if path.exists()]
        if found and not (resume or overwrite or self.config.exists()):
            raise RunFolderError(
                f"{self.path} holds remains of a run without its options ({', '.join(found)}): it was stopped while it "
                "began or was replaced; add --overwrite, or choose another folder with --out"
            )
        if found and not (resume or overwrite):
            raise RunFolderError(
                f"{self.path} holds a run already ({', '.join(found)}); add --resume to go on with it, --overwrite to "
                "replace it, or choose another folder with --out"
            )
        if resume and not self.config.exists():
            remedy = "add --overwrite instead of --resume" if found else "leave --resume out"
            raise RunFolderError(f"{self.path} holds no run to resume (no {self.config.name}); {remedy}")

    @property
    def database(self) -> Path:
        """File of the candidates."""
        return self.path / "candidates.db"

    @property
    def config(self) -> Path:
        """File of the resolved options."""
        return self.path / "config.toml"

    @property
    def log(self) -> Path:
        """File of log messages."""
        return self.path / "log.txt"

    @property
    def calculator_runs(self) -> Path:
        """Folder in which programs run, one folder per process."""
        return self.path / "calculator_runs"

    def _contents(self) -> list[Path]:
        """All that a run writes."""
        names = ("summary.json", "replicas.json", "structures", "calculator.json", "calculator_runs")
        found = [path for pattern in ("rerank_*.db", "labels_*.extxyz") for path in sorted(self.path.glob(pattern))]
        return [self.database, self.config, self.log, *(self.path / name for name in names), *found]

    def clear(self) -> None:
        """Remove what an earlier run left, its options first, and nothing else; make the folder."""
        self.config.unlink(missing_ok=True)
        for path in self._contents():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``."""
        self._write_json("summary.json", summary)

    def write_calculator(self, record: Mapping[str, Any]) -> None:
        """Write ``calculator.json``: which calculator the run uses, from its start on."""
        self._write_json("calculator.json", record)

    def read_calculator(self) -> dict[str, Any] | None:
        """Record of the calculator of the run; None if it was stopped before it had one.

        Raises
        ------
        RunFolderError
            If the file cannot be read, or candidates are there without it.
        """
        file = self.path / "calculator.json"
        if not file.exists() and not self.database.exists():
            return None
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunFolderError(f"cannot read {file}: {error}; start the run anew with --overwrite") from error

    def finished_replicas(self) -> dict[int, dict[str, int]]:
        """Counts of every replica that reconstruction has finished, by replica number."""
        file = self.path / "replicas.json"
        if not file.exists():
            return {}
        return {int(number): counts for number, counts in json.loads(file.read_text(encoding="utf-8")).items()}

    def write_finished_replicas(self, counts: Mapping[int, Mapping[str, int]]) -> None:
        """Record the counts of the replicas finished so far."""
        self._write_json("replicas.json", counts)

    def write_structures(self, candidates: list[Candidate]) -> None:
        """Write the relaxed crystals as ``structures/<rank>_<candidate>_<space group>.cif``."""
        folder, temporary = self.path / "structures", self.path / ".structures.part"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for place, candidate in enumerate(candidates, start=1):
            write(temporary / f"{place:03d}_{candidate.index:05d}_{candidate.spacegroup}.cif", candidate.atoms)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)

    def _write_json(self, name: str, content: Mapping[Any, Any]) -> None:
        """Replace a file in one step: a killed run leaves the old or the new one, never half of it."""
        temporary = self.path / f".{name}.part"
        with _said_clearly(self.path / name):
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            temporary.replace(self.path / name)
