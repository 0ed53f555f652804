"""Relax the crystal in a CIF file with the shipped silicon potential.

usage: python 02_relax_cif.py [FILE.cif]; without a file a strained diamond crystal is written and used.
"""

import sys

from ase.build import bulk
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.optimize import FIRE

from maise_bridge import MaiseCalculator


def main(path: str | None = None) -> None:
    """Read, relax positions and cell, write beside the input."""
    if path is None:
        path = "strained_diamond.cif"
        write(path, bulk("Si", "diamond", 5.7))
    atoms = read(path)
    atoms.calc = MaiseCalculator(model="silicon")
    before = atoms.get_potential_energy() / len(atoms)
    FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=0.001, steps=300)
    after = atoms.get_potential_energy() / len(atoms)
    print(f"{path}: {before:.4f} -> {after:.4f} eV/atom, {atoms.get_volume() / len(atoms):.3f} Å³/atom")
    write(path.removesuffix(".cif") + "_relaxed.cif", atoms)


if __name__ == "__main__":
    main(*sys.argv[1:2])
