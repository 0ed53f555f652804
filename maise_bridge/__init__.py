"""MAISE neural-network potentials as ASE calculators; usable without ase_hvae."""
