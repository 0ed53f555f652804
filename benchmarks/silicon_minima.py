r"""Minima of silicon crystals by first principles, from few labels: Newton steps with the Hessian of a potential.

    python benchmarks/silicon_minima.py --cells cells.extxyz
    python -m maise_bridge label cells.extxyz --preset silicon --ecut 400 --kspacing 0.2 0.12 \
        --set symmetry.point_group=true --out silicon_minima_labels.extxyz
    python benchmarks/silicon_minima.py silicon_minima_labels.extxyz --cells next.extxyz

The first line writes the minima of the model. The last one adds to the model's energy what is linear in strain and
displacements, so that stress and forces are those of a label, and relaxes that. Where a crystal has several labels, two
between which what is left of the step is shortest are mixed (the secant), as the model's Hessian is not that of first
principles. It writes the cells found, to be labelled again, and benchmarks/results/silicon_minima.json: lattice
constants, positions and energies there, and the strain that is left. The cutoff must be high enough for the stress to
be the derivative of the energy: an equation of state of scaled diamonds (`scaled_diamond`) checks it.
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.eos import EquationOfState
from ase.io import read, write
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress
from ase.units import GPa

from ase_hvae.data import load_known
from ase_hvae.relax import relax
from ase_hvae.symmetry import symmetrize
from maise_bridge import MaiseCalculator

ROOT = Path(__file__).parents[1]
NAMES = ("diamond", "lonsdaleite", "bc8", "st12", "beta-Sn", "Si24")
LENGTH = 5.0  # Å, of a unit of fractional coordinates in the length of a step
SCALED = "scaled_diamond"
SCALES = (0.98, 0.99, 1.01, 1.02)  # of the lattice constant


class Tilted(Calculator):
    """A potential plus what is linear in strain and displacements, so that one crystal has given forces and stress.

    Parameters
    ----------
    calc : Calculator
    reference : Atoms
        The crystal.
    forces : ndarray, shape (n_atoms, 3)
        Wanted there; eV/Å.
    stress : ndarray, shape (6,)
        Wanted there; eV/Å³.
    """

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012 (as ASE has it)

    def __init__(self, calc: Calculator, reference: Atoms, forces: np.ndarray, stress: np.ndarray) -> None:
        super().__init__()
        self.calc, self.cell, self.volume = calc, reference.cell.array, reference.get_volume()
        self.scaled_positions = reference.get_scaled_positions(wrap=False)
        found = reference.copy()
        found.calc = calc
        self.forces = forces - found.get_forces()
        self.stress = voigt_6_to_full_3x3_stress(stress - found.get_stress())

    def calculate(self, atoms: Atoms, properties: list[str], system_changes: list[str] = all_changes) -> None:
        """Energy, forces and stress; the strain is the symmetric part of the deformation less one."""
        super().calculate(atoms, properties, system_changes)
        bare = atoms.copy()
        bare.calc = self.calc
        deformation = np.linalg.solve(self.cell, atoms.cell.array)
        moves = (atoms.get_scaled_positions(wrap=False) - self.scaled_positions) @ self.cell
        linear = self.volume * np.sum(self.stress * (deformation - np.eye(3))) - np.sum(self.forces * moves)
        stress = deformation.T @ self.stress * self.volume / atoms.get_volume()
        self.results = {
            "energy": bare.get_potential_energy() + linear,
            "forces": bare.get_forces() + self.forces @ np.linalg.inv(deformation).T,
            "stress": bare.get_stress() + full_3x3_to_voigt_6_stress((stress + stress.T) / 2),
        }


@dataclass(frozen=True, eq=False)
class Minimum:
    """A minimum by first principles.

    Attributes
    ----------
    atoms : Atoms
        The crystal there.
    energy_per_atom : float
        There; eV.
    label : Atoms
        The label with the shortest step to go; with energy, forces and stress.
    n_labels : int
        How many were mixed.
    strain : float
        Largest component of the strain that is left.
    """

    atoms: Atoms
    energy_per_atom: float
    label: Atoms
    n_labels: int
    strain: float


def step(label: Atoms, calc: Calculator) -> np.ndarray:
    """Change of the coordinates to the minimum, as far as the model's Hessian is right."""
    bare = Atoms(label.numbers, positions=label.positions, cell=label.cell, pbc=True)
    found = relax(bare, Tilted(calc, bare, label.get_forces(), label.get_stress()), fmax=1e-4, max_steps=1000)
    if not found.converged:
        raise ValueError(f"{label.info['config_type']}: the step did not converge, fmax {found.fmax:.3g} eV/Å")
    return coordinates(found.atoms) - coordinates(bare)


def coordinates(atoms: Atoms) -> np.ndarray:
    """Rows of the cell, then fractional coordinates from the first atom times LENGTH; Å, shape (3 + n_atoms, 3)."""
    scaled_positions = atoms.get_scaled_positions(wrap=False)
    return np.concatenate([atoms.cell.array, LENGTH * (scaled_positions - scaled_positions[0])])


def minimum(labels: list[Atoms], calc: Calculator) -> Minimum:
    """Minimum from the labels of one crystal, which have the same order of atoms in cells of one setting."""
    starts, steps = [coordinates(label) for label in labels], [step(label, calc) for label in labels]
    first = min(range(len(labels)), key=lambda number: np.linalg.norm(steps[number]))
    start, left, n_labels = starts[first], steps[first], 1
    for one, other in itertools.combinations(range(len(labels)), 2):
        apart, change = starts[other] - starts[one], steps[other] - steps[one]
        apart[3:] -= LENGTH * np.round(apart[3:] / LENGTH)
        if np.abs(apart).max() > 0.2:
            raise ValueError(f"labels of {labels[first].info['config_type']} are in other settings, or 0.2 Å apart")
        share = -np.sum(steps[one] * change) / np.sum(change * change)
        remainder = steps[one] + share * change
        if 0 <= share <= 1 and np.linalg.norm(remainder) < np.linalg.norm(left):
            start, left, n_labels = starts[one] + share * apart, remainder, 2
    end = start + left
    atoms = Atoms(labels[first].numbers, cell=end[:3], scaled_positions=end[3:] / LENGTH, pbc=True)
    return Minimum(
        atoms=atoms,
        energy_per_atom=(labels[first].get_potential_energy() + gain(labels[first], atoms)) / len(atoms),
        label=labels[first],
        n_labels=n_labels,
        strain=float(np.abs(np.linalg.solve(start[:3], left[:3])).max()),
    )


def gain(label: Atoms, atoms: Atoms) -> float:
    """Energy (eV) from a label to the minimum `atoms` of a quadratic energy: half of what its gradient says.

    A common translation of all atoms changes nothing, as their forces add up to nothing.
    """
    strain = np.linalg.solve(label.cell.array, atoms.cell.array) - np.eye(3)
    moves = (coordinates(atoms) - coordinates(label))[3:] / LENGTH
    moves = (moves - np.round(moves)) @ label.cell.array
    work = label.get_volume() * np.sum(voigt_6_to_full_3x3_stress(label.get_stress()) * strain)
    return float(work - np.sum(label.get_forces() * moves)) / 2


def lattice_constants(atoms: Atoms) -> dict[str, float]:
    """Constants of the conventional cell; Å and degrees."""
    ideal = symmetrize(atoms, symprec=1e-2).atoms
    return {name: float(value) for name, value in ideal.cell.get_bravais_lattice().vars().items()}


def describe(found: Minimum) -> dict[str, Any]:
    """One crystal for the JSON file."""
    stress = found.label.get_stress() / GPa
    return {
        "name": found.label.info["config_type"].removeprefix("minimum_"),
        "lattice_constants": lattice_constants(found.atoms),
        "volume_per_atom": found.atoms.get_volume() / len(found.atoms),
        "energy_per_atom": found.energy_per_atom,
        "cell": found.atoms.cell.array.tolist(),
        "scaled_positions": found.atoms.get_scaled_positions().tolist(),
        "kspacing": float(found.label.info["kspacing"]),
        "n_labels": found.n_labels,
        "strain_left": found.strain,
        "label": {
            "stress": float(np.abs(stress).max()),
            "fmax": float(np.linalg.norm(found.label.get_forces(), axis=1).max()),
            "energy_per_atom": found.label.get_potential_energy() / len(found.label),
        },
    }


def equation_of_state(labels: list[Atoms]) -> dict[str, float]:
    """Of diamond by energies alone: lattice constant (Å), bulk modulus (GPa), eV/atom; and the constant by stresses."""
    fit = EquationOfState(
        [label.get_volume() for label in labels],
        [label.get_potential_energy() for label in labels],
        eos="birchmurnaghan",
    )
    volume, energy, modulus = fit.fit(warn=False)
    constants = [(4 * label.get_volume()) ** (1 / 3) for label in labels]
    pressures = [-label.get_stress()[:3].mean() for label in labels]
    line = np.polyfit(pressures, constants, 3)
    return {
        "lattice_constant": float((4 * volume) ** (1 / 3)),
        "bulk_modulus": float(modulus / GPa),
        "energy_per_atom": float(energy / 2),
        "lattice_constant_by_stress": float(line[-1]),
    }


def start_cells(calc: Calculator) -> list[Atoms]:
    """Minima of the model, and scaled diamonds."""
    known = {atoms.info["name"]: atoms for atoms in load_known("Si")}
    cells = []
    for name in NAMES:
        atoms = symmetrize(relax(known[name], calc, fmax=1e-3).atoms, symprec=1e-2).atoms
        atoms.info = {"config_type": f"minimum_{name}"}
        cells.append(atoms)
    for scale in SCALES:
        atoms = bulk("Si", a=scale * lattice_constants(cells[0])["a"])
        atoms.info = {"config_type": SCALED}
        cells.append(atoms)
    return cells


def without_kspacing(label: Atoms) -> dict[str, Any]:
    """Settings of a label but for the k spacing, which each crystal has its own of."""
    settings = label.info["settings"]
    small = {name: value for name, value in settings["small"].items() if name != "kspacing"}
    return {name: value for name, value in settings.items() if name != "kspacing"} | {"small": small}


def evaluate(labels: list[Atoms], calc: Calculator) -> tuple[list[Minimum], dict[str, Any]]:
    """The minima, and the result for the JSON file."""
    minima = []
    for name in NAMES:
        own = [label for label in labels if label.info["config_type"] == f"minimum_{name}"]
        if not own:
            raise ValueError(f"no label of {name} (config_type minimum_{name}); label the cells that --cells writes")
        minima.append(minimum(own, calc))
    diamonds = [label for label in labels if label.info["config_type"] in (SCALED, "minimum_diamond")]
    result = {
        "settings": without_kspacing(labels[0]),
        "program": labels[0].info["program"],
        "crystals": [describe(found) for found in minima],
        "diamond_by_energies": equation_of_state(diamonds),
    }
    return minima, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", nargs="*", type=Path, help="files of labels with the same settings but for k")
    parser.add_argument("--cells", type=Path, help="file to write the cells to that are to be labelled")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "silicon_minima.json")
    options = parser.parse_args()
    calc = MaiseCalculator("silicon")
    cells = start_cells(calc)
    if options.labels:
        labels = [label for path in options.labels for label in read(path, ":")]
        if any(without_kspacing(label) != without_kspacing(labels[0]) for label in labels):
            raise ValueError(f"{', '.join(map(str, options.labels))} hold labels of different settings, not k alone")
        minima, result = evaluate(labels, calc)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        cells = [found.atoms for found in minima]
        for atoms, name in zip(cells, NAMES, strict=True):
            atoms.info = {"config_type": f"minimum_{name}"}
        for row in result["crystals"]:
            print(row["name"], row["lattice_constants"], row["energy_per_atom"], row["strain_left"])
        print(result["diamond_by_energies"])
    if options.cells:
        write(options.cells, cells)


if __name__ == "__main__":
    main()
