"""Where the rows of a run are: a file of SQLite, or a schema of a PostgreSQL database."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from ase.db import connect

from ase_hvae.errors import ConfigError, RunFolderError

logger = logging.getLogger(__name__)

RESUME = "add --resume to go on"
SCHEMES = ("postgresql", "postgres")
OWNER = "ase_hvae_run"  # key of the metadata that says to which run folder a schema belongs


def check_url(url: str) -> None:
    """Refuse what is no URL of a PostgreSQL database, or one that cannot be opened here and now.

    Raises
    ------
    ConfigError
        With the form or the package that is wanted.
    RunFolderError
        If the server does not let us in, or there is no such schema.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.path.strip("/"):
        raise ConfigError(
            f"database is {without_password(url)!r}; give a URL such as postgresql://user@host:5432/name, or leave the "
            "option out for a file in the run folder"
        )
    if importlib.util.find_spec("ase_db_backends") is None:
        raise ConfigError(
            f"database {without_password(url)} needs a package that is not installed: pip install ase-db-backends"
        )
    _connected(url)[0].close()


def without_password(url: str) -> str:
    """The URL as it may be shown and stored; libpq takes passwords from PGPASSWORD or ~/.pgpass too."""
    parts = urlsplit(url)
    query = "&".join(pair for pair in parts.query.split("&") if not pair.startswith(("password=", "sslpassword=")))
    user, at, host = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{user.partition(':')[0]}{at}{host}{parts.path}{'?' if query else ''}{query}"


class Store(Protocol):
    """Where rows are."""

    def exists(self) -> bool:
        """Whether there is anything to read."""

    def create(self) -> None:
        """Make it, if it is not there."""

    def opened(self) -> Any:
        """Context of one transaction on the ase.db database: all of it is kept, or nothing."""


class SqliteStore:
    """A file in write-ahead mode, where the file system has it: who reads a run and who writes it do not wait.

    ASE's lock file beside the database is not used: a run that is killed while it writes would leave it behind, and
    the resumed run would wait for it for ever. SQLite guards its file itself.

    Parameters
    ----------
    path : Path
        The file.
    metadata : mapping, optional
        What the file is to say of itself from its beginning; JSON types.
    go_on : str
        How to go on after an error, in words.
    """

    def __init__(self, path: Path, *, metadata: Mapping[str, Any] | None = None, go_on: str = RESUME) -> None:
        self.path = path
        self.metadata = dict(metadata or {})
        self.go_on = go_on

    def exists(self) -> bool:
        """Whether the file is there."""
        return self.path.exists()

    def create(self) -> None:
        """Make the empty database beside its place and move it there: no reader or killed run meets half of one."""
        if self.exists():
            return
        partial = self.path.with_name(f".part.{self.path.name}")
        for leftover in files_of(partial):
            leftover.unlink(missing_ok=True)
        with said_clearly(str(self.path), self.go_on):
            connect(partial, use_lock_file=False).metadata = self.metadata
            _write_ahead(partial)
            partial.replace(self.path)

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """See :class:`Store`."""
        with (
            said_clearly(str(self.path), self.go_on),
            _transaction(connect(self.path, use_lock_file=False)) as database,
        ):
            yield database


class PostgresqlStore:
    """A schema of a PostgreSQL database, through ase-db-backends; it belongs to one run.

    ase.db keeps its tables in the schema that comes first in the search path of the connection. While a run writes,
    it holds an advisory lock, which ends with its process.

    Parameters
    ----------
    url : str
        As libpq takes it, with or without password.
    owner : str
        Identifier of the run.

    Raises
    ------
    RunFolderError
        If the server cannot be reached, or the schema holds other rows.
    """

    def __init__(self, url: str, owner: str) -> None:
        self.url = url
        self.owner = owner
        self.name = without_password(url)
        self._is_claimed = False

    def exists(self) -> bool:
        """A server is there or is an error."""
        return True

    def create(self) -> None:
        """Make the tables, and take hold of them for this run."""
        if self._is_claimed:
            return
        with self.opened() as database:
            n_rows = database.count()
            if n_rows == 0:
                database.metadata = {**database.metadata, OWNER: self.owner}
            elif database.metadata.get(OWNER) != self.owner:
                raise RunFolderError(
                    f"{self.name} holds {n_rows} rows that are not of this run; name another schema with "
                    "?options=-csearch_path%3DNAME (after CREATE SCHEMA NAME), or another database"
                )
        self._is_claimed = True

    def clear(self) -> None:
        """Remove all rows of this run."""
        self.create()
        with self.opened() as database:
            database.delete([row.id for row in database.select(include_data=False, columns=["id"])])

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the schema against other programs.

        Raises
        ------
        RunFolderError
            If another program holds it.
        """
        connection, schema = _connected(self.url)
        with contextlib.closing(connection):
            with said_clearly(self.name):
                cursor = connection.cursor()
                cursor.execute("SELECT pg_try_advisory_lock(hashtext('ase_hvae'), hashtext(%s))", [schema])
                (is_held,) = cursor.fetchone()
                connection.commit()
            if not is_held:
                raise RunFolderError(f"another program works on the run in {self.name}; wait for it, or end it")
            yield

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """See :class:`Store`."""
        with said_clearly(self.name), _transaction(connect(self.url)) as database:
            yield database


def _connected(url: str) -> tuple[Any, str]:
    """A connection, and the schema in which tables will be."""
    import psycopg2

    name = without_password(url)
    with said_clearly(name):
        connection = psycopg2.connect(url)
        cursor = connection.cursor()
        cursor.execute("SELECT current_schema()")
        (schema,) = cursor.fetchone()
        connection.commit()
    if schema is None:
        connection.close()
        raise RunFolderError(f"{name} names no schema that exists; make it with CREATE SCHEMA")
    return connection, schema


def files_of(path: Path) -> list[Path]:
    """The file of a SQLite database and those that SQLite keeps beside it."""
    return [path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))]


def _write_ahead(path: Path) -> None:
    """Switch a database to write-ahead mode, which network file systems may not have."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        except sqlite3.OperationalError as error:
            mode = str(error)
    if mode != "wal":
        logger.info("no write-ahead mode for %s here (%s): those who read and write it wait for each other", path, mode)


@contextmanager
def _transaction(database: Any) -> Iterator[Any]:
    """One connection; closed without a commit after an error, since ase-db-backends has no rollback."""
    database.__enter__()
    try:
        yield database
    except BaseException:
        database.connection.close()
        database.connection = None
        raise
    database.__exit__(None, None, None)


@contextmanager
def said_clearly(name: str, go_on: str = RESUME) -> Iterator[None]:
    """Tell what to do if a file of a run or its database cannot be used."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        remedy = f"free space, or end the other program that uses it, then {go_on}"
        raise RunFolderError(f"cannot use {name}: {error}; {remedy}") from error
    except Exception as error:
        if not _is_from_server(error):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        remedy = f"see that the server runs and lets you in (PGPASSWORD or ~/.pgpass), then {go_on}"
        raise RunFolderError(f"cannot use {name}: {reason}; {remedy}") from error


def _is_from_server(error: Exception) -> bool:
    """Whether the error is one of psycopg2, which is optional."""
    return any(kind.__module__.partition(".")[0] == "psycopg2" for kind in type(error).__mro__)
