"""How well two calculators agree on the order of crystals, in numbers and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau

from ase_hvae.ranking import format_number
from ase_hvae.rerank.run import RerankResult
from ase_hvae.rerank.store import Reranked


@dataclass(frozen=True)
class Agreement:
    """Differences of the run's calculator from the second one.

    Attributes
    ----------
    n : int
        Candidates that have an energy by both; all numbers of energies are over these.
    kendall_tau : float or None
        Of the energies above the reference; None for fewer than two candidates or none but ties.
    mean_error, rms_error, max_error : float or None
        Of the energies above the reference, run minus second; the last one is the largest in absolute value, with its
        sign; eV/atom.
    max_candidate : int or None
        To which that belongs.
    force_rmse : float or None
        Root mean square over all components of the forces at the minima of the run's calculator; eV/Å.
    n_force_components : int
        How many these are.
    """

    n: int
    kendall_tau: float | None
    mean_error: float | None
    rms_error: float | None
    max_error: float | None
    max_candidate: int | None
    force_rmse: float | None
    n_force_components: int


def compare_rankings(rows: Sequence[Reranked]) -> Agreement:
    """Agreement of the two energies of candidates; those that failed by the second calculator do not count."""
    both = [row for row in rows if row.energy_above is not None]
    run = np.array([row.energy_above_run for row in both])
    second = np.array([row.energy_above for row in both], dtype=float)
    errors = run - second
    worst = int(np.abs(errors).argmax()) if both else None
    tau = float(kendalltau(run, second).statistic) if len(both) > 1 else float("nan")
    differences = [
        (row.start.get_forces() - row.single_point.get_forces()).ravel() for row in rows if row.single_point is not None
    ]
    components = np.concatenate([np.empty(0), *differences])
    return Agreement(
        n=len(both),
        kendall_tau=tau if np.isfinite(tau) else None,
        mean_error=float(errors.mean()) if both else None,
        rms_error=_rms(errors),
        max_error=None if worst is None else float(errors[worst]),
        max_candidate=None if worst is None else both[worst].candidate,
        force_rmse=_rms(components),
        n_force_components=len(components),
    )


def format_report(result: RerankResult) -> str:
    """Table of the candidates in the order of the run, and the agreement of the calculators in words."""
    agreement = compare_rankings(result.rows)
    places = _places(result.rows)
    second = "single points" if result.single_point else "minima"
    header = ["rank", "rerank", "id", "dE run", "dE", "difference", "dV %", "space group", "after", "is now", "failure"]
    lines = [header]
    for number, (row, place) in enumerate(zip(result.rows, places, strict=True), start=1):
        difference = None if row.energy_above is None else row.energy_above_run - row.energy_above
        energies = [format_number(value, 1, 1000.0) for value in (row.energy_above_run, row.energy_above, difference)]
        words = [row.spacegroup_run, row.spacegroup, row.became, row.failure]
        texts = ["-" if word is None else str(word) for word in words]
        shown = [str(number), "-" if place is None else str(place), str(row.candidate)]
        lines.append([*shown, *energies, format_number(row.volume_change, 2, 100.0), *texts])
    kept = [column for column in zip(*lines, strict=True) if set(column[1:]) != {"-"}]
    widths = [max(map(len, column)) for column in kept]
    rows = zip(*kept, strict=True)
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    failed = sum(row.failure is not None for row in result.rows)
    return "\n".join(
        [
            *table,
            "",
            f"dE run: meV/atom above {result.reference.name} by {result.record_run}; dE: by {result.record}, {second}",
            f"{agreement.n} candidates by both, {failed} failed; Kendall tau {format_number(agreement.kendall_tau, 3)} "
            f"(n = {agreement.n})",
            f"dE run - dE: mean {format_number(agreement.mean_error, 1, 1000.0)}, RMS "
            f"{format_number(agreement.rms_error, 1, 1000.0)}, largest "
            f"{format_number(agreement.max_error, 1, 1000.0)} meV/atom"
            + ("" if agreement.max_candidate is None else f" (candidate {agreement.max_candidate})"),
            f"forces at the minima of the run: RMS difference {format_number(agreement.force_rmse, 4)} eV/Å "
            f"({agreement.n_force_components} components)",
            f"results in {result.database}, labels for a fit in {result.labels}",
        ]
    )


def _places(rows: Sequence[Reranked]) -> list[int | None]:
    """Rank of each row by the second calculator; None for those without an energy."""
    above = {number: row.energy_above for number, row in enumerate(rows) if row.energy_above is not None}
    order = {number: place for place, number in enumerate(sorted(above, key=lambda number: above[number]), start=1)}
    return [order.get(number) for number in range(len(rows))]


def _rms(values: np.ndarray) -> float | None:
    return float(np.sqrt(np.mean(values**2))) if len(values) else None
