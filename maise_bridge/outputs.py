"""What a run of `maise` printed: OUTCAR, OSZICAR, stdout. Units and signs are ASE's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maise_bridge.basis import LineReader

THZ_PER_INVERSE_CM = 0.0299792458
_KILOBAR = 0.1 / 160.2176565  # eV/Å³, with MAISE's rounding of e
_VOIGT = [0, 1, 2, 4, 5, 3]  # MAISE prints xx yy zz xy yz zx
_FINISHED = "Total CPU time used"
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, eq=False)
class Step:
    """One point that OUTCAR shows.

    Attributes
    ----------
    iteration : int
        0 is the starting structure.
    energy, enthalpy : float
        Without and with the pressure term; eV per cell, 8 decimals.
    cell : ndarray, shape (3, 3)
        Å, 6 decimals.
    volume_per_atom : float
        Å³; of a cluster, that of the ellipsoid with its moments of inertia.
    positions, forces : ndarray, shape (n_atoms, 3), or None
        Å and eV/Å, 6 decimals, in the order of the POSCAR; None where the run printed energies only (as for the next
        two).
    atom_energies : ndarray, shape (n_atoms,), or None
        Share of each atom without the core repulsion; eV, 12 decimals.
    stress : ndarray, shape (6,), or None
        ASE's sign and order, without the external pressure; eV/Å³, precise to 3e-12.
    """

    iteration: int
    energy: float
    enthalpy: float
    cell: np.ndarray
    volume_per_atom: float
    positions: np.ndarray | None
    forces: np.ndarray | None
    atom_energies: np.ndarray | None
    stress: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Modes:
    """Vibrations at the Gamma point.

    Attributes
    ----------
    frequencies : ndarray, shape (3 n_atoms,)
        THz, falling; imaginary ones as negative numbers.
    eigenvectors : ndarray, shape (3 n_atoms, n_atoms, 3)
        Of the mass-weighted dynamical matrix.
    """

    frequencies: np.ndarray
    eigenvectors: np.ndarray


@dataclass(frozen=True, eq=False)
class Outcar:
    """Content of an OUTCAR.

    Attributes
    ----------
    header : dict of str to str
        What the run says about itself (``model``, ``version``, ``relaxation type``, ``species``, ...); empty if the
        starting structure was not to be printed.
    steps : tuple of Step
        The points that the run printed.
    errors : tuple of str
        Lines with ERROR.
    finished : bool
        Whether the last line, with the CPU time, is there.
    modes : Modes or None
        Of a phonon run.
    """

    header: dict[str, str]
    steps: tuple[Step, ...]
    errors: tuple[str, ...]
    finished: bool
    modes: Modes | None


@dataclass(frozen=True, eq=False)
class Progress:
    """Iterations that a run prints on stdout.

    Attributes
    ----------
    enthalpies : ndarray, shape (n_iterations + 1,)
        From the starting structure on; eV per cell, 16 decimals.
    distances : ndarray, shape (n_iterations + 1,)
        Shortest distance over the sum of MAISE's core radii; nan for the starting structure.
    finished : bool
        Whether the summary at the end of a relaxation is there.
    energy_calls, force_calls : int
        Evaluations; 0 without that summary.
    """

    enthalpies: np.ndarray
    distances: np.ndarray
    finished: bool
    energy_calls: int
    force_calls: int


def read_outcar(path: str | Path) -> Outcar:
    """Read an OUTCAR of JOBT 20 or 22, whatever it was told to print.

    A run that was cut off between two blocks has ``finished`` False; numbers may be nan if MAISE printed it.

    Raises
    ------
    ReadError
        If the text ends inside of a block or is malformed; the message names file and line.
    FileNotFoundError
        If there is no such file.
    """
    reader = _reader(path)
    header: dict[str, str] = {}
    steps, errors = [], []
    modes, finished = None, False
    while (line := _peek(reader)) is not None:
        if "LATTICE VECTORS" in line:
            steps.append(_read_step(reader))
            continue
        reader.position += 1
        if "Cell optimization" in line:
            header = _read_header(reader, line)
        elif line.startswith("eigenvalue"):
            reader.position -= 1
            modes = _read_modes(reader)
        elif "ERROR" in line.upper():
            errors.append(line.strip())
        elif _FINISHED in line:
            finished = True
        elif line.strip().strip("-") and "igenvalues at the Gamma point" not in line:
            raise reader.error("a block of results or the line with the CPU time")
    return Outcar(header, tuple(steps), tuple(errors), finished, modes)


def read_oszicar(path: str | Path) -> np.ndarray:
    """Read the enthalpies (n_steps,) that a run printed to OSZICAR; eV per cell, 8 decimals. Raises ReadError."""
    reader = _reader(path)
    expected = "an enthalpy (one number)"
    return np.array([_numbers(reader, reader.next(expected), 1, expected)[0] for _ in reader.lines])


def read_progress(path: str | Path) -> Progress:
    """Read what JOBT 20 prints on stdout.

    Raises
    ------
    ReadError
        If an iteration is malformed; the message names file and line.
    """
    reader = _reader(path)
    rows: list[list[float]] = []
    calls = {"ENERGY": 0, "FORCE": 0}
    finished = False
    for line in reader.lines:
        reader.position += 1
        words = line.split()
        if len(words) > 1 and words[0] == str(len(rows)):
            count = 2 if not rows else 5
            row = _numbers(reader, line, count, f"an iteration of {count} numbers")
            rows.append(row[1:2] + (row[4:] or [np.nan]))
        elif len(words) == 4 and words[1:3] == ["CALLS", "="] and words[0] in calls:
            calls[words[0]] = int(_numbers(reader, words[3], 1, "a number of calls")[0])
        finished |= words[:1] == ["FIN"]
    table = np.reshape(rows, (-1, 2))
    return Progress(table[:, 0], table[:, 1], finished, calls["ENERGY"], calls["FORCE"])


def read_cell_test(path: str | Path) -> np.ndarray:
    """Read the analytic forces (n_atoms, 3) of JOBT 23 from stdout; eV/Å, 12 decimals.

    Raises
    ------
    ReadError
        If a line is malformed or the verdict at the end is missing; the message names file and line.
    """
    reader = _reader(path)
    forces = []
    while "CHECK" not in (line := reader.next("forces of the cell test and their verdict")):
        if line.startswith("ANA"):
            forces.append(_numbers(reader, line[3:], 3, "ANA and three numbers"))
    return np.reshape(forces, (-1, 3))


def _reader(path: str | Path) -> LineReader:
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    return LineReader(_ANSI.sub("", text), str(path), 1)


def _peek(reader: LineReader) -> str | None:
    return reader.lines[reader.position] if reader.position < len(reader.lines) else None


def _numbers(reader: LineReader, text: str, count: int, expected: str) -> list[float]:
    """The first `count` numbers of a text, nan and inf included."""
    try:
        values = [float(word) for word in text.split()[:count]]
    except ValueError:
        raise reader.error(expected) from None
    if len(values) != count:
        raise reader.error(expected)
    return values


def _read_header(reader: LineReader, title: str) -> dict[str, str]:
    found = re.search(r"with\s+(\S+)\s+model\s+(\S+)\s+on\s+(.*\S)", title)
    if not found:
        raise reader.error("version, model and date")
    header = dict(zip(("version", "model", "date"), found.groups(), strict=True))
    reader.next("a rule of dashes")
    while not (line := reader.next("an entry of the header")).startswith("---"):
        label, _, value = line.strip().partition("  ")
        header[label] = value.strip()
    return header


def _read_step(reader: LineReader) -> Step:
    """The block that begins at the title of the lattice vectors."""
    reader.position += 1
    _rule(reader)
    first = _numbers(reader, reader.next("a cell vector and the volume"), 4, "a cell vector and the volume")
    expected = "a cell vector (three numbers)"
    cell = [first[:3], *(_numbers(reader, reader.next(expected), 3, expected) for _ in range(2))]
    table = stress = None
    line = reader.next("a rule of dashes or the enthalpy")
    if line.startswith("---"):
        table, stress = _read_table(reader)
        line = reader.next("the enthalpy")
    found = re.match(r"\s*iter\s+(\d+)\s+total enthalpy=\s*(\S+)\s+energy=\s*(\S+)\s+(\S+)\s+(\S+)\s*$", line)
    if not found:
        raise reader.error("the line 'iter ... total enthalpy= ... energy= ...' with four numbers")
    enthalpy, energy = _numbers(reader, f"{found[2]} {found[3]}", 2, "enthalpy and energy")
    _rule(reader)
    return Step(
        iteration=int(found[1]),
        energy=energy,
        enthalpy=enthalpy,
        cell=np.array(cell),
        volume_per_atom=first[3],
        positions=None if table is None else table[:, :3],
        forces=None if table is None else table[:, 3:6],
        atom_energies=None if table is None else table[:, 6],
        stress=stress,
    )


def _read_table(reader: LineReader) -> tuple[np.ndarray, np.ndarray]:
    """Positions, forces and energies (n_atoms, 7), and the stress (6,)."""
    if "POSITION" not in reader.next("the title 'POSITION ...'"):
        raise reader.error("the title 'POSITION ...'")
    _rule(reader)
    expected = "position, force and energy of an atom (seven numbers)"
    rows = []
    while not (line := reader.next(expected)).startswith("---"):
        rows.append(_numbers(reader, line, 7, expected))
    reader.next("the stress in eV/Å³")
    words = reader.next("the stress 'in kB'").split()
    if words[:2] != ["in", "kB"]:
        raise reader.error("the stress 'in kB'")
    stress = _numbers(reader, " ".join(words[2:]), 6, "six numbers")
    _rule(reader)
    return np.reshape(rows, (-1, 7)), -_KILOBAR * np.array(stress)[_VOIGT]


def _read_modes(reader: LineReader) -> Modes:
    frequencies: list[float] = []
    vectors: list[list[list[float]]] = []
    while (line := reader.next("an eigenvalue or a rule of dashes")).startswith("eigenvalue"):
        frequencies.append(_numbers(reader, line[10:], 2, "an eigenvalue")[1])
        vectors.append([])
        while (row := _peek(reader)) is not None and row[:1] == " ":
            reader.position += 1
            vectors[-1].append(_numbers(reader, row, 4, "an atom and its amplitude")[1:])
    n_atoms = len(vectors[0])
    if len(frequencies) != 3 * n_atoms or any(len(vector) != n_atoms for vector in vectors):
        raise reader.error(f"{3 * n_atoms} modes of {n_atoms} atoms")
    return Modes(THZ_PER_INVERSE_CM * np.array(frequencies), np.array(vectors))


def _rule(reader: LineReader) -> None:
    if not reader.next("a rule of dashes").startswith("---"):
        raise reader.error("a rule of dashes")
