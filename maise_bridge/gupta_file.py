"""MAISE `model` files of Gupta potentials: parameters of each pair of species in a box."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from ase.data import atomic_numbers

from maise_bridge import model_header
from maise_bridge.basis import LineReader

_LABELS = (
    "A rep (eV)   ",
    "p rep (Ang)  ",
    "B att (eV)   ",
    "q att (Ang)  ",
    "r0    (Ang)  ",
    "Rmin  (Ang)  ",
    "Rmax  (Ang)  ",
)  # MAISE compares every blank; "Ang" of p and q is a slip of its, they are plain numbers
_GENERAL = ("model unique ID", "number of species", "species types", "species names", "reference")
_TITLES = (
    "                            Gupta potential                                ",
    "                               parameters                                  ",
)
_MOST_SPECIES = 2


@dataclass(frozen=True, eq=False)
class GuptaModel:
    """A Gupta potential (second-moment approximation of tight binding) as MAISE stores it.

    With y = r / r0 - 1, and t(r) falling from 1 at r_min to 0 at r_max,
    E_i = sum_j A exp(-p y) t - sqrt(sum_j B² exp(-2 q y) t).

    Attributes
    ----------
    species : tuple of str
        Chemical symbols in model order, 1 or 2.
    parameters : ndarray, shape (n_pairs, 7)
        A (eV), p, B (eV), q, r0 (Å), r_min (Å), r_max (Å) of the pairs AA[, AB, BB].
    header : tuple of str
        Lines of the file, verbatim; on writing, entries that differ from the fields above are renewed.

    References
    ----------
    F. Cleri and V. Rosato, Phys. Rev. B 48, 22 (1993).
    """

    species: tuple[str, ...]
    parameters: np.ndarray
    header: tuple[str, ...]

    @classmethod
    def create(
        cls, species: Sequence[str], parameters: np.ndarray, *, info: Mapping[str, str] | None = None
    ) -> GuptaModel:
        """Make a model with a fresh header.

        Parameters
        ----------
        species, parameters
            See the class.
        info : mapping of str to str, optional
            Header entries, such as ``{"reference": ...}``; without it that entry reads ``-``.

        Raises
        ------
        ValueError
            If shapes disagree, a number is out of range, or `info` has an unknown entry.
        """
        values = dict(info or {})
        unknown = sorted(set(values) - set(_GENERAL))
        if unknown:
            raise ValueError(f"unknown header entry {unknown[0]!r}; known: {', '.join(_GENERAL)}")
        values["model unique ID"] = ""  # the checksum, on writing
        layout = ((_TITLES[0], _GENERAL), (_TITLES[1], tuple(_parameter_labels(species))))
        header = tuple(model_header.header_lines(values, layout))
        model = cls(tuple(species), np.array(parameters, dtype=float), header)
        wrong = problem(model)
        if wrong:
            raise ValueError(wrong)
        return model

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Species of each row of `parameters`."""
        return list(combinations_with_replacement(range(len(self.species)), 2))

    @property
    def cutoff(self) -> float:
        """Distance at which MAISE stops looking for neighbours, the largest r_max of like atoms; Å."""
        return max(float(row[6]) for (a, b), row in zip(self.pairs, self.parameters, strict=True) if a == b)

    @property
    def unique_id(self) -> str:
        """Checksum of the parameters, eight hexadecimal digits; files of MAISE state none."""
        return f"{int(1e11 * math.fsum(np.abs(self.parameters).ravel())) % 100_000_000:08X}"

    @property
    def info(self) -> dict[str, str]:
        """Header entries, labels with single spaces; parameters included."""
        return {model_header.key(line): model_header.value(line) for line in self.header if model_header.is_entry(line)}


def parse(reader: LineReader) -> GuptaModel:
    """Read the rest of a file of which the rule and the title are read. Raises ReadError naming file and line."""
    while (line := reader.next("the title 'parameters'")).strip("| ") != "parameters":
        if not line.startswith(("|", "---")):
            raise reader.error("a line of the header tables")
    species = model_header.Entries(reader, reader.lines[: reader.position]).species(_MOST_SPECIES)
    _skip_rule(reader)
    labels = _parameter_labels(species)
    first = reader.position
    values = [_read_value(reader, " ".join(label.split())) for label in labels]
    _skip_rule(reader)
    header = tuple(reader.lines[: reader.position])
    if any(line.strip() for line in reader.lines[reader.position :]):
        raise reader.error("nothing after the parameters", reader.position)
    model = GuptaModel(species, np.reshape(values, (-1, len(_LABELS))), header)
    if wrong := _out_of_range(model.parameters):
        raise reader.error(wrong[1], first + wrong[0])
    return model


def problem(model: GuptaModel) -> str | None:
    """What is inconsistent in a model, or None."""
    n = len(model.species)
    if not 1 <= n <= _MOST_SPECIES or len(set(model.species)) != n:
        return f"species are {', '.join(model.species)}; a Gupta model has 1 or 2 different ones"
    unknown = [symbol for symbol in model.species if atomic_numbers.get(symbol, 0) == 0]
    if unknown:
        return f"{unknown[0]!r} is no chemical element"
    shape = (len(model.pairs), len(_LABELS))
    if model.parameters.shape != shape:
        return f"parameters have shape {model.parameters.shape}, expected {shape}"
    if not np.isfinite(model.parameters).all():
        return "parameters have a number that is not finite"
    if wrong := _out_of_range(model.parameters):
        label = " ".join(_parameter_labels(model.species)[wrong[0]].split())
        return f"{label!r} is {model.parameters.flat[wrong[0]]}, expected {wrong[1]}"
    return None


def format_text(model: GuptaModel) -> str:
    """Return the text of a model file."""
    derived = {
        "model unique ID": model.unique_id,
        "number of species": str(len(model.species)),
        "species types": " ".join(str(atomic_numbers[symbol]) for symbol in model.species),
        "species names": " ".join(model.species),
    }
    if model.info.get("model unique ID"):
        del derived["model unique ID"]
    labels = _parameter_labels(model.species)
    end = len(model.header) - 1
    lines = [model_header.renewed(line, derived) for line in model.header[: end - len(labels)]]
    for line, label, number in zip(model.header[-1 - len(labels) : end], labels, model.parameters.flat, strict=True):
        same = model_header.key(line) == " ".join(label.split()) and _number(model_header.value(line)) == number
        lines.append(line if same else model_header.with_value(f"|  {label:21s}|", str(number)))
    return "\n".join([*lines, model.header[-1]]) + "\n"


def _parameter_labels(species: Sequence[str]) -> list[str]:
    pairs = combinations_with_replacement(species, 2)
    return [f"{label}{a if a == b else f'{a} {b}'}" for a, b in pairs for label in _LABELS]


def _skip_rule(reader: LineReader) -> None:
    if not reader.next("a rule of dashes").startswith("---"):
        raise reader.error("a rule of dashes")


def _read_value(reader: LineReader, label: str) -> float:
    line = reader.next(f"the entry '{label}'")
    if not model_header.is_entry(line) or model_header.key(line) != label:
        raise reader.error(f"the entry '{label}'")
    number = _number(model_header.value(line))
    if not math.isfinite(number):
        raise reader.error(f"a number as '{label}'")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _out_of_range(parameters: np.ndarray) -> tuple[int, str] | None:
    """Place of the first number, in rows, that makes no sense, and what was expected there."""
    for k, (_, _, _, _, r0, r_min, r_max) in enumerate(parameters):
        for column, right, expected in (
            (4, r0 > 0, "a positive r0"),
            (5, r_min >= 0, "an Rmin of 0 Å or more"),
            (6, r_max > r_min, f"an Rmax above Rmin ({r_min} Å)"),
        ):
            if not right:
                return k * len(_LABELS) + column, expected
    return None
