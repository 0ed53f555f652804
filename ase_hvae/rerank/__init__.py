"""The best candidates of a finished run by a second calculator, beside the run and never mixed into its ranking."""

from ase_hvae.rerank.report import Agreement, compare_rankings, format_report
from ase_hvae.rerank.run import RerankResult, rerank
from ase_hvae.rerank.store import RerankDatabase, Reranked

__all__ = [
    "Agreement",
    "RerankDatabase",
    "RerankResult",
    "Reranked",
    "compare_rankings",
    "format_report",
    "rerank",
]
