"""MAISE's trees of labelled structures (DEPO): ``CATEGORY/.../POSCAR.0`` with ``dat.dat`` beside it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from ase.calculators.calculator import ReadError
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read

from maise_bridge.basis import LineReader
from maise_bridge.poscar import species_order, write_poscar

if TYPE_CHECKING:
    from maise_bridge.dataset import Labels

KILOBAR = 1602.176565  # per eV/Å³, as MAISE has it
_TO_ASE = [0, 1, 2, 4, 5, 3]  # from xx yy zz xy yz zx
_TO_MAISE = [0, 1, 2, 5, 3, 4]
_RULE = " " + 83 * "-"
_USES = (1, 2, 3, 4)


@dataclass(frozen=True)
class Category:
    """What the file `tag` of a first-level folder says; without one, the defaults.

    Attributes
    ----------
    use : int
        1 for training and test, 2 for training only, 3 for test only, 4 to leave out.
    filtered : bool
        Whether filters apply.
    ecut, emax, fmax : float
        Filters of this category, see :class:`maise_bridge.filters.Filters`; 0 for those of all.
    """

    use: int = 1
    filtered: bool = True
    ecut: float = 0.0
    emax: float = 0.0
    fmax: float = 0.0


def is_depo(folder: str | Path) -> bool:
    """Whether a folder holds a tree of MAISE."""
    return next(Path(folder).glob("*/**/POSCAR.0"), None) is not None


def read_category(folder: Path) -> Category:
    """Read the file `tag` of a category; raises ReadError naming file and line."""
    path = folder / "tag"
    if not path.is_file():
        return Category()
    reader = LineReader(path.read_text(encoding="utf-8", errors="replace"), str(path), 1)
    values: list[float] = []
    while reader.position < len(reader.lines) and len(values) < 4:
        words = reader.next("a number").split()
        if words:
            values.append(_float(reader, words[0], "a number"))
    values += [0.0] * (4 - len(values))
    if abs(values[0]) not in _USES or min(values[1:]) < 0:
        raise ReadError(f"{path}: use {values[0]:g}, limits {values[1:]}: expected 1 to 4, and numbers from 0")
    return Category(abs(int(values[0])), values[0] > 0, *values[1:])


def read_depo(folder: str | Path) -> list[tuple[str, Atoms]]:
    """Read a tree in MAISE's order: categories, and the paths within each, sorted.

    Returns
    -------
    list of (str, Atoms)
        Path of ``POSCAR.0``, and the structure with its results; ``info["config_type"]`` is the category.

    Raises
    ------
    ReadError
        If the tree is empty or a file is missing or damaged; file and line are named.
    """
    rows = []
    for category in sorted(path for path in Path(folder).iterdir() if path.is_dir()):
        for poscar in sorted(category.rglob("POSCAR.0")):
            try:
                atoms: Atoms = read(poscar, format="vasp")  # type: ignore[assignment]
            except Exception as error:  # ASE's reader raises whatever the text led it to
                raise ReadError(f"{poscar}: cannot be read as a POSCAR ({error})") from error
            atoms.set_constraint()
            atoms.calc = SinglePointCalculator(atoms, **_read_results(poscar.with_name("dat.dat"), len(atoms)))
            atoms.info = {"config_type": category.name}
            rows.append((str(poscar), atoms))
    if not rows:
        raise ReadError(f"{folder}: holds no CATEGORY/.../POSCAR.0")
    return rows


def write_depo(labels: Labels, folder: str | Path, species: Sequence[str] | None = None) -> Counter[str]:
    """Write labels as a tree of MAISE, a category for each tag.

    Parameters
    ----------
    labels : Labels
    folder : path
        New or empty.
    species : sequence of str, optional
        Order in which a structure's species follow each other, TSPC; the labels' own by default.

    Returns
    -------
    Counter
        Structures of each category.

    Raises
    ------
    ValueError
        If the folder holds something or `species` lacks an element.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; name a new folder")
    counts: Counter[str] = Counter()
    species = species or labels.species
    for row, atoms in enumerate(labels.structures):
        category = re.sub(r"[^\w.+-]+", "_", labels.tags[row]) or "all"
        place = folder / category / f"{counts[category]:06d}"
        place.mkdir(parents=True)
        counts[category] += 1
        write_poscar(atoms, place / "POSCAR.0", species)
        order = species_order(atoms, species)
        text = _results_text(
            atoms.positions[order], labels.energies[row], labels.forces[row][order], labels.stresses[row]
        )
        (place / "dat.dat").write_text(text, encoding="utf-8", newline="\n")
    return counts


def _read_results(path: Path, n_atoms: int) -> dict[str, float | np.ndarray]:
    if not path.is_file():
        raise ReadError(f"{path}: no such file; each POSCAR.0 needs its dat.dat")
    reader = LineReader(path.read_text(encoding="utf-8", errors="replace"), str(path), 1)
    expected = "the energy of the cell in eV"
    words = reader.next(expected).split()
    results: dict[str, float | np.ndarray] = {"energy": _float(reader, words[0] if words else "", expected)}
    expected = "'in kB' with six stresses, or POSITION"
    line = reader.next(expected)
    if line.split()[:2] == ["in", "kB"]:
        stress = [_float(reader, word, expected) for word in line.split()[2:]]
        if len(stress) != 6:
            raise reader.error(expected)
        results["stress"] = -np.array(stress)[_TO_ASE] / KILOBAR
        line = reader.next("POSITION")
    if not line.strip().startswith("PO"):
        raise reader.error("POSITION")
    reader.next("a rule of dashes")
    expected = f"x y z fx fy fz of {n_atoms} atoms"
    forces = []
    for _ in range(n_atoms):
        words = reader.next(expected).split()
        if len(words) != 6:
            raise reader.error(expected)
        forces.append([_float(reader, word, expected) for word in words[3:]])
    if not reader.next("a rule of dashes").strip().startswith("--"):
        raise reader.error(f"a rule of dashes after {n_atoms} atoms")
    results["forces"] = np.array(forces)
    return results


def _float(reader: LineReader, word: str, expected: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise reader.error(expected) from None


def _results_text(positions: np.ndarray, energy: float, forces: np.ndarray, stress: np.ndarray) -> str:
    lines = [f"{energy:.12f}"]
    if np.isfinite(stress).all():
        lines.append("  in kB " + " ".join(f"{value:16.8f}" for value in -KILOBAR * stress[_TO_MAISE]))
    lines += [" POSITION                                       TOTAL-FORCE (eV/Angst)", _RULE]
    lines += [
        " ".join(f"{value:18.12f}" for value in (*place, *force))
        for place, force in zip(positions, forces, strict=True)
    ]
    drift = " ".join(f"{value:16.9f}" for value in forces.sum(0))
    return "\n".join([*lines, _RULE, f"    total drift: {drift}"]) + "\n"
