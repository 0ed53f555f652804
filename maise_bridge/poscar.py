"""POSCAR and CONTCAR files as MAISE wants them: species in model order, direct coordinates, 16 decimals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers

from maise_bridge.basis import LineReader


def species_order(atoms: Atoms, species: Sequence[str]) -> np.ndarray:
    """Return the index in `atoms` of each row of a POSCAR, shape (n_atoms,), sorted by the order of `species`.

    Raises
    ------
    ValueError
        If `species` lacks an element of the structure.
    """
    missing = sorted(set(atoms.symbols) - set(species))
    if missing:
        raise ValueError(f"structure has {', '.join(missing)}; the species are {', '.join(species)}")
    ranks = [species.index(symbol) for symbol in atoms.symbols]
    return np.argsort(ranks, kind="stable")


def format_poscar(atoms: Atoms, species: Sequence[str], *, comment: str = "") -> str:
    """Return the text of a POSCAR.

    Parameters
    ----------
    atoms : Atoms
        Structure with three cell vectors; positions are wrapped into the cell.
    species : sequence of str
        Order in which the elements follow each other.
    comment : str
        First line; the chemical formula by default.

    Raises
    ------
    ValueError
        If the cell is flat, a number is not finite, or `species` lacks an element.
    """
    cell = atoms.cell.array
    if not (np.isfinite(cell).all() and np.isfinite(atoms.positions).all() and len(atoms)):
        raise ValueError(f"{len(atoms)} atoms: the structure is empty, or a position or cell is not finite")
    if atoms.cell.rank < 3 or not abs(np.linalg.det(cell)) > 0:
        raise ValueError(f"cell {cell.tolist()} does not span space; a POSCAR needs three cell vectors")
    order = species_order(atoms, species)
    scaled = np.linalg.solve(cell.T, atoms.positions.T).T % 1.0 % 1.0  # a second time: -1e-20 % 1 is 1
    present = [symbol for symbol in species if symbol in set(atoms.symbols)]
    counts = [int((atoms.symbols == symbol).sum()) for symbol in present]
    lines = [(comment or atoms.get_chemical_formula())[:80], "1.0"]
    lines += [" ".join(f"{x:24.16f}" for x in row) for row in cell]
    lines += [" ".join(present), " ".join(map(str, counts)), "direct"]
    lines += [" ".join(f"{x:20.16f}" for x in row) for row in scaled[order]]
    return "\n".join(lines) + "\n"


def write_poscar(atoms: Atoms, path: str | Path, species: Sequence[str], *, comment: str = "") -> None:
    """Write the text of :func:`format_poscar` to a file. Raises ValueError before anything is written."""
    Path(path).write_text(format_poscar(atoms, species, comment=comment), encoding="utf-8", newline="\n")


def read_poscar(path: str | Path) -> Atoms:
    """Read a POSCAR or CONTCAR of MAISE: scale, cell, species, counts, direct coordinates.

    Returns
    -------
    Atoms
        Periodic in three directions, whatever the run was.

    Raises
    ------
    ReadError
        If the text is truncated or malformed, or coordinates are not direct; the message names file and line.
    """
    reader = LineReader(Path(path).read_text(encoding="utf-8", errors="replace"), str(path), 1)
    reader.next("a comment")
    scale = _floats(reader, 1, "a positive scale")[0]
    if not scale > 0:
        raise reader.error("a positive scale")
    cell = scale * np.array([_floats(reader, 3, "a cell vector (three numbers)") for _ in range(3)])
    symbols = reader.next("chemical symbols").split()
    if not symbols or any(symbol not in atomic_numbers for symbol in symbols):
        raise reader.error("chemical symbols")
    words = reader.next("one count per species").split()
    if len(words) != len(symbols) or not all(word.isdigit() for word in words):
        raise reader.error("one count per species")
    if not reader.next("'direct'").strip().lower().startswith("d"):
        raise reader.error("'direct' (other coordinates are not supported)")
    numbers = [atomic_numbers[symbol] for symbol, word in zip(symbols, words, strict=True) for _ in range(int(word))]
    scaled = [_floats(reader, 3, "coordinates (three numbers)") for _ in numbers]
    return Atoms(numbers, cell=cell, scaled_positions=np.reshape(scaled, (-1, 3)), pbc=True)


def _floats(reader: LineReader, count: int, expected: str) -> list[float]:
    words = reader.next(expected).split()[:count]
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise reader.error(expected) from None
    if len(values) < count or not np.isfinite(values).all():
        raise reader.error(expected)
    return values
