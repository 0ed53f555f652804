"""Compare crystals: by RDF (similar?) and by bond topology and geometry (the same crystal?)."""

from ase_hvae.compare.crystal import bond_cutoff, coordination_sequences, fingerprint
from ase_hvae.compare.matching import same_crystal
from ase_hvae.compare.search import find_duplicates, find_known, match_known
from ase_hvae.compare.similarity import nearest, null_correlation, pearson_correlation

__all__ = [
    "bond_cutoff",
    "coordination_sequences",
    "find_duplicates",
    "find_known",
    "fingerprint",
    "match_known",
    "nearest",
    "null_correlation",
    "pearson_correlation",
    "same_crystal",
]
