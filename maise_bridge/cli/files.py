"""Files of the commands: structures in any format of ASE, each with a name; files that are written whole or not."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ase import Atoms

from maise_bridge.out_file import check_out_file

if TYPE_CHECKING:
    from maise_bridge.calculator import MaiseCalculator

_INDEX = re.compile(r"-?\d+|(-?\d+)?:(-?\d+)?(:-?\d+)?")


@dataclass(frozen=True, eq=False)
class Structure:
    """A structure and where it comes from.

    Attributes
    ----------
    name : str
        File, and ``@index`` within it if it holds several.
    atoms : Atoms
        With the results that the file holds.
    """

    name: str
    atoms: Atoms


def add_structures(parser: argparse.ArgumentParser) -> None:
    """Arguments of a command that computes energies of structures."""
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="structures in any format of ASE; FILE@INDEX picks some, as in ASE")
    add("--index", default=":", help="which structures of files without @INDEX [all]")
    add("--model", metavar="M", help="model file or name of a shipped model [silicon]")
    repulsion_help = "MAISE's core repulsion: on (100 eV), off, or its strength in eV"
    add("--core-repulsion", type=core_repulsion, metavar="on|off|EV", help=repulsion_help)


def core_repulsion(text: str) -> bool | float:
    """Value of ``--core-repulsion``; raises ArgumentTypeError."""
    if text in ("on", "off"):
        return text == "on"
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither on nor off nor a positive energy in eV")
    return value


def make_calculator(options: argparse.Namespace) -> MaiseCalculator:
    """Calculator of ``--model`` and ``--core-repulsion``."""
    from maise_bridge.calculator import MaiseCalculator

    repulsion = True if options.core_repulsion is None else options.core_repulsion
    return MaiseCalculator(options.model or "silicon", core_repulsion=repulsion)


def read_structures(files: Sequence[str], index: str = ":") -> list[Structure]:
    """Read all structures of some files.

    Parameters
    ----------
    files : sequence of str
        Paths in any format of ASE or an OUTCAR of MAISE, with ``@INDEX`` or without.
    index : str
        For paths without.

    Raises
    ------
    ValueError
        If a file cannot be read or holds no such structure; the file is named.
    OSError
        If it does not exist or must not be read.
    """
    if not _INDEX.fullmatch(index):
        raise ValueError(f"--index {index!r}: give a number or a slice, as in 0, -1, : or 2:10:2")
    return [structure for file in files for structure in _read_file(file, index)]


def short_names(structures: Sequence[Structure]) -> list[str]:
    """Names without folders, if they are as clear as with them."""
    names = [structure.name for structure in structures]
    short = [name.rpartition("/")[2] for name in names]
    return short if len(set(short)) == len(set(names)) else names


def _read_file(file: str, index: str) -> list[Structure]:
    path, at, own = file.rpartition("@")
    if at and _INDEX.fullmatch(own) and not Path(file).exists():
        file, index = path, own
    if Path(file).is_dir():
        raise ValueError(f"{file}: is a folder; name the file")
    if not Path(file.partition("@")[0]).exists() and not Path(file).exists():
        raise FileNotFoundError(f"{file}: no such file")
    found = _read_all(file)
    if not found:
        raise ValueError(f"{file}: holds no structure")
    numbers = range(len(found))
    if ":" in index:
        chosen = list(numbers[slice(*(int(word) if word else None for word in index.split(":")))])
    else:
        chosen = [numbers[int(index)]] if -len(found) <= int(index) < len(found) else []
    if not chosen:
        raise ValueError(f"{file}: holds {len(found)} structures, none at @{index}")
    return [Structure(f"{file}@{number}" if len(found) > 1 else file, found[number]) for number in chosen]


def _read_all(file: str) -> list[Atoms]:
    from maise_bridge.structure_files import read_structures
    from maise_bridge.trajectory import is_maise_outcar, read_trajectory

    if Path(file).is_file() and is_maise_outcar(file):
        return read_trajectory(file)
    try:
        return list(read_structures(file))
    except Exception as error:  # ASE's readers raise whatever the text led them to
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the system, with the name of the file
        raise ValueError(f"{file}: ASE cannot read it ({type(error).__name__}: {error})") from error


def is_model_file(path: str | Path) -> bool:
    """Whether a file begins as a MAISE model does: a rule of dashes, then a line in a box."""
    if not Path(path).is_file():
        return False
    with open(path, "rb") as file:
        return re.match(rb"-{20,}\s*\n\|", file.read(200)) is not None


def check_output(path: Path, *, overwrite: bool, n_structures: int | None = None) -> str:
    """Refuse a file that cannot or must not be written, before anything is computed; return ASE's format.

    Raises
    ------
    ValueError
        If it exists, its folder does not, or ASE writes no such format or not so many structures to it; without
        `n_structures` the format does not matter.
    """
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    check_out_file(path, overwrite=overwrite)
    if n_structures is None:
        return ""
    try:
        kind = filetype(str(path), read=False)
    except UnknownFileTypeError:
        kind = ""
    if kind not in ioformats or not ioformats[kind].can_write:
        raise ValueError(
            f"{path}: ASE writes no format {kind or 'for that name'!r}; name it as in out.extxyz or out.cif"
        )
    if ioformats[kind].single and n_structures > 1:
        raise ValueError(f"{path}: {kind} holds one structure, not {n_structures}; name it as in out.extxyz")
    return kind


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file that takes the place of `path` at the end; after an error nothing is left of it.

    Raises
    ------
    OSError
        If the disk refuses; the message names `path`.
    """
    partial = path.with_name(f".partial.{path.name}")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def write_structures(path: Path, kind: str, images: Sequence[Atoms]) -> None:
    """Write structures with their results in a format of ASE, all or nothing.

    Raises
    ------
    ValueError
        If ASE cannot write them in this format.
    OSError
        If the disk refuses.
    """
    from ase.io import write

    with replacing(path) as partial:
        try:
            write(partial, list(images), format=kind)
        except OSError:
            raise
        except Exception as error:  # ASE's writers raise whatever a structure led them to
            raise ValueError(f"{path}: ASE cannot write it as {kind} ({type(error).__name__}: {error})") from error
