"""Look into the latent space: where known crystals lie, how likely they are, what lies between two of them."""

import numpy as np

from ase_hvae import HVAEGenerator
from ase_hvae.latent import plot_latent_map


def main() -> None:
    """Map of the latent plane as a picture, likelihoods, and the way from diamond to beta-tin."""
    generator = HVAEGenerator(seed=1)
    known = {atoms.info["name"]: atoms for atoms in generator.source.known}
    latents = generator.latent_map(n_per_axis=41)
    print("wrote", plot_latent_map(latents, "latent_map.png"), "with", len(latents.names), "known crystals")

    strained = known["diamond"].copy()
    strained.set_cell(1.1 * strained.cell, scale_atoms=True)
    for name, atoms in {"diamond": known["diamond"], "bc8": known["bc8"], "diamond, 10 % too wide": strained}.items():
        mean, _ = generator.encode(atoms)
        print(f"{name:23s} at {np.round(mean[0], 2)}, log p {generator.log_likelihood(atoms)[0]:.1f} nats")

    for replica in generator.interpolate(known["diamond"], known["beta-Sn"], 5):
        print(
            f"{np.round(replica.latent, 2)}: {replica.volume_per_atom:.1f} Å³/atom, g(r) up to {replica.rdf.max():.1f}"
        )


if __name__ == "__main__":
    main()
