"""Header tables of MAISE model files: boxes of labels and values, 77 characters wide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ase.calculators.calculator import ReadError
from ase.data import atomic_numbers, chemical_symbols

from maise_bridge.basis import LineReader

Layout = tuple[tuple[str, tuple[str, ...]], ...]
RULE = "-" * 77
LAYOUT: Layout = (
    (
        "                    neural network general information                     ",
        (
            "model unique ID",
            "number of species",
            "species types",
            "species names",
            "number of layers",
            "architecture",
            "number of weights",
            "reference",
        ),
    ),
    (
        "                            data information                               ",
        (
            "train energy data",
            "test  energy data",
            "train force  data",
            "test  force  data",
            "total structures",
            "max atom number",
            "standard deviation",
        ),
    ),
    (
        "                            training details                               ",
        (
            "trained on",
            "maise version",
            "parallelization",
            "cpu and wall times",
            "regularization",
            "number of epochs",
        ),
    ),
    (
        "                              performance                                  ",
        ("train energy error", "test  Energy error", "train force  error", "test  Force  error"),
    ),
)


def key(line: str) -> str:
    """Label of an entry line, with single spaces."""
    return " ".join(line[1:24].split())


def is_entry(line: str) -> bool:
    """Whether a header line holds a label and a value."""
    return line.startswith("|") and line[24:25] == "|"


def value(line: str) -> str:
    """Value of an entry line."""
    return line[25:].rstrip().removesuffix("|").strip()


def with_value(line: str, new: str) -> str:
    """Entry line with another value."""
    return f"{line[:25]}  {new:49s}|"


def known_labels(layout: Layout = LAYOUT) -> list[str]:
    """Labels of a new header, with single spaces."""
    return [" ".join(label.split()) for _, labels in layout for label in labels]


def header_lines(values: Mapping[str, str], layout: Layout = LAYOUT) -> list[str]:
    """Lines of a header with the values of some labels (single spaces); the others read ``-``."""
    lines = [RULE]
    for title, labels in layout:
        entries = (f"|  {label:21s}|  {values.get(' '.join(label.split()), '-'):49s}|" for label in labels)
        lines += [f"|{title}|", RULE, *entries, RULE]
    return lines


def renewed(line: str, derived: Mapping[str, str]) -> str:
    """Header line with the value that follows from the model, unchanged if it is right."""
    if not is_entry(line):
        return line
    new = derived.get(key(line))
    return line if new in (None, value(line)) else with_value(line, str(new))


@dataclass(frozen=True)
class Entries:
    """Checked access to the entries of a header, the first lines of what `reader` reads."""

    reader: LineReader
    lines: Sequence[str]

    @cached_property
    def places(self) -> dict[str, int]:
        """Index of the line of each label."""
        return {key(line): index for index, line in enumerate(self.lines) if is_entry(line)}

    def error(self, expected: str, label: str) -> ReadError:
        """Error that names the line of an entry."""
        return self.reader.error(expected, self.places[label])

    def words(self, label: str) -> list[str]:
        """Words of a value. Raises ReadError if there is no such entry."""
        if label not in self.places:
            raise ReadError(f"{self.reader.source}, lines 1-{len(self.lines)}: the header has no entry '{label}'")
        return value(self.lines[self.places[label]]).split()

    def integers(self, label: str, count: int | None = None) -> list[int]:
        """Positive integers of a value, `count` of them if given."""
        words = self.words(label)
        if not all(word.isdigit() and int(word) > 0 for word in words) or len(words) != (count or len(words)):
            raise self.error(f"{count or 'some'} positive integer(s) as '{label}'", label)
        return [int(word) for word in words]

    def species(self, most: int) -> tuple[str, ...]:
        """Chemical symbols, at most so many, which must fit the atomic numbers beside them."""
        n_species = self.integers("number of species", 1)[0]
        numbers, names = self.integers("species types", n_species), self.words("species names")
        if not n_species <= most or [atomic_numbers.get(name) for name in names] != numbers:
            fitting = ", ".join(chemical_symbols[number] for number in numbers if number < len(chemical_symbols))
            expected = f"1 to {most} symbols that fit the atomic numbers {numbers} ({fitting})"
            raise self.error(expected, "species names")
        return tuple(names)
