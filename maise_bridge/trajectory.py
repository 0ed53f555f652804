"""The points that an OUTCAR of MAISE shows, as structures with results; ``format="maise-out"`` of ``ase.io``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import ReadError
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_numbers

from maise_bridge.outputs import Outcar, Step, read_outcar

_TITLE = b"with maise."
_PERIODIC = {"3": (True, True, True), "2": (True, True, False), "0": (False, False, False)}  # by dimensionality


def is_maise_outcar(path: str | Path) -> bool:
    """Whether a file begins as MAISE's OUTCAR does; VASP's has the same name."""
    with open(path, "rb") as file:
        return _TITLE in file.read(400)


def read_trajectory(path: str | Path) -> list[Atoms]:
    """Read the points whose positions MAISE printed.

    Parameters
    ----------
    path : str or Path
        OUTCAR of JOBT 20 that shows its start; COUT decides which other points are printed with positions.

    Returns
    -------
    list of Atoms
        Atoms in the order of the run's POSCAR; crystals and films are periodic, clusters have no
        cell. Energy (eV), forces (eV/Å)
        and, of crystals, stress (eV/Å³) are attached; ``info`` holds `iteration` and `enthalpy` (eV).

    Raises
    ------
    ReadError
        If the text is malformed or cut off, or shows no species or positions; the message names the file.
    """
    outcar = read_outcar(path)
    if not outcar.finished:
        raise ReadError(
            f"{path}: cut off, the last line (the CPU time) is missing; was maise killed, or the disk full?"
        )
    symbols, periodic = _symbols(outcar, path), _periodic(outcar, path)
    steps = [step for step in outcar.steps if step.positions is not None and step.forces is not None]
    if not steps:
        raise ReadError(f"{path}: shows no positions; run maise with COUT 12 or another that prints them")
    return [_structure(step, symbols, periodic, path) for step in steps]


def read_maise_out(filename: str | Path, index: int | slice = -1) -> Atoms | list[Atoms]:
    """Read one or some points of an OUTCAR of MAISE; called by ``ase.io.read``."""
    return read_trajectory(filename)[index]


def _symbols(outcar: Outcar, path: str | Path) -> list[str]:
    symbols, words = (outcar.header.get(key, "").split() for key in ("species", "atoms of each species"))
    if not symbols or len(symbols) != len(words) or not all(word.isdigit() for word in words):
        raise ReadError(f"{path}: its header states no species and their counts; the run must show its start (COUT)")
    unknown = [symbol for symbol in symbols if symbol not in atomic_numbers]
    if unknown:
        raise ReadError(f"{path}: species {unknown[0]!r} is no chemical element")
    return [symbol for symbol, word in zip(symbols, words, strict=True) for _ in range(int(word))]


def _periodic(outcar: Outcar, path: str | Path) -> tuple[bool, bool, bool]:
    dimensionality = outcar.header.get("dimensionality", "none")
    if dimensionality not in _PERIODIC:
        raise ReadError(f"{path}: dimensionality is {dimensionality}; expected 3 (crystal), 2 (film) or 0 (cluster)")
    return _PERIODIC[dimensionality]


def _structure(step: Step, symbols: list[str], periodic: tuple[bool, bool, bool], path: str | Path) -> Atoms:
    assert step.positions is not None
    assert step.forces is not None
    if len(step.positions) != len(symbols):
        raise ReadError(
            f"{path}: {len(symbols)} atoms in the header, {len(step.positions)} in iteration {step.iteration}"
        )
    results = {"energy": step.energy, "forces": step.forces, "stress": step.stress if all(periodic) else None}
    if not np.isfinite(np.concatenate([[step.energy], step.positions.ravel(), step.forces.ravel()])).all():
        raise ReadError(f"{path}: a number of iteration {step.iteration} is not finite; do atoms coincide?")
    atoms = Atoms(symbols, step.positions, cell=step.cell if any(periodic) else None, pbc=periodic)
    atoms.info = {"iteration": step.iteration, "enthalpy": step.enthalpy}
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms
