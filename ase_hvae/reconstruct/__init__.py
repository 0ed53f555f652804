"""From a target RDF to crystals that have it: propose in random space groups, screen, steer, accept."""

from ase_hvae.reconstruct.composition import Composition
from ase_hvae.reconstruct.prior import WyckoffPrior
from ase_hvae.reconstruct.search import (
    Reconstruction,
    ReconstructionResult,
    check_volume,
    default_min_distances,
    reconstruct,
)

__all__ = [
    "Composition",
    "Reconstruction",
    "ReconstructionResult",
    "WyckoffPrior",
    "check_volume",
    "default_min_distances",
    "reconstruct",
]
