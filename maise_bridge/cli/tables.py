"""What commands print: tables line by line, beside a progress bar on a terminal, and errors by energy window."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np


class Table:
    """Rows that are printed as they come, so the widths of the columns are fixed before.

    Parameters
    ----------
    first : str
        Title of the first column, which names structures.
    names : sequence of str
        All that the first column will hold.
    columns : mapping of str to str
        Titles, and the formats of their values; a column is as wide as its title or the width in its format.
    """

    def __init__(self, first: str, names: Sequence[str], columns: Mapping[str, str]) -> None:
        self._width = max(len(name) for name in (first, *names))
        self._formats = tuple(columns.values())
        self._widths = [max(len(title), _width(form)) for title, form in columns.items()]
        self.header = self._line(first, list(columns))

    def row(self, name: str, values: Sequence[Any]) -> str:
        """Line of one structure; None is printed as a dash."""
        pairs = zip(values, self._formats, strict=True)
        return self._line(name, ["-" if value is None else format(value, form) for value, form in pairs])

    def _line(self, name: str, cells: Sequence[str]) -> str:
        joined = (f"{cell:>{width}}" for cell, width in zip(cells, self._widths, strict=True))
        return "  ".join([f"{name:{self._width}}", *joined])


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """Yield a function that prints the line of one more structure; below them runs a bar, if on a terminal."""
    if not sys.stderr.isatty():
        yield lambda line: print(line, flush=True)
        return
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    with logging_redirect_tqdm(), tqdm(total=total, leave=False, dynamic_ncols=True) as bar:

        def show(line: str) -> None:
            """Print a line above the bar and count it."""
            tqdm.write(line, file=sys.stdout)
            bar.update()

        yield show


def print_errors(part: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the errors of a model by energy window, as :mod:`maise_bridge.evaluation` and the cards hold them."""
    from ase.units import GPa

    for row in rows:
        window, stress = row["window"], row["stress"]
        limit = "all" if window is None or not np.isfinite(window) else f"<= {window:g} eV/atom"
        tail = "" if stress is None or not np.isfinite(stress) else f" {stress / GPa:6.2f} GPa"
        print(
            f"{part:10s} {limit:15s} {row['n_rows']:5d} structures: {1e3 * row['energy']:7.1f} meV/atom "
            f"{row['forces']:7.3f} eV/Å{tail}"
        )


def _width(form: str) -> int:
    digits = form.lstrip("<>+ ").partition(".")[0].rstrip("sdfge")
    return int(digits) if digits else 0
