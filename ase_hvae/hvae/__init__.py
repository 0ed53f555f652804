"""Hamiltonian variational auto-encoder on tensors of features: model, training, files. Knows nothing of atoms."""

from ase_hvae.hvae.checkpoint import load_model, save_model
from ase_hvae.hvae.latent_grid import central_grid
from ase_hvae.hvae.model import HVAE, Noise, Trajectory, gaussian_kl
from ase_hvae.hvae.training import History, fit

__all__ = [
    "HVAE",
    "History",
    "Noise",
    "Trajectory",
    "central_grid",
    "fit",
    "gaussian_kl",
    "load_model",
    "save_model",
]
