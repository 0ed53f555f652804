"""Candidates in an ase.db database, a file or PostgreSQL, one row each, and the folder of a run around it."""

from ase_hvae.database.candidates import CandidateDatabase
from ase_hvae.database.folder import RunFolder
from ase_hvae.database.rows import Entry
from ase_hvae.database.stores import SqliteStore, check_url, files_of, said_clearly, without_password

__all__ = [
    "CandidateDatabase",
    "Entry",
    "RunFolder",
    "SqliteStore",
    "check_url",
    "files_of",
    "said_clearly",
    "without_password",
]
