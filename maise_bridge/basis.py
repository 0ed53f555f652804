"""MAISE `basis` block: which symmetry functions a network sees, with parameters in its own length unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.calculators.calculator import ReadError

BOHR = 0.529177249  # Å per bohr as MAISE writes it, not CODATA's
CAPTION = "  B2A"
_PARAMETERS = ("Rc", "Rs", "n1", "n2", "k", "z", "l")
_MOST_VALUES = 10

_RADIAL = (0.001, 0.01, 0.02, 0.035, 0.06, 0.1, 0.2, 0.4)  # n1, 1/bohr²
_ANGULAR = (0.0001, 0.003, 0.008, 0.015, 0.025, 0.045, 0.08)  # n2, 1/bohr²
_ZETA = (1.0, 2.0, 4.0, 16.0)
_LAMBDA = (-1.0, 1.0)


@dataclass(frozen=True, eq=False)
class Basis:
    """Symmetry functions of one basis block, lengths in Å.

    Made by :func:`parse_basis` or :func:`standard_basis`; `text` is the block as written in files and
    the only source of the other fields.

    Attributes
    ----------
    text : str
        The block, verbatim, with its final newline.
    cutoff : float
        Cutoff radius of every function; Å.
    radial : ndarray, shape (n_radial, 2)
        `eta` (1/Å²) and shift `Rs` (Å) of each pair function, in file order.
    angular : ndarray, shape (n_angular, 3)
        `eta` (1/Å²), `zeta` and `lambda` of each angular function, in file order.
    """

    text: str
    cutoff: float
    radial: np.ndarray
    angular: np.ndarray

    @property
    def n_functions(self) -> int:
        """Number of rows of the block: the inputs of a network for one species."""
        return len(self.radial) + len(self.angular)

    def n_inputs(self, n_species: int) -> int:
        """Length of the descriptor of an atom in a model of `n_species` species."""
        return n_species * len(self.radial) + n_species * (n_species + 1) // 2 * len(self.angular)


def standard_basis(n_functions: int = 51) -> Basis:
    """Return one of the two bases in use with MAISE models.

    Parameters
    ----------
    n_functions : {51, 30}
        51: cutoff 7.4998 Å. 30: cutoff 5.9998 Å.
    """
    labels = [(1 + i, 2, 0, 0, i, 0, 0, 0, 0) for i in range(len(_RADIAL))]
    label = len(_RADIAL)
    for eta in range(len(_ANGULAR)):
        for zeta in range(2 if eta < 3 else 4):
            for sign in range(2):
                label += 1
                if _wanted(n_functions, eta, zeta, sign):
                    labels.append((label, 4, 0, 0, 0, eta, 0, zeta, sign))
    scaling = "1.25" if n_functions == 51 else "1.0"
    rows = "".join(f"{row[0]:3d}" + "".join(f"{value:4d}" for value in row[1:]) + "\n" for row in labels)
    head = f"{CAPTION}          Scaling\n  {BOHR}  {scaling}\n\n  N  GN  Rc  Rs   n1  n2  k   z   l\n\n"
    tables = zip(_PARAMETERS, ((11.338,), (0.0,), _RADIAL, _ANGULAR, (1.0,), _ZETA, _LAMBDA), strict=True)
    return parse_basis(head + rows + "\n" + "".join(_parameter_row(*table) for table in tables))


def _wanted(n_functions: int, eta: int, zeta: int, sign: int) -> bool:
    if n_functions == 51:
        return not (eta == 6 and zeta == 3 and sign == 1)
    if n_functions == 30:
        return eta < 2 or (eta < 6 and sign == 1)
    raise ValueError(f"n_functions is {n_functions}; the standard bases have 51 or 30")


def _parameter_row(name: str, values: Sequence[float]) -> str:
    if name == "Rc":
        return f" {name:3s}{len(values):3d}" + "".join(f"{value:9.3f}" for value in values) + " \n"
    return f" {name:3s}{len(values):3d}" + "".join(f"{value:9.4f}" for value in values) + "\n"


def read_basis(path: str | Path) -> Basis:
    """Read a `basis` file. Raises ASE's ReadError naming file and line."""
    return parse_basis(Path(path).read_text(), source=str(path))


def write_basis(basis: Basis, path: str | Path) -> None:
    """Write a basis block, byte for byte as it was read."""
    Path(path).write_text(basis.text)


def parse_basis(text: str, *, source: str = "basis", first_line: int = 1) -> Basis:
    """Parse one basis block.

    Parameters
    ----------
    text : str
        The block, from the `B2A` caption to the row of `l`.
    source, first_line : str, int
        File name and number of the first line, for error messages.

    Raises
    ------
    ReadError
        If the block is truncated, holds function types other than 2 and 4, several cutoffs, or several blocks.
    """
    reader = LineReader(text, source, first_line)
    unit = _read_unit(reader)
    rows = _read_functions(reader)
    tables = {name: _read_parameters(reader, name) for name in _PARAMETERS}
    for number in range(reader.position, len(reader.lines)):
        if reader.lines[number].strip():
            raise reader.error("nothing after the row of l (several basis blocks are not supported)", number)
    _check_functions(reader, rows, tables)
    columns = {name: np.array(tables[name])[[row[2 + i] for _, row in rows]] for i, name in enumerate(_PARAMETERS)}
    radial = np.array([row[1] == 2 for _, row in rows])
    return Basis(
        text=text if text.endswith("\n") else text + "\n",
        cutoff=float(tables["Rc"][rows[0][1][2]] * unit),
        radial=np.stack([columns["n1"] / unit**2, columns["Rs"] * unit], axis=1)[radial],
        angular=np.stack([columns["n2"] / unit**2, columns["z"], columns["l"]], axis=1)[~radial],
    )


class LineReader:
    """Lines of a text with the place of the next one, for errors that name file and line."""

    def __init__(self, text: str, source: str, first_line: int) -> None:
        self.lines = text.splitlines()
        self.source = source
        self.first_line = first_line
        self.position = 0

    def next(self, expected: str) -> str:
        """Return the next line; `expected` is what an error says is missing if there is none."""
        if self.position >= len(self.lines):
            raise self.error(expected, self.position)
        self.position += 1
        return self.lines[self.position - 1]

    def error(self, expected: str, index: int | None = None) -> ReadError:
        """Return an error that names file and line: the last one read, or that at `index`."""
        index = self.position - 1 if index is None else index
        found = repr(self.lines[index].strip()[:60]) if index < len(self.lines) else "the end of the file"
        return ReadError(f"{self.source}, line {self.first_line + index}: expected {expected}, found {found}")


def _read_unit(reader: LineReader) -> float:
    if not reader.next("the caption '  B2A'").startswith(CAPTION):
        raise reader.error("the caption '  B2A'")
    expected = "two positive numbers, bohr in Å and Scaling"
    try:
        bohr, scaling = (float(word) for word in reader.next(expected).split())
    except ValueError:
        raise reader.error(expected) from None
    if not (bohr > 0 and scaling > 0 and np.isfinite(bohr * scaling)):
        raise reader.error(expected)
    for expected in ("an empty line", "the caption 'N GN Rc ...'", "an empty line"):
        line = reader.next(expected)
        if bool(line.strip()) == (expected == "an empty line"):
            raise reader.error(expected)
    return bohr * scaling


def _read_functions(reader: LineReader) -> list[tuple[int, list[int]]]:
    expected = "nine integers (one symmetry function)"
    rows: list[tuple[int, list[int]]] = []
    while (line := reader.next(expected)).strip():
        words = line.split()
        if len(words) != 9 or not all(word.lstrip("-").isdigit() for word in words):
            raise reader.error(expected)
        rows.append((reader.position - 1, [int(word) for word in words]))
    if not rows:
        raise reader.error(expected)
    return rows


def _read_parameters(reader: LineReader, name: str) -> list[float]:
    expected = f"row '{name} count values...'"
    words = reader.next(expected).split()
    try:
        count, values = int(words[1]), [float(word) for word in words[2:]]
    except (ValueError, IndexError):
        raise reader.error(expected) from None
    if words[0] != name or count != len(values) or not 0 < count <= _MOST_VALUES or not np.all(np.isfinite(values)):
        raise reader.error(expected)
    return values


def _check_functions(reader: LineReader, rows: list[tuple[int, list[int]]], tables: dict[str, list[float]]) -> None:
    angular = False
    for index, row in rows:
        if row[1] not in (2, 4):
            raise reader.error("a function of type 2 or 4", index)
        if row[1] == 2 and angular:
            raise reader.error("all functions of type 2 before those of type 4", index)
        angular = row[1] == 4
        if row[2] != rows[0][1][2]:
            raise reader.error("the same Rc for all functions", index)
        for name, value in zip(_PARAMETERS, row[2:], strict=True):
            if not 0 <= value < len(tables[name]):
                raise reader.error(f"an index into {name} from 0 to {len(tables[name]) - 1}", index)
    if tables["Rc"][rows[0][1][2]] <= 0:
        raise reader.error("a positive Rc", rows[0][0])
