"""Where a result goes: refused before anything is computed if it cannot be written there."""

from __future__ import annotations

from pathlib import Path


def check_out_file(path: Path, *, overwrite: bool) -> None:
    """Raise ValueError if a file is there, unless `overwrite`, if a folder is, or if its own folder is not."""
    if path.is_dir() or (path.exists() and not overwrite):
        remedy = "is a folder; name a file" if path.is_dir() else "exists; pass --overwrite to replace it"
        raise ValueError(f"{path} {remedy}")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}; make it first")
