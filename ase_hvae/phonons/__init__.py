"""Harmonic phonons: is a crystal a minimum, where does its softest mode lead, what does its motion cost?

The only importer of phonopy. :func:`compute` finds the frequencies; everything else takes its result.
"""

from ase_hvae.phonons.bands import BandStructure, band_structure, plot_band_structure
from ase_hvae.phonons.harmonic import PhononResult, compute
from ase_hvae.phonons.softmode import SoftMode, displace, softest_mode
from ase_hvae.phonons.supercell import choose_supercell, commensurate_supercell
from ase_hvae.phonons.thermal import HarmonicEnergy, harmonic_energy

__all__ = [
    "BandStructure",
    "HarmonicEnergy",
    "PhononResult",
    "SoftMode",
    "band_structure",
    "choose_supercell",
    "commensurate_supercell",
    "compute",
    "displace",
    "harmonic_energy",
    "plot_band_structure",
    "softest_mode",
]
