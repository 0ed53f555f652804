"""Crystal replicas: what the decoder says a crystal at a latent point looks like."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ase_hvae.errors import ModelError
from ase_hvae.hvae import HVAE
from ase_hvae.rdf import channel_pairs


@dataclass(frozen=True, eq=False)
class Replica:
    """Target of a reconstruction.

    Attributes
    ----------
    index : int
        Position in the list of decoded latents.
    latent : ndarray, (latent_dim,)
    rdf : ndarray, (n_bins,) or (n_channels, n_bins)
        g(r), not negative; with several species a channel for each pair of them (`ase_hvae.rdf.channel_pairs`).
    volume_per_atom : float
        Å^3.
    """

    index: int
    latent: np.ndarray
    rdf: np.ndarray
    volume_per_atom: float


def decode(model: HVAE, latents: np.ndarray) -> list[Replica]:
    """Decode latents ``(n, latent_dim)`` into replicas; negative g(r) is set to zero.

    Raises
    ------
    ModelError
        If a latent has the wrong length or is not finite, or a decoded value is not finite.
    """
    latents = np.asarray(latents, float)
    if not np.isfinite(latents).all():
        raise ModelError("latents are not finite; decode points such as those of ase_hvae.sampling")
    rdf, volume = (tensor.double().numpy() for tensor in model.decode(torch.from_numpy(latents)))
    broken = ~(np.isfinite(rdf).all(axis=1) & np.isfinite(volume))
    if broken.any():
        raise ModelError(
            f"the model decodes {broken.sum()} of {len(latents)} latents to values that are not finite, first "
            f"{latents[broken][0]}; stay within the prior's range or train again"
        )
    rdf = np.clip(rdf, 0, None)
    species = model.card.get("species", ())
    if len(species) > 1:
        rdf = rdf.reshape(len(rdf), len(channel_pairs(species)), -1)
    return [Replica(i, latents[i].copy(), rdf[i], float(volume[i])) for i in range(len(latents))]
