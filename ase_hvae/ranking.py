"""Order of the surviving candidates, and the table that people read."""

from __future__ import annotations

from collections.abc import Sequence

from ase_hvae.candidate import Candidate

HEADER = (
    "rank", "id", "dE meV/atom", "space group before", "after", "atoms", "g/cm3", "r replica", "r known", "known",
    "phonons",
)  # fmt: skip


def rank(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Ranked candidates from the lowest energy above the reference upwards; ties keep their index order."""
    ranked = [candidate for candidate in candidates if candidate.status == "ranked"]
    return sorted(ranked, key=lambda candidate: (candidate.energy_above, candidate.index))


def format_table(candidates: Sequence[Candidate], *, limit: int | None = None) -> str:
    """Text table of ranked candidates in the order given, a line each, at most `limit` of them."""
    rows = [HEADER] + [_row(place, candidate) for place, candidate in enumerate(candidates[:limit], start=1)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    if limit is not None and len(candidates) > limit:
        lines.append(f"... and {len(candidates) - limit} more in the database")
    return "\n".join(lines)


def _row(place: int, candidate: Candidate) -> tuple[str, ...]:
    def number(value: float | None, digits: int, scale: float = 1.0) -> str:
        return "-" if value is None else f"{scale * value:.{digits}f}"

    return (
        str(place),
        str(candidate.index),
        number(candidate.energy_above, 1, 1000.0),
        f"{candidate.symbol_initial} ({candidate.spacegroup_initial})",
        f"{candidate.symbol} ({candidate.spacegroup})",
        str(len(candidate.atoms)),
        number(candidate.density, 3),
        number(candidate.pearson_replica, 3),
        number(candidate.pearson_known, 3),
        candidate.known or "-",
        candidate.verdict,
    )
