"""The folder of one run of `maise`: inputs written exactly, results read only if the run ended well."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, CalculatorSetupError, ReadError

from maise_bridge import outputs
from maise_bridge.neighbors import neighbor_list
from maise_bridge.poscar import format_poscar, read_poscar
from maise_bridge.setup_file import Value, format_setup

EXACT = "exact_forces"
_ORDER = "ase-sort.dat"
_RESULTS = ("OUTCAR", "OSZICAR", "CONTCAR", "stdout.txt", "stderr.txt", "log.out", "POSCAR", "model", _ORDER)
_BOX = 12.0  # empty space around a cluster, Å
_CAUSES = (
    (
        "Increase 'Max number of nearest neighbors'",
        "an atom has as many neighbours as MMAX allows; pass a larger mmax, or look for an exploded structure",
    ),
    ("ERROR opening model file|ERROR reading|'basis' file format", "MAISE cannot read the file 'model'"),
    ("Cell is already relative", "MAISE found no structure: POSCAR is missing or empty"),
    (r"species \d+ in POSCAR is not among", "the model does not cover a species of POSCAR; pass another model"),
    ("not ordered by species", "the species of POSCAR are not in the order of the model's"),
    ("specify NDIM|RLXT not specified|valid value for MINT", "a tag of the file 'setup' is missing or invalid"),
    ("provide setup or use FLAGS", "MAISE found no file 'setup'"),
    (
        "distances are too short",
        "atoms are closer than MAISE accepts; move them apart, or pass shortest_distance=0 to accept any distance",
    ),
    ("Try a different MINT", "MAISE's minimiser failed; pass another minimizer"),
)


def clear(directory: Path) -> None:
    """Remove what an earlier run left, so that it can never be taken for the next one's."""
    if (directory / EXACT).is_dir():
        clear(directory / EXACT)
        (directory / EXACT / "setup").unlink(missing_ok=True)
        (directory / EXACT).rmdir()
    for name in _RESULTS:
        (directory / name).unlink(missing_ok=True)


def load_model(model: str | Path) -> tuple[Path, tuple[str, ...], float]:
    """Return path, species and cutoff (Å) of a model. Raises CalculatorSetupError if it is missing or damaged."""
    from maise_bridge.calculator import find_model  # imports torch

    path = find_model(model)
    stat = path.stat()
    return path, *_read_model(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=8)
def _read_model(path: Path, _time: int, _size: int) -> tuple[tuple[str, ...], float]:
    from maise_bridge.model_file import read_model

    try:
        model = read_model(path)
    except ReadError as error:
        raise CalculatorSetupError(f"the model cannot be used: {error}") from error
    return tuple(model.species), float(model.cutoff)


def setup_tags(atoms: Atoms, parameters: Mapping[str, Any], cutoff: float) -> dict[str, Value]:
    """Tags of a run; raises CalculatorSetupError or CalculationFailed if there can be no such run."""
    if len(atoms) == 0 or not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
        raise CalculationFailed(f"{len(atoms)} atoms: the structure is empty, or a position or cell is not finite")
    if atoms.pbc.any() and not atoms.pbc.all():
        remedy = "use MaiseCalculator, or a periodic cell with a vacuum and pbc=True"
        raise CalculatorSetupError(f"pbc is {atoms.pbc.tolist()}: `maise` runs crystals and clusters here; {remedy}")
    if atoms.pbc.all() and atoms.cell.rank < 3:
        raise CalculatorSetupError("pbc is True in three directions, but the cell has less than three vectors")
    relaxation = parameters.get("relaxation")
    mmax = parameters.get("mmax")
    if mmax is None:
        bonds = neighbor_list([atoms], cutoff + 1e-6)
        near = np.linalg.norm(bonds.vectors, axis=1) <= bonds.cutoff
        most = int(np.bincount(bonds.centre[near], minlength=1).max())
        mmax = 2 * most + 50 if relaxation else most + 10  # a relaxation may compress the cell on its way
    repulsion = parameters.get("core_repulsion", True)
    tags: dict[str, Value] = {
        "JOBT": 20,
        "NPAR": parameters.get("threads", 1),
        "NDIM": 3 if atoms.pbc.all() else 0,
        "MMAX": mmax,
        "UREP": 100.0 if repulsion is True else float(repulsion),
        "FRAC": float(parameters.get("shortest_distance", 1.0)),
        "COUT": 12,
        **(relaxation or {}),
    }
    try:
        format_setup(tags)
    except ValueError as error:
        raise CalculatorSetupError(str(error)) from error
    return tags


def boxed(atoms: Atoms) -> Atoms:
    """Copy that a POSCAR can hold: a cluster goes to the middle of a large box, a crystal stays."""
    atoms = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    if not atoms.pbc.any():
        atoms.cell = np.diag(np.ptp(atoms.positions, axis=0) + _BOX)
        middle = 0.5 * (atoms.positions.min(axis=0) + atoms.positions.max(axis=0))
        atoms.positions += 0.5 * atoms.cell.lengths() - middle
    return atoms


def away_from_faces(atoms: Atoms) -> Atoms:
    """Copy shifted so that the faces of the cell lie in the widest gaps; atoms on faces spoil MAISE's force test."""
    atoms = atoms.copy()
    scaled = np.linalg.solve(atoms.cell.array.T, atoms.positions.T).T % 1.0
    middles = []
    for column in np.sort(scaled, axis=0).T:
        gaps = np.diff([*column, column[0] + 1.0])
        middles.append(column[gaps.argmax()] + 0.5 * gaps.max())
    atoms.positions -= np.array(middles) @ atoms.cell.array
    return atoms


def write_inputs(
    directory: Path,
    tags: Mapping[str, Value],
    model: Path,
    atoms: Atoms,
    species: Sequence[str],
    order: np.ndarray,
) -> None:
    """Write `setup`, `POSCAR`, `model` and the order of atoms. Raises CalculationFailed if the disk refuses."""
    try:
        directory.mkdir(exist_ok=True, parents=True)
        (directory / "POSCAR").write_text(format_poscar(atoms, species))
        (directory / _ORDER).write_text("".join(f"{index}\n" for index in order))
        shutil.copyfile(model, directory / "model")
        (directory / "setup").write_text(format_setup(tags))
    except OSError as error:
        raise CalculationFailed(f"cannot write the inputs of maise to {directory}: {error}") from error


def read_order(directory: Path, n_atoms: int) -> np.ndarray:
    """Return the index in ASE (n_atoms,) of each row of the POSCAR. Raises CalculationFailed if it does not fit."""
    try:
        order = np.array([int(word) for word in (directory / _ORDER).read_text().split()], dtype=int)
    except (OSError, ValueError) as error:
        raise CalculationFailed(f"{directory / _ORDER} cannot be read: {error}") from error
    if not np.array_equal(np.sort(order), np.arange(n_atoms)):
        raise CalculationFailed(f"{directory}: OUTCAR has {n_atoms} atoms, {_ORDER} orders {len(order)}")
    return order


def read_run(directory: Path) -> tuple[outputs.Outcar, outputs.Progress]:
    """Read a run of JOBT 20 that ended well.

    Raises
    ------
    CalculationFailed
        If it did not, whatever its exit code; the message names the cause.
    """
    try:
        outcar = outputs.read_outcar(directory / "OUTCAR")
        progress = outputs.read_progress(directory / "stdout.txt")
    except FileNotFoundError:
        raise CalculationFailed(explain(directory, "maise left no OUTCAR")) from None
    except ReadError as error:
        raise CalculationFailed(explain(directory, f"a result of maise is damaged: {error}")) from error
    if not outcar.finished:
        raise CalculationFailed(explain(directory, "OUTCAR is cut off: maise was killed or the disk is full"))
    last = outcar.steps[-1] if outcar.steps else None
    if last is None or last.forces is None or last.stress is None or not len(progress.enthalpies):
        raise CalculationFailed(explain(directory, "maise printed no energy, forces or stress"))
    numbers = np.concatenate([progress.enthalpies, [last.energy, last.enthalpy], last.forces.ravel(), last.stress])
    if not np.isfinite(numbers).all():
        raise CalculationFailed(explain(directory, "an energy, force or stress is not finite: atoms coincide?"))
    if outcar.errors:
        raise CalculationFailed(explain(directory, "OUTCAR reports an error"))
    if abs(progress.enthalpies[-1] - last.enthalpy) > 1e-6:
        raise CalculationFailed(explain(directory, "stdout and OUTCAR end with different enthalpies"))
    return outcar, progress


def relaxed_atoms(directory: Path, atoms: Atoms) -> Atoms:
    """Copy of the start with the geometry of CONTCAR. Raises CalculationFailed if that cannot be read."""
    try:
        before, after = read_poscar(directory / "POSCAR"), read_poscar(directory / "CONTCAR")
    except (OSError, ReadError) as error:
        raise CalculationFailed(f"maise left no usable CONTCAR: {error}") from error
    order = read_order(directory, len(atoms))
    if not np.array_equal(before.numbers, after.numbers) or not np.array_equal(after.numbers, atoms.numbers[order]):
        raise CalculationFailed(f"{directory}: CONTCAR holds other atoms than POSCAR")
    copy = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, info=atoms.info.copy())
    for name in set(atoms.arrays) - {"numbers", "positions"}:
        copy.set_array(name, atoms.arrays[name].copy())
    new = after.get_scaled_positions(wrap=False)
    if atoms.pbc.all():
        copy.cell = after.cell
        start = np.linalg.solve(atoms.cell.array.T, atoms.positions[order].T).T
        new = start + (new - start - np.round(new - start))
        copy.positions[order] = new @ after.cell.array
    else:
        positions = new @ after.cell.array
        copy.positions[order] = positions - positions.mean(axis=0) + atoms.positions.mean(axis=0)
    return copy


def explain(directory: Path, what: str) -> str:
    """Say what happened where, with the cause and remedy that the texts of the run allow."""
    texts = {name: _text(directory / name) for name in ("stderr.txt", "stdout.txt", "OUTCAR")}
    causes = [cause for pattern, cause in _CAUSES if any(re.search(pattern, text) for text in texts.values())]
    if os.path.isdir(directory) and shutil.disk_usage(directory).free < 1_000_000:
        causes.append("the disk is full")
    said = [line.strip() for line in texts["stderr.txt"].splitlines() if line.strip()][-3:]
    said += [line.strip() for line in texts["OUTCAR"].splitlines() if line.startswith("ERROR")]
    message = f"{what}; {'; '.join(causes)}" if causes else what
    return f"{message}{'; it said: ' + ' | '.join(said) if said else ''} (run in {directory})"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
