"""Labelled structures for training: reading and checking."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError, ReadError

from maise_bridge.depo import Category, read_category, read_depo
from maise_bridge.filters import Filters, physical_rows, recorded_rows
from maise_bridge.fingerprints import Fingerprints
from maise_bridge.structure_files import read_structures

logger = logging.getLogger(__name__)

_SPREAD = 50.0  # eV/atom between the lowest and highest label: beyond it, units are suspect
_LARGEST_FORCE = 200.0  # eV/Å
_SAME = 3e-5  # of fingerprints: coordinates that were rounded to 1e-6 Å or less
_AGREEMENT = 2e-3  # eV/atom: what two labels of one structure with one mesh of k points may differ by
_MESHES = 0.1  # eV/atom: the same, with two meshes
_PROCEDURE = ("kspacing", "small", "convergence", "maxiter", "eigensolver", "mixer", "parallel", "nbands", "txt")


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
    categories : tuple of str
        File of each row, or folder below that of a DEPO tree.
    records : tuple of mapping
        What each row says of its origin, tables flattened with dots: `calculator`, `ecut`, `xc`, `program.gpaw`, ...
    uses : ndarray, shape (n,)
        1 for training and test, 2 for training only, 3 for test only.
    auxiliary : ndarray, shape (n,)
        Whether a row is by another method than the others and to train on only, no relative of others.
    removed : mapping
        How many rows each filter and the search for repeats left out.
    """

    structures: tuple[Atoms, ...]
    energies: np.ndarray
    forces: tuple[np.ndarray, ...]
    stresses: np.ndarray
    tags: tuple[str, ...]
    spacings: np.ndarray
    sources: tuple[str, ...]
    categories: tuple[str, ...]
    records: tuple[Mapping[str, str], ...]
    uses: np.ndarray
    auxiliary: np.ndarray
    removed: Mapping[str, int] = field(default_factory=dict)

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
        columns: dict[str, Any] = {
            name: value[picked] if isinstance(value, np.ndarray) else tuple(value[row] for row in picked)
            for name, value in vars(self).items()
            if name != "removed"
        }
        return replace(self, **columns)


def read_labels(
    paths: str | Path | Iterable[str | Path], *, filters: Filters | None = None, auxiliary: Sequence[str] = ()
) -> Labels:
    """Read labelled structures and check them.

    Crystals that repeat, in whatever cell, orientation and order of atoms, are kept once: of two k spacings the finer
    one, of one k spacing the first, and of an auxiliary row and another the other.

    Parameters
    ----------
    paths : path or several
        Files that ASE reads (extended XYZ, also gzipped) with energies and forces, or DEPO trees of MAISE.
    filters : Filters, optional
        What to leave out; nothing by default.
    auxiliary : sequence of str
        Shell patterns of tags; such rows are of another method, and all of one.

    Returns
    -------
    Labels

    Raises
    ------
    LabelError
        If a file is missing or empty, or a row lacks energy or forces, is not finite, seems to be in other
        units, repeats an earlier structure with another energy by the same mesh of k points, or records another
        program, functional or cutoff than the others; file and index are named. If the filters leave nothing, or
        all rows are auxiliary.
    """
    files = [paths] if isinstance(paths, str | Path) else list(paths)
    rows = [row for path in files for row in _read_file(Path(path))]
    if not rows:
        raise LabelError("no label files given")
    columns = _Row(*map(tuple, zip(*rows, strict=True)))  # type: ignore[arg-type]
    labels = Labels(
        structures=columns.atoms,  # type: ignore[arg-type]
        energies=np.array(columns.energy),
        forces=columns.forces,  # type: ignore[arg-type]
        stresses=np.array(columns.stress),
        tags=columns.tag,  # type: ignore[arg-type]
        spacings=np.array(columns.spacing),
        sources=columns.source,  # type: ignore[arg-type]
        categories=columns.category,  # type: ignore[arg-type]
        records=columns.record,  # type: ignore[arg-type]
        uses=np.ones(len(rows), dtype=np.int64),
        auxiliary=match_tags(columns.tag, auxiliary),
    )
    categories = _read_categories(files)
    filters = filters or Filters()
    labels = _filtered(labels, recorded_rows(labels, filters))
    _check_auxiliary(labels, auxiliary)
    _check_units(labels)
    for group in (labels.auxiliary, ~labels.auxiliary):
        _check_methods(labels.select(np.flatnonzero(group)))
    kept = _without_repeats(labels)
    labels = replace(labels.select(kept), removed={**labels.removed, "repeats": len(labels) - len(kept)})
    labels = _filtered(labels, physical_rows(labels, filters, categories))
    _check_auxiliary(labels, auxiliary)
    uses = [categories.get(name, Category()).use for name in labels.categories]
    return replace(labels, uses=np.array(uses, dtype=np.int64))


def match_tags(tags: Sequence[str], patterns: Sequence[str]) -> np.ndarray:
    """Which tags match one of some shell patterns, (n,)."""
    return np.array([any(fnmatchcase(tag, pattern) for pattern in patterns) for tag in tags], dtype=bool)


class _Row(NamedTuple):
    atoms: Atoms
    energy: float
    forces: np.ndarray
    stress: np.ndarray
    tag: str
    spacing: float
    source: str
    category: str
    record: dict[str, str]


def _kinds(atoms: Atoms) -> set[tuple[int, str]]:
    return set(zip(atoms.numbers.tolist(), atoms.get_chemical_symbols(), strict=True))


def _read_file(path: Path) -> list[_Row]:
    if not path.exists():
        raise LabelError(f"{path}: no such file")
    rows: list[_Row] = []
    try:
        for atoms, source, category in _frames(path):
            rows.append(_row(atoms, source, category))
    except LabelError:
        raise
    except ReadError as error:
        raise LabelError(str(error)) from error
    except Exception as error:  # ASE's readers raise whatever the text led them to
        raise LabelError(f"{path}, structure {len(rows)}: cannot be read ({error})") from error
    if not rows:
        raise LabelError(f"{path}: holds no structure")
    return rows


def _frames(path: Path) -> Iterator[tuple[Atoms, str, str]]:
    """Structure, name and category of each row of a file or tree."""
    if path.is_dir():
        for source, atoms in read_depo(path):
            yield atoms, source, f"{path}/{atoms.info['config_type']}"
    else:
        for index, atoms in enumerate(read_structures(path)):
            yield atoms, f"{path}, structure {index}", str(path)


def _read_categories(files: Iterable[str | Path]) -> dict[str, Category]:
    folders = [folder for path in map(Path, files) if path.is_dir() for folder in path.iterdir() if folder.is_dir()]
    try:
        return {f"{folder.parent}/{folder.name}": read_category(folder) for folder in folders}
    except ReadError as error:
        raise LabelError(str(error)) from error


def _row(atoms: Atoms, source: str, category: str) -> _Row:
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
    info = atoms.info
    bare = Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)
    tag, spacing = str(info.get("config_type", "")), float(info.get("kspacing", np.nan))
    return _Row(bare, energy, forces, stress, tag, spacing, source, category, _record(info))


def _record(info: Mapping[str, Any]) -> dict[str, str]:
    """What a row says of its origin, tables flattened."""
    settings, program = (value if isinstance(value, dict) else {} for value in map(info.get, ("settings", "program")))
    found = {**settings, "program": program}
    found |= {name: info[name] for name in ("config_type", "kspacing") if name in info}
    return dict(_flat(found))


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in sorted(table.items()):
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            yield (
                f"{prefix}{name}",
                f"{value:.10g}" if number else value if isinstance(value, str) else json.dumps(value),
            )


def _filtered(labels: Labels, masks: Sequence[tuple[str, np.ndarray]]) -> Labels:
    """Apply filters one after the other, count what each removes."""
    kept, removed = np.ones(len(labels), dtype=bool), dict(labels.removed)
    for name, mask in masks:
        removed[name] = int((kept & ~mask).sum())
        kept &= mask
    if not kept.any():
        counts = ", ".join(f"{name} {number}" for name, number in removed.items() if number)
        raise LabelError(f"filters leave none of {len(labels)} rows ({counts}); widen them")
    return replace(labels.select(np.flatnonzero(kept)), removed=removed)


def _check_auxiliary(labels: Labels, patterns: Sequence[str]) -> None:
    """Refuse rows none of which is there to be helped, whether none was given or the filters left none."""
    if labels.auxiliary.all():
        raise LabelError(f"all {len(labels)} rows are auxiliary ({', '.join(patterns)}); add the labels that they help")


def _check_methods(labels: Labels) -> None:
    """Refuse rows whose recorded program, functional, cutoff or pseudopotential differ; silent rows are reported."""
    own = ("config_type", *_PROCEDURE)
    methods = [
        tuple((key, value) for key, value in record.items() if key.partition(".")[0] not in own)
        for record in labels.records
    ]
    counts = Counter(method for method in methods if method)
    if len(counts) > 1:
        first, second = (method for method, _ in counts.most_common(2))
        row = methods.index(second)
        differing = sorted(dict(set(first) ^ set(second)))
        said = ", ".join(f"{key} {dict(second).get(key)} against {dict(first).get(key)}" for key in differing)
        raise LabelError(
            f"{labels.sources[row]}: recorded settings differ ({said}; {counts[second]} and {counts[first]} rows); "
            f"energies of two methods cannot be fitted together, choose by --only {differing[0]}=VALUE"
        )
    silent = sum(not method for method in methods)
    if counts and silent:
        logger.warning(
            "%d of %d rows do not record how they were computed; they are taken as the others", silent, len(labels)
        )


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
    seen, chosen = Fingerprints(_SAME), dict[int, int]()
    gaps: list[tuple[float, str]] = []
    for row in map(int, np.argsort(labels.auxiliary, kind="stable")):  # these after all others
        crystal = seen.number(labels.structures[row])
        first = chosen.setdefault(crystal, row)
        if first == row:
            continue
        gap = abs(labels.energies_per_atom[first] - labels.energies_per_atom[row])
        of_one_method = labels.auxiliary[first] == labels.auxiliary[row]
        if of_one_method and gap > _AGREEMENT:
            said = f"{labels.sources[row]}: repeats {labels.sources[first]} with an energy {gap:.4f} eV/atom away"
            if gap > _MESHES or _one_mesh(labels, first, row):
                raise LabelError(said)
            gaps.append((gap, said))
        logger.info("%s repeats %s: one is left out", labels.sources[row], labels.sources[first])
        if of_one_method and labels.spacings[row] < labels.spacings[first]:
            chosen[crystal] = row
    if gaps:
        logger.warning(
            "%d crystals have labels by two meshes of k points, energies more than %g eV/atom apart: of each the finer "
            "is kept, or the first; most differ: %s",
            len(gaps), _AGREEMENT, max(gaps)[1],
        )  # fmt: skip
    return sorted(chosen.values())


def _one_mesh(labels: Labels, one: int, other: int) -> bool:
    """Whether two rows of one crystal have the same mesh of k points: one spacing, or none, in one cell."""
    first, second = labels.structures[one].cell.array, labels.structures[other].cell.array
    spacings = labels.spacings[[one, other]]
    return bool(np.allclose(first, second, atol=1e-4) and (spacings[0] == spacings[1] or np.isnan(spacings).all()))
