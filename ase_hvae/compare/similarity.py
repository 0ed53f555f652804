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
    return nearest(a, [b])[1]


def null_correlation(rdfs: Sequence[np.ndarray] | np.ndarray) -> float:
    """Mean Pearson correlation over all pairs of different crystals: what a correlation must exceed to mean anything.

    Parameters
    ----------
    rdfs : array
        RDFs of different crystals under the same settings, ``(n_crystals, ...)``, at least two.
    """
    if len(rdfs) < 2:
        raise ValueError(f"a null correlation needs at least two RDFs, not {len(rdfs)}")
    rows, n = _standardised(rdfs), len(rdfs)
    return float(((rows @ rows.T).sum() - n) / (n * (n - 1)))


def nearest(rdf: np.ndarray, rdfs: Sequence[np.ndarray] | np.ndarray) -> tuple[int, float]:
    """Index of the RDF most correlated with ``rdf``, and that Pearson correlation."""
    if len(rdfs) == 0:
        raise ValueError("no RDFs to choose the nearest from")
    first, rows = _standardised([rdf])[0], _standardised(rdfs)
    if first.size != rows.shape[1]:
        raise ValueError(f"RDFs have {first.size} and {rows.shape[1]} values; compare them on the same grid")
    correlations = np.clip(rows @ first, -1.0, 1.0)
    best = int(np.argmax(correlations))
    return best, float(correlations[best])


def _standardised(rdfs: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """RDFs as rows of zero mean and unit norm."""
    rows = np.array([np.asarray(rdf, dtype=float).ravel() for rdf in rdfs])
    if not np.isfinite(rows).all():
        raise ValueError("an RDF has non-finite values")
    rows = rows - rows.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if (norms == 0).any():
        raise ValueError("an RDF is constant; its correlation is not defined")
    return rows / norms
