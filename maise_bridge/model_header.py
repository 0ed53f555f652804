"""Header tables of MAISE model files: boxes of labels and values, 77 characters wide."""

from __future__ import annotations

from collections.abc import Mapping

RULE = "-" * 77
LAYOUT: tuple[tuple[str, tuple[str, ...]], ...] = (
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


def known_labels() -> list[str]:
    """Labels of a new header, with single spaces."""
    return [" ".join(label.split()) for _, labels in LAYOUT for label in labels]


def header_lines(values: Mapping[str, str]) -> list[str]:
    """Lines of a header with the values of some labels (single spaces); the others read ``-``."""
    lines = [RULE]
    for title, labels in LAYOUT:
        entries = (f"|  {label:21s}|  {values.get(' '.join(label.split()), '-'):49s}|" for label in labels)
        lines += [f"|{title}|", RULE, *entries, RULE]
    return lines
