"""Structures from any file that ASE reads."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from ase import Atoms
from ase.io import iread
from ase.io.formats import filetype, get_compression, open_with_compression


def read_structures(file: str | Path) -> Iterator[Atoms]:
    """Yield all structures of a file, or of `file@index` in ASE's notation.

    A compressed extended XYZ file is unpacked as a whole first: ASE's reader seeks, which in a packed file starts
    anew from its beginning each time, so that 2,000 structures take 30 s instead of one.
    """
    name = str(file)
    if Path(name).is_file() and get_compression(name)[1] is not None and filetype(name) == "extxyz":
        with open_with_compression(name) as packed:
            text = io.StringIO(packed.read())
        yield from iread(text, ":", format="extxyz")
    else:
        yield from iread(name, ":")
