"""All candidates of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ase_hvae.candidate import Candidate
from ase_hvae.database.rows import Entry, read_row, select_entries, write_row
from ase_hvae.database.stores import SqliteStore, Store

CHUNK = 64  # candidates read at once


class CandidateDatabase:
    """Rows of an ase.db database keyed by ``candidate``; there is one writer.

    Parameters
    ----------
    place : str, Path or Store
        File name of a SQLite database, made when the first candidate is written; or a store.

    Raises
    ------
    RunFolderError
        On reading or writing, if another program holds the database, the disk is full or a server does not answer.
    """

    def __init__(self, place: str | Path | Store) -> None:
        self.store: Store = SqliteStore(Path(place)) if isinstance(place, str | Path) else place
        self._ids: dict[int, int] = {}
        if self.store.exists():
            with self.store.opened() as database:
                rows = database.select(include_data=False, columns=["id", "key_value_pairs"])
                self._ids = {row.get("candidate"): row.id for row in rows}

    def write(self, *candidates: Candidate) -> None:
        """Insert candidates, or replace their rows; all of them or, if that fails, none."""
        self.store.create()
        with self.store.opened() as database:
            ids: dict[int, int] = {}
            for candidate in candidates:
                known = ids.get(candidate.index, self._ids.get(candidate.index))
                ids[candidate.index] = write_row(database, candidate, known)
        self._ids.update(ids)

    def entries(self, **conditions: Any) -> list[Entry]:
        """Short records of the candidates in the order of their index; `conditions` are values of their keys."""
        if not self.store.exists():
            return []
        with self.store.opened() as database:
            return sorted(select_entries(database, **conditions), key=lambda entry: entry.index)

    def iterate(self, indices: Iterable[int]) -> Iterator[Candidate]:
        """Candidates by index, in the order given, a few at a time in memory.

        They are as the database holds them when their turn comes.
        """
        chunk: list[int] = []
        for index in indices:
            chunk.append(index)
            if len(chunk) == CHUNK:
                yield from self._get(chunk)
                chunk = []
        yield from self._get(chunk)

    def read(self) -> list[Candidate]:
        """All candidates in the order of their index."""
        if not self.store.exists():
            return []
        with self.store.opened() as database:
            return sorted((read_row(row) for row in database.select()), key=lambda candidate: candidate.index)

    def _get(self, indices: Sequence[int]) -> list[Candidate]:
        if not indices:
            return []
        with self.store.opened() as database:
            return [read_row(database.get(id=self._ids[index])) for index in indices]
