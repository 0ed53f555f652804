"""From a target RDF to crystals that have it: propose in random space groups, screen, steer, accept."""

from ase_hvae.reconstruct.search import Reconstruction, ReconstructionResult, default_min_distance, reconstruct
from ase_hvae.reconstruct.wyckoff import WyckoffPrior

__all__ = ["Reconstruction", "ReconstructionResult", "WyckoffPrior", "default_min_distance", "reconstruct"]
