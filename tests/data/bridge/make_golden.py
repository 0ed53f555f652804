"""Write the golden files of maise_bridge: random models of our own and what the package computes with them.

    python tests/data/bridge/make_golden.py

The models have random weights, scaled so that energies are of the order of eV; they describe no material. The
numbers were made with a version that agrees with the real MAISE 3.0.00 on 31 reference cases (energies 1e-12 eV,
forces 1e-12 eV/Å, stresses 1e-13 eV/Å³, see tests/bridge/test_golden.py); the files keep later versions there.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
from ase import Atoms

from maise_bridge import MaiseModel, MaisePotential, read_model, write_model
from maise_bridge.basis import standard_basis
from maise_bridge.tables import descriptor_tables

FOLDER = Path(__file__).parent


def random_structure(rng: np.random.Generator, species: tuple[str, ...], n_atoms: int, pbc: bool = True) -> Atoms:
    """Triclinic cell of 16 Å³ per atom without distances below 1.7 Å."""
    while True:
        cell = np.eye(3) + 0.15 * rng.normal(size=(3, 3))
        cell *= (16.0 * n_atoms / abs(np.linalg.det(cell))) ** (1 / 3)
        atoms = Atoms(rng.choice(species, n_atoms), cell=cell, pbc=pbc)
        atoms.set_scaled_positions(np.round(rng.random((n_atoms, 3)), 6))
        distances = atoms.get_all_distances(mic=pbc) + 9.0 * np.eye(n_atoms)
        if np.linalg.det(cell) > 0 and distances.min() > 1.7:
            return atoms


def random_model(rng: np.random.Generator, species: tuple[str, ...], n_functions: int) -> MaiseModel:
    """Network with weights of order one over inputs scaled by the largest values of a few structures."""
    basis = standard_basis(n_functions)
    largest = np.zeros((len(species), basis.n_inputs(len(species))))
    for _ in range(4):
        atoms = random_structure(rng, species, 6)
        values, _ = descriptor_tables(atoms, basis, species)
        for s, symbol in enumerate(species):
            largest[s] = np.maximum(largest[s], values[atoms.symbols == symbol].max(0, initial=1e-3))
    widths = (largest.shape[1], 10, 10, 1)
    pairs = list(pairwise(widths))
    return MaiseModel.create(
        species,
        basis,
        maximum=largest,
        weights=[rng.normal(size=(len(species), n_out, n_in)) * 2 / np.sqrt(n_in) for n_in, n_out in pairs],
        biases=[rng.normal(size=(len(species), n_out)) * 0.3 for _, n_out in pairs],
        info={"reference": "random weights, ase-hvae tests", "trained on": "never"},
    )


def main() -> None:
    """Write model files and golden.json."""
    rng = np.random.default_rng(20260)
    cases = []
    for name, species, n_functions in (
        ("si", ("Si",), 51),
        ("mgsi", ("Mg", "Si"), 30),
        ("cgesi", ("C", "Ge", "Si"), 30),
    ):
        path = FOLDER / f"{name}.model"
        write_model(random_model(rng, species, n_functions), path)
        potential = MaisePotential(read_model(path))
        for n_atoms, pbc in ((1, True), (2, True), (5, True), (7, False)):
            atoms = random_structure(rng, species, n_atoms, pbc)
            result = potential.evaluate([atoms])[0]
            cases.append(
                {
                    "model": path.name,
                    "symbols": atoms.get_chemical_symbols(),
                    "cell": atoms.cell.tolist(),
                    "positions": atoms.positions.tolist(),
                    "pbc": pbc,
                    "energy": result.energy,
                    "energies": result.energies.tolist(),
                    "forces": result.forces.tolist(),
                    "virial": result.virial.tolist(),
                }
            )
    recipe = "tests/data/bridge/make_golden.py; eV, Å; virial = dE/d(strain) xx yy zz yz xz xy"
    (FOLDER / "golden.json").write_text(json.dumps({"recipe": recipe, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
