"""Minima of a silicon potential: are open networks stable, and how do lattices and energies compare with PBE?

Parts of quality_potential.py. PBE minima are those of results/silicon_minima.json, made by silicon_minima.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from silicon_minima import lattice_constants

from ase_hvae import phonons
from ase_hvae.data import load_known
from ase_hvae.relax import relax

MINIMA = Path(__file__).parent / "results" / "silicon_minima.json"
OPEN_NETWORKS = ("diamond", "lonsdaleite", "bc8", "Si24", "clathrate-II", "clathrate-I")
SUPERCELLS = (10.0, 14.0)  # Å between images


def stability_numbers(calc: Calculator) -> list[dict[str, Any]]:
    """Phonons of open networks by the check of `generate`, in supercells of two sizes; THz, imaginary ones negative."""
    known = {atoms.info["name"]: atoms for atoms in load_known("Si")}
    rows = []
    for name in OPEN_NETWORKS:
        found = relax(known[name], calc, fmax=1e-3)
        for min_length in SUPERCELLS:
            result = phonons.compute(found.atoms, calc, min_length=min_length)
            rows.append(
                {
                    "name": name,
                    "n_atoms": len(result.atoms),
                    "min_length": min_length,
                    "n_supercell_atoms": result.n_supercell_atoms,
                    "n_qpoints": int(result.weights.sum()),
                    "lowest_frequency": result.min_frequency,
                    "highest_frequency": result.max_frequency,
                }
            )
    return rows


def minima_numbers(calc: Calculator) -> list[dict[str, Any]]:
    """Lattice constants (Å), positions (Å) and energies above diamond (eV/atom) at the minimum, beside those of PBE."""
    rows = []
    reference = json.loads(MINIMA.read_text())["crystals"]
    for crystal in reference:
        cell, positions = np.array(crystal["cell"]), np.array(crystal["scaled_positions"])
        start = Atoms(f"Si{len(positions)}", cell=cell, scaled_positions=positions, pbc=True)
        found = relax(start, calc, fmax=1e-3)
        moves = found.atoms.get_scaled_positions(wrap=False) - positions
        rows.append(
            {
                "name": crystal["name"],
                "lattice_constants": lattice_constants(found.atoms),
                "pbe_lattice_constants": crystal["lattice_constants"],
                "shift": float(np.linalg.norm((moves - moves.mean(0)) @ cell, axis=1).max()),
                "energy_per_atom": found.energy / len(start),
                "pbe_energy_per_atom": crystal["energy_per_atom"],
            }
        )
    for row in rows:
        row["energy_above"] = row["energy_per_atom"] - rows[0]["energy_per_atom"]
        row["pbe_energy_above"] = row["pbe_energy_per_atom"] - rows[0]["pbe_energy_per_atom"]
    return rows


def phonon_table(rows: list[dict[str, Any]]) -> list[str]:
    """Table of the lowest frequencies."""
    lines = [
        "| crystal | atoms | atoms of the supercell | mesh points | lowest, THz | highest, THz |",
        "|---" * 6 + "|",
    ]
    for row in rows:
        counts = f"{row['n_atoms']} | {row['n_supercell_atoms']} | {row['n_qpoints']}"
        lowest = f"{row['lowest_frequency']:.3f}".replace("-0.000", "0.000")
        lines.append(f"| {row['name']} | {counts} | {lowest} | {row['highest_frequency']:.2f} |")
    return lines


def minima_table(rows: list[dict[str, Any]]) -> list[str]:
    """Table of lattice constants and energies at the minima of model and PBE."""
    titles = ("crystal", "constants, Å", "PBE", "error, %", "largest shift, Å", "meV/atom above diamond", "PBE")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        names = [name for name in row["pbe_lattice_constants"] if name in "abc"]
        found, wanted = ([row[key][name] for name in names] for key in ("lattice_constants", "pbe_lattice_constants"))
        texts = [", ".join(f"{value:.3f}" for value in values) for values in (found, wanted)]
        errors = ", ".join(f"{100 * (x / y - 1):+.2f}" for x, y in zip(found, wanted, strict=True))
        energies = f"{1e3 * row['energy_above']:.1f} | {1e3 * row['pbe_energy_above']:.1f}"
        lines.append(f"| {row['name']} | {' | '.join(texts)} | {errors} | {row['shift']:.3f} | {energies} |")
    return lines


PARTS: dict[str, Callable[[Calculator], Any]] = {"phonons": stability_numbers, "minima": minima_numbers}
TABLES = {"phonons": phonon_table, "minima": minima_table}
