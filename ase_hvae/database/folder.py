"""The folder of a run: where its files are, who may write them."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ase.io import write

from ase_hvae.candidate import Candidate
from ase_hvae.database.stores import PostgresqlStore, SqliteStore, Store, files_of, said_clearly, without_password
from ase_hvae.errors import RunFolderError

logger = logging.getLogger(__name__)


class RunFolder:
    """Output folder of a run: ``candidates.db``, ``config.toml``, ``summary.json``, ``structures/``, ``log.txt``.

    ``calculator.json`` records the calculator, and programs such as VASP run in folders of ``calculator_runs/``. With
    candidates in PostgreSQL, ``database.json`` says where they are and by which name the run owns them.

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
        names = ("summary.json", "replicas.jsonl", "structures", "calculator.json", "calculator_runs", "database.json")
        databases = [self.database, *sorted(self.path.glob("rerank_*.db"))]
        labels = sorted(self.path.glob("labels_*.extxyz"))
        files = [file for database in databases for file in files_of(database)]
        return [*files, self.config, self.log, *(self.path / name for name in names), *labels]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder, and hold it against other programs until this one leaves or dies.

        Raises
        ------
        RunFolderError
            If another program works in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise RunFolderError(
                    f"another program (process {holder}) works on the run in {self.path}; wait for it, or end it, then "
                    "add --resume"
                ) from error
            except OSError as error:
                logger.warning("%s cannot be locked (%s): see that no other program uses it", self.path, error)
            file.truncate(0)
            file.write(f"{os.getpid()} on {os.uname().nodename}")
            file.flush()
            yield

    @contextmanager
    def opened_store(self, url: str | None) -> Iterator[Store]:
        """Where the candidates are: the file of the folder, or a schema of PostgreSQL, held for this run.

        Parameters
        ----------
        url : str or None
            Of the PostgreSQL database.

        Raises
        ------
        RunFolderError
            If the server cannot be used, or the schema is that of another run.
        """
        if url is None:
            yield SqliteStore(self.database)
            return
        store = PostgresqlStore(url, self._owner(url))
        with store.held():
            store.create()
            yield store

    def _owner(self, url: str) -> str:
        """By which name the run owns its rows in PostgreSQL; made at its beginning."""
        file = self.path / "database.json"
        if not file.exists():
            self._write_json(file.name, {"database": without_password(url), "owner": uuid.uuid4().hex})
        return json.loads(file.read_text(encoding="utf-8"))["owner"]

    def _clear_rows(self, url: str | None) -> None:
        """Remove the rows of an earlier run from PostgreSQL, if it is the database of the new one too."""
        file = self.path / "database.json"
        if not file.exists():
            return
        place = json.loads(file.read_text(encoding="utf-8"))["database"]
        if url is None or without_password(url) != place:
            logger.warning("what candidates the replaced run had in %s stay there", place)
            return
        store = PostgresqlStore(url, self._owner(url))
        with store.held():
            store.clear()

    def clear(self, url: str | None = None) -> None:
        """Remove what an earlier run left, its options first, and nothing else; make the folder.

        Parameters
        ----------
        url : str, optional
            PostgreSQL database of the new run; rows that the earlier one had there are removed.
        """
        self.config.unlink(missing_ok=True)
        self._clear_rows(url)
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
        file = self.path / "replicas.jsonl"
        if not file.exists():
            return {}
        text = file.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # killed while it wrote a line: that replica is done again
            os.truncate(file, len(whole.encode()))
        lines = map(json.loads, whole.splitlines())
        return {line.pop("replica"): line for line in lines}

    def add_finished_replica(self, number: int, counts: Mapping[str, int]) -> None:
        """Record the counts of one more replica, after its candidates are in the database."""
        file = self.path / "replicas.jsonl"
        with said_clearly(str(file)), file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"replica": number, **counts}) + "\n")

    def write_structures(self, candidates: Iterable[Candidate]) -> None:
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
        with said_clearly(str(self.path / name)):
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            temporary.replace(self.path / name)
