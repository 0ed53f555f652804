"""Compare crystals: by RDF (similar?) and by bond topology and geometry (the same crystal?).

RDFs are not injective (homometric crystals share one), and StructureMatcher at its usual tolerances merges crystals
whose atoms lie close but are bonded differently (bc8, r8, bt8). So two crystals are called the same only if
composition, volume per atom, mean distances of the k-th neighbours (the fingerprint), coordination sequences, number of
atoms in the primitive cell and then geometry agree, in this order of cost. Mirror images are one crystal: they have the
same energy, and nothing that a search ranks by tells them apart.

Cost (benchmarks/speed_compare.py: 10,000 silicon crystals of 17 atoms on average, 435 of them distinct, one core):
89 s, 300 times less than StructureMatcher for all pairs. A crystal costs 0.8 ms for its checks and fingerprint, and 5
ms for primitive cell, bonds and reduction once a pair with it is left. Of 50 million pairs, 60,868 are of a crystal and
a kept one that agree in composition, energy (20 meV/atom) and volume (5 %); fingerprints leave 12,047 of them, bonds
leave 9584 to StructureMatcher (3 ms each), and 9565 are the same. No copy was missed and no known crystals were merged.
"""

from ase_hvae.compare.crystal import bond_cutoff, coordination_sequences, fingerprint
from ase_hvae.compare.matching import same_crystal
from ase_hvae.compare.search import KnownCrystals, find_duplicates, find_known, match_known, stream_originals
from ase_hvae.compare.similarity import nearest, null_correlation, pearson_correlation

__all__ = [
    "KnownCrystals",
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
    "stream_originals",
]
