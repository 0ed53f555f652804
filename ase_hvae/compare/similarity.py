"""How alike two RDFs are. RDFs are not injective: that two agree does not make two crystals one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pearson_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of two RDFs on the same grid, between -1 and 1; channels of several species are joined.

    Raises
    ------
    ValueError
        If the shapes differ, a value is not finite or an RDF is constant.
    """
    first, second = _standardised(a), _standardised(b)
    if first.shape != second.shape:
        raise ValueError(f"RDFs have {first.size} and {second.size} values; compare them on the same grid")
    return float(np.clip(first @ second, -1.0, 1.0))


def null_correlation(rdfs: Sequence[np.ndarray] | np.ndarray) -> float:
    """Mean Pearson correlation over all pairs of different crystals: what a correlation must exceed to mean anything.

    Parameters
    ----------
    rdfs : array
        RDFs of different crystals under the same settings, ``(n_crystals, ...)``, at least two.
    """
    rows = np.array([_standardised(rdf) for rdf in rdfs])
    if len(rows) < 2:
        raise ValueError(f"a null correlation needs at least two RDFs, not {len(rows)}")
    n = len(rows)
    return float(((rows @ rows.T).sum() - n) / (n * (n - 1)))


def nearest(rdf: np.ndarray, rdfs: Sequence[np.ndarray] | np.ndarray) -> tuple[int, float]:
    """Index of the RDF most correlated with ``rdf``, and that Pearson correlation."""
    if len(rdfs) == 0:
        raise ValueError("no RDFs to choose the nearest from")
    correlations = [pearson_correlation(rdf, other) for other in rdfs]
    best = int(np.argmax(correlations))
    return best, correlations[best]


def _standardised(rdf: np.ndarray) -> np.ndarray:
    """RDF as one row of zero mean and unit norm."""
    row = np.asarray(rdf, dtype=float).ravel()
    if not np.isfinite(row).all():
        raise ValueError("an RDF has non-finite values")
    row = row - row.mean()
    norm = np.linalg.norm(row)
    if norm == 0:
        raise ValueError("an RDF is constant; its correlation is not defined")
    return row / norm
