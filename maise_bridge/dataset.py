"""Labelled structures for training: reading and checking."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.io import iread

logger = logging.getLogger(__name__)

_SPREAD = 50.0  # eV/atom between the lowest and highest label: beyond it, units are suspect
_LARGEST_FORCE = 200.0  # eV/Å
_AGREEMENT = 2e-3  # eV/atom: what two labels of one structure at one k spacing may differ by


class LabelError(ValueError):
    """Labels are missing, not finite, contradict each other or look like other units; the message names the row."""


@dataclass(frozen=True, eq=False)
class Labels:
    """Structures with energies, forces and, where known, stresses.

    Attributes
    ----------
    structures : tuple of Atoms
        Without calculators.
    energies : ndarray, shape (n,)
        Per cell; eV.
    forces : tuple of ndarray, shapes (n_atoms, 3)
        eV/Å.
    stresses : ndarray, shape (n, 6)
        ASE's order and sign, NaN where not labelled; eV/Å³.
    tags : tuple of str
        `config_type` of each row, or an empty string.
    spacings : ndarray, shape (n,)
        `kspacing` of each row or NaN; 1/Å.
    sources : tuple of str
        File and index of each row.
    """

    structures: tuple[Atoms, ...]
    energies: np.ndarray
    forces: tuple[np.ndarray, ...]
    stresses: np.ndarray
    tags: tuple[str, ...]
    spacings: np.ndarray
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.structures)

    @property
    def n_atoms(self) -> np.ndarray:
        """Atoms of each structure, (n,)."""
        return np.array([len(atoms) for atoms in self.structures], dtype=np.int64)

    @property
    def energies_per_atom(self) -> np.ndarray:
        """Energies per atom, (n,); eV."""
        return self.energies / self.n_atoms

    @property
    def species(self) -> tuple[str, ...]:
        """Chemical symbols that occur, in order of atomic number."""
        numbers = {int(number): symbol for atoms in self.structures for number, symbol in _kinds(atoms)}
        return tuple(numbers[number] for number in sorted(numbers))

    def select(self, rows: Sequence[int] | np.ndarray) -> Labels:
        """Return some rows in the order given."""
        picked = [int(row) for row in rows]
        return Labels(
            structures=tuple(self.structures[row] for row in picked),
            energies=self.energies[picked],
            forces=tuple(self.forces[row] for row in picked),
            stresses=self.stresses[picked],
            tags=tuple(self.tags[row] for row in picked),
            spacings=self.spacings[picked],
            sources=tuple(self.sources[row] for row in picked),
        )


def read_labels(paths: str | Path | Iterable[str | Path]) -> Labels:
    """Read labelled structures and check them.

    Repeated structures are kept once: of two k spacings the finer one, of one k spacing the first.

    Parameters
    ----------
    paths : path or several
        Files that ASE reads (extended XYZ, also gzipped) with energies and forces.

    Returns
    -------
    Labels

    Raises
    ------
    LabelError
        If a file is missing or empty, or a row lacks energy or forces, is not finite, seems to be in other
        units, or repeats an earlier structure with another energy; file and index are named.
    """
    files = [paths] if isinstance(paths, str | Path) else list(paths)
    rows = [row for path in files for row in _read_file(Path(path))]
    if not rows:
        raise LabelError("no label files given")
    labels = Labels(
        structures=tuple(row[0] for row in rows),
        energies=np.array([row[1] for row in rows]),
        forces=tuple(row[2] for row in rows),
        stresses=np.array([row[3] for row in rows]),
        tags=tuple(row[4] for row in rows),
        spacings=np.array([row[5] for row in rows]),
        sources=tuple(row[6] for row in rows),
    )
    _check_units(labels)
    return labels.select(_without_repeats(labels))


def _kinds(atoms: Atoms) -> set[tuple[int, str]]:
    return set(zip(atoms.numbers.tolist(), atoms.get_chemical_symbols(), strict=True))


def _read_file(path: Path) -> list[tuple[Atoms, float, np.ndarray, np.ndarray, str, float, str]]:
    if not path.is_file():
        raise LabelError(f"{path}: no such file")
    rows: list[tuple[Atoms, float, np.ndarray, np.ndarray, str, float, str]] = []
    try:
        for index, atoms in enumerate(iread(path, ":")):
            rows.append(_row(atoms, f"{path}, structure {index}"))
    except LabelError:
        raise
    except Exception as error:  # ASE's readers raise whatever the text led them to
        raise LabelError(f"{path}, structure {len(rows)}: cannot be read ({error})") from error
    if not rows:
        raise LabelError(f"{path}: holds no structure")
    return rows


def _row(atoms: Atoms, source: str) -> tuple[Atoms, float, np.ndarray, np.ndarray, str, float, str]:
    if len(atoms) == 0:
        raise LabelError(f"{source}: has no atoms")
    values = {}
    for name, get in (("energy", atoms.get_potential_energy), ("forces", atoms.get_forces)):
        try:
            values[name] = get()
        except (RuntimeError, PropertyNotImplementedError):
            raise LabelError(f"{source}: has no {name}; label it, or leave it out") from None
    try:
        stress = np.asarray(atoms.get_stress(), dtype=float)
    except (RuntimeError, PropertyNotImplementedError, ValueError):
        stress = np.full(6, np.nan)
    energy, forces = float(values["energy"]), np.asarray(values["forces"], dtype=float)
    for name, array in (("positions", atoms.positions), ("cell", atoms.cell.array), ("energy", energy)):
        if not np.all(np.isfinite(array)):
            raise LabelError(f"{source}: {name} not finite")
    if not np.all(np.isfinite(forces)):
        raise LabelError(f"{source}: forces not finite")
    if not atoms.pbc.all() or atoms.get_volume() <= 0:
        raise LabelError(f"{source}: not periodic in three dimensions; crystals are needed")
    if np.isinf(stress).any():
        raise LabelError(f"{source}: stress not finite")
    tag = str(atoms.info.get("config_type", ""))
    bare = Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)
    return bare, energy, forces, stress, tag, float(atoms.info.get("kspacing", np.nan)), source


def _check_units(labels: Labels) -> None:
    energies = labels.energies_per_atom
    if len(labels.species) == 1 and np.ptp(energies) > _SPREAD:
        row = int(np.argmax(np.abs(energies - np.median(energies))))
        raise LabelError(
            f"{labels.sources[row]}: energy {energies[row]:.3f} eV/atom in a set that spans {np.ptp(energies):.1f} "
            f"(limit {_SPREAD:g}); are units or references mixed?"
        )
    largest = [float(np.abs(forces).max()) for forces in labels.forces]
    row = int(np.argmax(largest))
    if largest[row] > _LARGEST_FORCE:
        raise LabelError(
            f"{labels.sources[row]}: force {largest[row]:.1f} eV/Å (limit {_LARGEST_FORCE:g}); are units mixed, or do "
            "atoms overlap?"
        )


def _without_repeats(labels: Labels) -> list[int]:
    """Rows to keep; raises on contradictions."""
    seen: dict[bytes, int] = {}
    for row, atoms in enumerate(labels.structures):
        cell, places = np.round(atoms.cell.array, 4), np.round(atoms.get_scaled_positions(), 4) % 1.0
        key = (cell + 0.0).tobytes() + (places + 0.0).tobytes() + atoms.numbers.tobytes()
        first = seen.setdefault(key, row)
        if first == row:
            continue
        same = labels.spacings[first] == labels.spacings[row] or np.isnan(labels.spacings[[first, row]]).all()
        gap = abs(labels.energies_per_atom[first] - labels.energies_per_atom[row])
        if same and gap > _AGREEMENT:
            raise LabelError(
                f"{labels.sources[row]}: repeats {labels.sources[first]} with an energy {gap:.4f} eV/atom away"
            )
        logger.info("%s repeats %s: one is left out", labels.sources[row], labels.sources[first])
        if labels.spacings[row] < labels.spacings[first]:
            seen[key] = row
    return sorted(seen.values())
