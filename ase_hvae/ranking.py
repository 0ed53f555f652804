"""Order of the surviving candidates, and the table that people read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from ase import units

from ase_hvae.candidate import Candidate


class Rankable(Protocol):
    """A candidate, or its entry in the database."""

    @property
    def index(self) -> int:
        """Number of the candidate."""

    @property
    def status(self) -> str:
        """As that of the candidate."""

    @property
    def energy_above(self) -> float | None:
        """Energy above the reference; eV/atom."""


T = TypeVar("T", bound=Rankable)


def rank(candidates: Sequence[T]) -> list[T]:
    """Ranked candidates from the lowest energy above the reference upwards; ties keep their index order."""
    return by_energy([candidate for candidate in candidates if candidate.status == "ranked"])


def by_energy(candidates: Sequence[T]) -> list[T]:
    """Candidates from the lowest energy above the reference upwards; ties keep their index order."""
    return sorted(candidates, key=lambda candidate: (candidate.energy_above, candidate.index))


def format_table(candidates: Sequence[Candidate], *, n_more: int = 0) -> str:
    """Text table of ranked candidates in the order given, a line each, and a line about `n_more` that follow.

    Columns of children, moduli and harmonic energies are left out where no line has an entry.
    """
    columns = [["rank", *map(str, range(1, len(candidates) + 1))]]
    for heading, entry in COLUMNS.items():
        entries = [entry(candidate) for candidate in candidates]
        if heading not in OPTIONAL or any(text != "-" for text in entries):
            columns.append([heading, *entries])
    widths = [max(map(len, column)) for column in columns]
    rows = zip(*columns, strict=True)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    if n_more > 0:
        lines.append(f"... and {n_more} more in the database")
    return "\n".join(lines)


def format_number(value: float | None, digits: int, scale: float = 1.0) -> str:
    """Return `scale` times a number with so many decimals, never ``-0.0``; a dash for None."""
    return "-" if value is None else f"{scale * value:z.{digits}f}"


def _modulus(candidate: Candidate, value: float | None) -> str:
    return "unstable" if candidate.mechanically_stable is False else format_number(value, 0, 1.0 / units.GPa)


COLUMNS: dict[str, Callable[[Candidate], str]] = {
    "id": lambda c: str(c.index),
    "parent": lambda c: "-" if c.parent is None else str(c.parent),
    "dE meV/atom": lambda c: format_number(c.energy_above, 1, 1000.0),
    "space group before": lambda c: f"{c.symbol_initial} ({c.spacegroup_initial})",
    "after": lambda c: f"{c.symbol} ({c.spacegroup})",
    "atoms": lambda c: str(len(c.atoms)),
    "g/cm3": lambda c: format_number(c.density, 3),
    "r replica": lambda c: format_number(c.pearson_replica, 3),
    "r known": lambda c: format_number(c.pearson_known, 3),
    "known": lambda c: c.known or "-",
    "phonons": lambda c: c.verdict,
    "ZPE meV/atom": lambda c: format_number(c.zero_point_energy, 1, 1000.0),
    "F meV/atom": lambda c: format_number(c.harmonic_free_energy, 1, 1000.0),
    "B GPa": lambda c: _modulus(c, c.bulk_modulus),
    "G GPa": lambda c: _modulus(c, c.shear_modulus),
}
OPTIONAL = ("parent", "ZPE meV/atom", "F meV/atom", "B GPa", "G GPa")
