"""Measure a silicon potential: diamond, its phonons, the known crystals, held-out labels, holes.

    OMP_NUM_THREADS=1 python benchmarks/quality_potential.py [MODEL] [--largest 24] [--random 200] [--only phonons]

Prints Markdown tables and writes benchmarks/results/quality_potential.json. Held-out errors are of the networks alone,
without the core repulsion, which is no part of the fit; each row is judged by those of the model's networks that were
fitted without its family. All else is of the model as it is used. PBE values are of GPAW at dense k, see
maise_bridge/models/README.md. With matscipy (pip install matscipy) the same numbers by the potentials of Stillinger and
Weber (Phys. Rev. B 31, 5262, 1985) and Tersoff (Phys. Rev. B 39, 5566, 1989) stand beside them, with sevenn (pip
install sevenn) those by a universal potential, SevenNet-l3i5 (Park et al., J. Chem. Theory Comput. 20, 4857, 2024),
whose weights come with the package; but for the parts of quality_minima.py: phonons and lattice constants of several
crystals. --only measures such parts, the other potentials ("references") or random crystals ("random") anew and keeps
the rest of the JSON file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, CalculatorError
from ase.eos import EquationOfState
from ase.units import GPa
from phonopy import Phonopy
from phonopy.structure.atoms import PhonopyAtoms
from pyxtal import pyxtal
from quality_minima import PARTS, TABLES

from ase_hvae import elasticity
from ase_hvae.data import load_known
from ase_hvae.errors import AseHvaeError
from ase_hvae.relax import RelaxLimits, RelaxResult, relax, relax_many
from ase_hvae.structures import min_distance
from maise_bridge import MaiseCalculator
from maise_bridge.calculator import find_model
from maise_bridge.structure_files import read_structures

ROOT = Path(__file__).parents[1]
LIMITS = RelaxLimits(volume_factor=10.0, length_factor=20.0)  # random crystals are compressed or dilute to begin with
DILUTE = 40.0  # volume per atom of sheets and chains, of no crystal; Å3
PBE_DIAMOND = -5.3978  # eV/atom, GPAW, converged in k
PBE = {"lattice_constant": 5.47, "bulk_modulus": 89.0, "c11": 152, "c12": 57, "c44": 73, "gamma_optical": 15.1}
PBE_PHASES = {
    "lonsdaleite": 11,
    "bc8": 158,
    "beta-Sn": 292,
    "simple hexagonal": 308,
    "hcp": 506,
    "bcc": 524,
    "fcc": 539,
}  # meV/atom above diamond


def diamond_numbers(calc: Calculator) -> tuple[dict[str, float], float]:
    """Lattice constant (Å), elasticity (GPa) and phonons (THz) of diamond, and its energy per atom (eV)."""
    found = relax(bulk("Si", a=5.47), calc, fmax=1e-4)
    volumes, energies = [], []
    for strain in np.linspace(-0.015, 0.015, 7):
        atoms = found.atoms.copy()
        atoms.set_cell(atoms.cell * (1 + strain), scale_atoms=True)
        atoms.calc = calc
        volumes.append(atoms.get_volume())
        energies.append(atoms.get_potential_energy())
    modulus = EquationOfState(volumes, energies, eos="birchmurnaghan").fit(warn=False)[2]
    gamma, lowest = phonon_numbers(found.atoms, calc)
    elastic = elasticity.compute(found.atoms, calc).tensor / GPa
    numbers = {
        "lattice_constant": float((4 * found.atoms.get_volume()) ** (1 / 3)),
        "bulk_modulus": float(modulus / GPa),
        "c11": float(elastic[0, 0]),
        "c12": float(elastic[0, 1]),
        "c44": float(elastic[3, 3]),
        "gamma_optical": gamma,
        "lowest_frequency": lowest,
    }
    return numbers, found.energy / 2


def phonon_numbers(atoms: Atoms, calc: Calculator, *, repeat: int = 3) -> tuple[float, float]:
    """Highest frequency at Gamma and lowest one on a mesh; THz."""
    unit = PhonopyAtoms(symbols=atoms.get_chemical_symbols(), cell=atoms.cell.array, positions=atoms.positions)
    phonon = Phonopy(unit, supercell_matrix=np.diag([repeat] * 3) @ [[-1, 1, 1], [1, -1, 1], [1, 1, -1]])
    phonon.generate_displacements(distance=0.01)
    forces = []
    for supercell in phonon.supercells_with_displacements:
        moved = Atoms(supercell.symbols, cell=supercell.cell, scaled_positions=supercell.scaled_positions, pbc=True)
        moved.calc = calc
        forces.append(moved.get_forces())
    phonon.forces = np.array(forces)
    phonon.produce_force_constants()
    phonon.symmetrize_force_constants()
    phonon.run_mesh([12] * 3, is_gamma_center=True)
    phonon.run_qpoints([[0, 0, 0]])
    return float(phonon.qpoints.frequencies.max()), float(phonon.mesh.frequencies.min())


def known_numbers(calc: Calculator, diamond: float, largest: int) -> list[dict[str, Any]]:
    """Energy above diamond (eV/atom) of the known crystals after relaxation, lowest first."""
    rows = []
    for atoms in load_known("Si"):
        if len(atoms) > largest:
            continue
        row: dict[str, Any] = {"name": atoms.info["name"], "n_atoms": len(atoms)}
        try:
            found = relax(atoms, calc, fmax=0.01, max_steps=400)
            row |= {
                "energy_above": found.energy / len(atoms) - diamond,
                "volume_change": found.atoms.get_volume() / atoms.get_volume() - 1,
                "converged": bool(found.converged),
            }
        except (AseHvaeError, CalculatorError) as error:
            row |= {"energy_above": float("nan"), "failure": str(error)}
        rows.append(row)
    return sorted(rows, key=lambda row: row["energy_above"])


def reference_calculators() -> dict[str, Calculator]:
    """Published potentials, those whose packages are installed."""
    return classical_calculators() | universal_calculators()


def universal_calculators() -> dict[str, Calculator]:
    """A potential for all elements by sevenn; none without it."""
    try:
        from sevenn.calculator import SevenNetCalculator
    except ImportError:
        return {}
    return {"SevenNet-l3i5": SevenNetCalculator("7net-l3i5", device="cpu")}


def classical_calculators() -> dict[str, Calculator]:
    """Silicon potentials by matscipy; none without it."""
    try:
        from matscipy.calculators.manybody import Manybody
        from matscipy.calculators.manybody.explicit_forms import StillingerWeber, TersoffBrenner
        from matscipy.calculators.manybody.explicit_forms.stillinger_weber import Stillinger_Weber_PRB_31_5262_Si
        from matscipy.calculators.manybody.explicit_forms.tersoff_brenner import Tersoff_PRB_39_5566_Si_C
    except ImportError:
        return {}
    return {
        "Stillinger-Weber": Manybody(**StillingerWeber(Stillinger_Weber_PRB_31_5262_Si)),
        "Tersoff": Manybody(**TersoffBrenner(Tersoff_PRB_39_5566_Si_C)),
    }


@dataclass(frozen=True, eq=False)
class Network:
    """One network of a model, without the core repulsion, and what it knows nothing of.

    Attributes
    ----------
    calc : Calculator
    held_out : frozenset of str
        Sources of the rows that were held out of its fit, as its card has them.
    """

    calc: Calculator
    held_out: frozenset[str]


def networks_of(path: Path) -> list[Network]:
    """Networks with cards: the model's own, or those of which it is the mean, which lie beside it as NAME_0.model."""
    found = []
    for file in (path, *sorted(path.parent.glob(f"{path.stem}_[0-9]{path.suffix}"))):
        card = file.with_name(f"{file.name}.json")
        if card.exists():
            held_out = frozenset(json.loads(card.read_text())["split"]["test"])
            found.append(Network(MaiseCalculator(file, core_repulsion=False), held_out))
            if file == path:
                break
    return found


def label_errors(networks: list[Network], window: float = 1.0) -> dict[str, float]:
    """Root mean square errors on held-out rows up to `window` above diamond; energies in eV/atom, forces in eV/Å.

    A row is given the mean of the networks that know nothing of it; energies are relative to diamond by each.
    """
    diamonds = [diamond_energy(network.calc) for network in networks]
    energies, forces = [], []
    for path in sorted({source.rpartition(", structure ")[0] for network in networks for source in network.held_out}):
        rows = read_structures(ROOT / "maise_bridge" / "models" / Path(path).name)
        for number, atoms in enumerate(rows):
            above = atoms.get_potential_energy() / len(atoms) - PBE_DIAMOND
            judges = [k for k, network in enumerate(networks) if f"{path}, structure {number}" in network.held_out]
            if not judges or above > window:
                continue
            bare = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)
            found = []
            for k in judges:
                bare.calc = networks[k].calc
                found.append((bare.get_potential_energy() / len(bare) - diamonds[k], bare.get_forces()))
            energies.append(np.mean([energy for energy, _ in found]) - above)
            forces.append((np.mean([force for _, force in found], axis=0) - atoms.get_forces()).ravel())
    return {
        "n": len(energies),
        "energy": float(np.sqrt(np.mean(np.square(energies)))),
        "forces": float(np.sqrt(np.mean(np.square(np.concatenate(forces))))),
    }


def diamond_energy(calc: Calculator) -> float:
    """Energy per atom of diamond at its minimum; eV."""
    return relax(bulk("Si", a=5.47), calc, fmax=1e-4).energy / 2


def measure(calc: Calculator, largest: int, networks: list[Network]) -> dict[str, Any]:
    """All numbers of one potential that do not need random crystals; errors on labels are those of `networks`."""
    numbers, energy = diamond_numbers(calc)
    found = {"diamond": numbers, "diamond_energy": energy, "known": known_numbers(calc, energy, largest)}
    return found | ({"held_out": label_errors(networks)} if networks else {})


def random_crystal(rng: np.random.Generator) -> Atoms:
    """Random symmetric crystal of 1-12 atoms, rattled, from dense (10 Å3 an atom) to dilute (45)."""
    while True:
        try:
            crystal = pyxtal()
            crystal.from_random(
                3, int(rng.integers(1, 231)), ["Si"], [int(rng.integers(1, 13))], random_state=int(rng.integers(2**31))
            )
            if crystal.valid:
                atoms = crystal.to_ase()
                break
        except Exception:  # pyxtal raises many kinds for impossible requests
            continue
    if len(atoms) > 24:
        return random_crystal(rng)
    atoms = Atoms(atoms.numbers, cell=atoms.cell, scaled_positions=atoms.get_scaled_positions(), pbc=True)
    scale = (np.exp(rng.uniform(np.log(10), np.log(45))) * len(atoms) / atoms.get_volume()) ** (1 / 3)
    atoms.set_cell(atoms.cell * scale, scale_atoms=True)
    atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
    return atoms if min_distance(atoms) > LIMITS.min_distance else random_crystal(rng)


def random_numbers(calc: Calculator, diamond: float, count: int, seed: int) -> dict[str, Any]:
    """Relax random crystals: how many end below diamond, leave wide bounds, or fall apart into sheets and chains."""
    streams = (np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,))) for number in range(count))
    crystals = [random_crystal(rng) for rng in streams]
    energies, failures, below, dilute, unconverged = [], [], [], [], 0
    options: dict[str, Any] = {"fmax": 0.05, "max_steps": 300, "limits": LIMITS}
    for number, found in sorted(relax_many(crystals, calc, **options), key=lambda pair: pair[0]):
        if not isinstance(found, RelaxResult):
            failures.append(f"{number}: {found}")
            continue
        n_atoms = len(found.atoms)
        row = {"number": number, "energy_above": found.energy / n_atoms - diamond, "n_atoms": n_atoms}
        unconverged += not found.converged
        energies.append(row["energy_above"])
        if row["energy_above"] < -2e-3:
            below.append(row)
        if found.atoms.get_volume() / n_atoms > DILUTE:
            dilute.append(row)
    return {
        "n": count,
        "seed": seed,
        "n_failed": len(failures),
        "failures": failures[:10],
        "n_unconverged": unconverged,
        "below_diamond": below,
        "dilute": dilute,
        "lowest": float(min(energies)) if energies else None,
        "within_0.3": int(np.sum(np.array(energies) < 0.3)),
    }


def comparison(result: dict[str, Any]) -> list[str]:
    """Table of the model beside other potentials and PBE."""
    columns = {"this model": result, **result["references"]}
    lines = [f"| quantity | {' | '.join(columns)} | PBE |", "|---" * (len(columns) + 2) + "|"]
    for name in result["diamond"]:
        values = " | ".join(f"{column['diamond'][name]:.3f}" for column in columns.values())
        lines.append(f"| diamond {name.replace('_', ' ')} | {values} | {PBE.get(name, '')} |")
    for name, wanted in PBE_PHASES.items():
        found = [next((r for r in column["known"] if r["name"] == name), None) for column in columns.values()]
        texts = ["-" if row is None else f"{1e3 * row['energy_above']:.0f}" for row in found]
        lines.append(f"| {name}, meV/atom above diamond | {' | '.join(texts)} | {wanted} |")
    if "held_out" in result:
        for name, title, factor in (("energy", "meV/atom", 1e3), ("forces", "eV/Å", 1.0)):
            values = " | ".join(f"{factor * column['held_out'][name]:.3g}" for column in columns.values())
            lines.append(f"| held-out {name}, {result['held_out']['n']} rows, network alone, {title} | {values} | 0 |")
    return lines


def markdown(result: dict[str, Any]) -> str:
    """Tables of the numbers."""
    lines = comparison(result)
    lines += ["", "| crystal | atoms | meV/atom above diamond | volume change |", "|---|---|---|---|"]
    for row in result["known"]:
        change = f"{100 * row['volume_change']:+.1f} %" if "volume_change" in row else row["failure"]
        lines.append(f"| {row['name']} | {row['n_atoms']} | {1e3 * row['energy_above']:.0f} | {change} |")
    holes = result["random"]
    lines += [
        *[line for name, table in TABLES.items() if name in result for line in ("", *table(result[name]))],
        "",
        f"{holes['n']} random crystals relaxed: {len(holes['below_diamond'])} end below diamond, {holes['n_failed']} "
        f"change their volume tenfold or worse, {len(holes['dilute'])} end as sheets or chains at more than "
        f"{DILUTE:.0f} Å3 an atom, {holes['within_0.3']} end within 0.3 eV/atom.",
    ]
    return "\n".join(lines)


def measure_all(path: Path, largest: int, count: int, seed: int) -> dict[str, Any]:
    """All numbers of a model."""
    networks = networks_of(path)
    calc = MaiseCalculator(path)
    numbers = measure(calc, largest, networks)
    sha = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "model": path.name,
        "sha256": sha256(path),
        "git": sha.stdout.strip(),
        **numbers,
        "references": measure_references(networks),
        "random": random_numbers(calc, numbers["diamond_energy"], count, seed),
        **{name: part(calc) for name, part in PARTS.items()},
    }


def measure_references(networks: list[Network]) -> dict[str, Any]:
    """Numbers of other potentials, on the rows that any of the networks knows nothing of."""
    everything = frozenset().union(*(network.held_out for network in networks))
    return {
        name: measure(other, 8, [Network(other, everything)] if networks else [])
        for name, other in reference_calculators().items()
    }


def update(results: Path, path: Path, names: list[str], count: int, seed: int) -> dict[str, Any]:
    """Results of a file with some parts measured anew."""
    result = json.loads(results.read_text())
    if result["sha256"] != sha256(path):
        raise ValueError(
            f"{results} is of the model {result['sha256']} (sha256), {path} is {sha256(path)}; omit --only"
        )
    calc = MaiseCalculator(path)
    if "references" in names:
        result["references"] |= measure_references(networks_of(path))
    if "random" in names:
        result["random"] = random_numbers(calc, result["diamond_energy"], count, seed)
    return result | {name: PARTS[name](calc) for name in names if name in PARTS}


def sha256(path: Path) -> str:
    """Hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="silicon")
    parser.add_argument("--largest", type=int, default=24, help="atoms of the largest known crystal to relax")
    parser.add_argument("--random", type=int, default=200, help="random crystals to relax")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", nargs="+", choices=(*PARTS, "references", "random"), help="parts to measure; the others are kept"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "quality_potential.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="pyxtal|pymatgen|ase.eos")
    path = find_model(options.model)
    if options.only:
        result = update(options.out, path, options.only, options.random, options.seed)
    else:
        result = measure_all(path, options.largest, options.random, options.seed)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(result))


if __name__ == "__main__":
    main()
