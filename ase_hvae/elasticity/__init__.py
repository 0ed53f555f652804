"""Elastic tensor of one crystal from strains: is it mechanically stable, how stiff is it?

The stress is differentiated by six strains, with ions relaxed in each strained cell or clamped to it. Under pressure
this gives Wallace's stress-strain coefficients, which decide on stability and hold the bulk modulus; at zero stress
they are the elastic constants.
"""

from ase_hvae.elasticity.strained import ElasticResult, compute
from ase_hvae.elasticity.tensor import (
    Moduli,
    debye_temperature,
    energy_tensor,
    moduli,
    rotate_tensor,
    stability,
    symmetrize_tensor,
)

__all__ = [
    "ElasticResult",
    "Moduli",
    "compute",
    "debye_temperature",
    "energy_tensor",
    "moduli",
    "rotate_tensor",
    "stability",
    "symmetrize_tensor",
]
