"""Crystals from files, checked; and the periodic neighbour list that other stages share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from ase_hvae.errors import StructureError

DATABASE_SUFFIXES = frozenset({".db", ".aselmdb"})


def check_structure(atoms: Atoms, *, label: str = "structure", min_distance: float = 0.5) -> None:
    """Refuse anything that is not a finite, right-handed, fully periodic crystal without overlapping atoms.

    Parameters
    ----------
    atoms : Atoms
        Structure to check; not modified.
    label : str
        Name of the structure in the message, e.g. file and index.
    min_distance : float
        Smallest distance allowed between two atoms, periodic images included, Å.

    Raises
    ------
    StructureError
        With the label, the value and the limit.
    """
    if len(atoms) == 0:
        raise StructureError(f"{label} is empty: it has no atoms")
    if not np.isfinite(atoms.positions).all():
        bad = int(np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))[0])
        raise StructureError(f"{label} has a non-finite position at atom {bad}: {atoms.positions[bad].tolist()}")
    if not np.isfinite(atoms.cell).all():
        raise StructureError(f"{label} has a non-finite cell: {atoms.cell.tolist()}")
    unknown = [int(number) for number in atoms.numbers if not 0 < number < len(chemical_symbols)]
    if unknown:
        raise StructureError(f"{label} has an atomic number {unknown[0]} that names no element")
    if not atoms.pbc.all():
        raise StructureError(
            f"{label} has pbc {atoms.pbc.tolist()}: a crystal is periodic in all three directions; set atoms.pbc = True"
        )
    volume = float(np.linalg.det(atoms.cell))
    if volume < 0:
        raise StructureError(f"{label} has a left-handed cell (det {volume:.4g} Å³); swap two cell vectors")
    if volume < 1e-6 * len(atoms):
        raise StructureError(f"{label} has a cell of zero volume (det {volume:.4g} Å³)")
    if not min_distance > 0:
        return
    shortest = _shortest_distance(atoms)
    if shortest < min_distance:
        raise StructureError(
            f"{label} has two atoms {shortest:.3f} Å apart; at least {min_distance:g} Å is needed between any two"
        )


def min_distance(atoms: Atoms) -> float:
    """Shortest distance between two atoms of a crystal, periodic images of one atom included, in Å."""
    check_structure(atoms, min_distance=0.0)
    return _shortest_distance(atoms)


def neighbor_pairs(atoms: Atoms, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All ordered pairs of atoms of a crystal closer than a cutoff.

    Parameters
    ----------
    atoms : Atoms
        Finite periodic crystal, as :func:`check_structure` accepts.
    cutoff : float
        Largest distance, Å; may exceed the cell.

    Returns
    -------
    first, second : np.ndarray
        Indices of the two atoms, integers, ``(n_pairs,)``; each pair occurs in both orders.
    shifts : np.ndarray
        Cell shifts of the second atom, integers, ``(n_pairs, 3)``.
    distances : np.ndarray
        Å, ``(n_pairs,)``.
    """
    from vesin import NeighborList  # here, because it loads torch when torch is installed

    finder = NeighborList(cutoff=float(cutoff), full_list=True, n_threads=1)
    first, second, shifts, distances = finder.compute(
        points=atoms.positions, box=np.array(atoms.cell), periodic=True, quantities="ijSd"
    )
    return first.astype(int), second.astype(int), shifts.astype(int), distances


def read_structures(path: str | Path, *, index: str | int | slice = ":") -> list[Atoms]:
    """Read and check crystals from a file, an ASE database or a folder of files.

    Parameters
    ----------
    path : str or Path
        Any file that ASE reads (CIF, POSCAR, extended XYZ, ...), an ase.db file, or a folder, whose files are read in
        the order of their names; hidden files and sub-folders are skipped.
    index : str, int or slice
        Which structures of each file, in ASE's notation.

    Returns
    -------
    list of Atoms
        Never empty. ``atoms.info["source"]`` names file and position unless the file says something else.

    Raises
    ------
    StructureError
        If the path does not exist, no file is readable, or a structure is not a crystal; names file and position.
    """
    path = Path(path)
    if not path.exists():
        raise StructureError(f"{path} does not exist; give a structure file, an ase.db file or a folder of them")
    files = sorted(_visible_files(path)) if path.is_dir() else [path]
    if not files:
        raise StructureError(f"folder {path} holds no files")
    structures = []
    for file in files:
        for position, atoms in enumerate(_read_file(file, index)):
            label = f"{file}, structure {position}"
            _check_occupancy(atoms, label)
            check_structure(atoms, label=label)
            atoms.info.setdefault("source", f"{file.name}#{position}")
            structures.append(atoms)
    return structures


def _visible_files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))


def _read_file(file: Path, index: str | int | slice) -> list[Atoms]:
    """Structures of one file; whatever its parser raises becomes a StructureError."""
    import ase.io

    file_format = "db" if file.suffix in DATABASE_SUFFIXES else None
    try:
        found = ase.io.read(str(file), index=index, format=file_format)
    except Exception as error:  # parsers raise anything: KeyError, StopIteration, AssertionError, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StructureError(f"{file} cannot be read as structures (index {index!r}): {reason}") from error
    structures = [found] if isinstance(found, Atoms) else list(found)
    if not structures:
        raise StructureError(f"{file} holds no structure at index {index!r}")
    return structures


def _check_occupancy(atoms: Atoms, label: str) -> None:
    """Refuse disordered crystals: ASE keeps the main species of each site and drops the rest silently."""
    occupancy = atoms.info.get("occupancy")
    if not isinstance(occupancy, dict):
        return
    for site, species in occupancy.items():
        if len(species) > 1 or abs(sum(species.values()) - 1.0) > 1e-6:
            raise StructureError(f"{label} has a partially occupied site {site}: {species}; give an ordered crystal")


def _shortest_distance(atoms: Atoms) -> float:
    """Shortest periodic distance; spheres of that diameter cannot pack denser than fcc, which bounds it."""
    bound = (np.sqrt(2) * np.linalg.det(atoms.cell) / len(atoms)) ** (1 / 3)
    distances = neighbor_pairs(atoms, 1.001 * bound)[3]
    return float(distances.min())
