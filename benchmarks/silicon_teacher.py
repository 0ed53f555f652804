"""Labels of a teacher: a universal potential tuned to the first-principles labels, and what it says of many crystals.

    python benchmarks/silicon_teacher.py pool --out pool.extxyz
    python benchmarks/silicon_teacher.py tune --out teacher.pt [--fold 2]
    python benchmarks/silicon_teacher.py label pool.extxyz --teacher teacher.pt --out silicon_teacher.extxyz.gz

Needs sevenn 0.13.0 beside the package for the last two, whose wheel holds the weights of SevenNet-0 (Park et al., J.
Chem. Theory Comput. 20, 4857 (2024)). ``pool`` draws crystals such as a search meets: reconstructed from replicas,
random ones from dense to dilute, raw, part-relaxed, relaxed, rattled around minima; known ones strained and rattled.
``tune`` fits all weights of SevenNet-0 to energies, forces and stresses of the shipped labels, without those that
network `fold` of the committee was not fitted to, and tells errors on these and on the minima of
``silicon_labels_later.extxyz.gz``, which are never fitted, after each epoch. ``label`` writes energies, forces and
stresses of the teacher on the scale of the labels, as extended XYZ; `maise_bridge train` takes them beside the others.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from maise_bridge.structure_files import read_structures

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "maise_bridge" / "models"
LABELS, LATER = MODELS / "silicon_labels.extxyz.gz", ROOT / "benchmarks" / "silicon_labels_later.extxyz.gz"
UNIVERSAL, CUTOFF = "7net-0", 5.0  # the potential and the range of its messages; Å
MAX_ATOMS = 16
STEPS = (0, 0, 3, 10, 200, 200)  # of relaxation of a crystal of the pool, one of these
RATTLE, STRAIN = 0.1, 0.03  # of half of the minima; Å
HIGHEST, LARGEST_FORCE = 4.0, 15.0  # rows that are fitted; eV/atom above the lowest, eV/Å
HIGHEST_TAUGHT = 2.0  # rows of the pool that are kept; eV/atom above the lowest
SCALES = {"energy": 0.02, "forces": 0.2, "stress": 0.01}  # where the loss turns from squares to absolute values
BATCH = 4
AVERAGE = 0.99  # of the running mean of the weights
SEVENN = np.array([0, 1, 2, 5, 3, 4])  # ASE's stresses in sevenn's order (xx yy zz xy yz zx, sign of the virial)


def draw_pool(n: int, seed: int) -> Iterator[Atoms]:
    """Crystals of three sources: two fifths of them reconstructed, a fifth random, two fifths around known ones."""
    from quality_potential import random_crystal

    from ase_hvae import HVAEGenerator
    from ase_hvae.data import load_known
    from maise_bridge.sampling import sample_pool

    rng = np.random.default_rng(seed)
    generator = HVAEGenerator(seed=seed, natoms="2-10", n=n)
    reconstructed = [generator.get_new_candidate() for _ in range(2 * n // 5)]
    randoms = [random_crystal(rng) for _ in range(n // 5)]
    yield from staged(reconstructed, "replica", rng)
    yield from staged([atoms for atoms in randoms if len(atoms) <= MAX_ATOMS], "random", rng)
    known = [atoms for atoms in load_known("Si") if len(atoms) <= MAX_ATOMS]
    yield from sample_pool(known, n=2 * n // 5, max_atoms=MAX_ATOMS, seed=seed).structures


def staged(crystals: Sequence[Atoms], name: str, rng: np.random.Generator) -> Iterator[Atoms]:
    """Each crystal raw, after some steps of relaxation by the shipped model, at its minimum or rattled around it."""
    from ase_hvae.relax import RelaxResult, relax_many
    from maise_bridge import MaiseCalculator

    steps = rng.choice(STEPS, len(crystals))
    for wanted in sorted(set(STEPS)):
        chosen = [crystals[i] for i in np.flatnonzero(steps == wanted)]
        if wanted:
            found = dict(relax_many(chosen, MaiseCalculator(), fmax=0.05, max_steps=wanted))
            chosen = [found[i].atoms for i in sorted(found) if isinstance(found[i], RelaxResult)]
        for number, atoms in enumerate(chosen):
            atoms = Atoms(atoms.numbers, cell=atoms.cell, scaled_positions=atoms.get_scaled_positions(), pbc=True)
            if wanted == max(STEPS) and number % 2:
                strain = rng.normal(0, STRAIN, (3, 3))
                atoms.set_cell(atoms.cell @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
                atoms.rattle(rng.uniform(0, RATTLE), rng=rng)
            atoms.info["config_type"] = f"{name}_{wanted}"
            yield atoms


def universal(state: dict[str, Any] | None = None) -> Any:
    """SevenNet-0 as a torch module for batches of graphs, with other weights if there are any."""
    from sevenn.util import model_from_checkpoint

    model, _ = model_from_checkpoint(UNIVERSAL)
    if state is not None:
        model.load_state_dict(state, strict=False)  # all that is fitted; the rest is constants of e3nn
    model.set_is_batch_data(True)
    return model


def graphs(rows: Sequence[Atoms], lowest: float) -> list[Any]:
    """Graphs of sevenn; with labels, energies in eV/atom above `lowest`, those of rows that have them."""
    from sevenn.atom_graph_data import AtomGraphData
    from sevenn.train.dataload import unlabeled_atoms_to_graph

    result = []
    for atoms in rows:
        graph = unlabeled_atoms_to_graph(atoms.copy(), CUTOFF)
        graph = AtomGraphData.from_numpy_dict(graph) if isinstance(graph, dict) else graph
        if atoms.calc is not None:
            stress = atoms.calc.results.get("stress", np.full(6, np.nan))
            graph["label_energy"] = torch.tensor([energy_of(atoms) - lowest], dtype=torch.float32)
            graph["label_forces"] = torch.tensor(atoms.get_forces(), dtype=torch.float32)
            graph["label_stress"] = torch.tensor(stress[None, SEVENN], dtype=torch.float32)
        result.append(graph)
    return result


def energy_of(atoms: Atoms) -> float:
    """Labelled energy; eV/atom."""
    return float(atoms.get_potential_energy()) / len(atoms)


def predict(model: Any, rows: Sequence[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Energies (n,) in eV/atom, forces (n_atoms, 3) of all atoms, stresses (n, 6) in sevenn's order."""
    from torch_geometric.loader import DataLoader

    model.eval()
    energies, forces, stresses = [], [], []
    for batch in DataLoader(list(rows), batch_size=8):
        out = model(batch)
        energies.append((out["inferred_total_energy"].detach() / batch["num_atoms"]).numpy())
        forces.append(out["inferred_force"].detach().numpy())
        stresses.append(-out["inferred_stress"].detach().numpy())
    return np.concatenate(energies), np.concatenate(forces), np.concatenate(stresses)


def huber(values: torch.Tensor) -> torch.Tensor:
    """Half the square up to 1, linear beyond."""
    return torch.nn.functional.huber_loss(values, torch.zeros_like(values), reduction="none")


def loss_of(model: Any, batch: Any, shift: float) -> torch.Tensor:
    """Errors of energy, forces and stress of a batch, those of high rows counting less."""
    out, size = model(batch), batch["num_atoms"]
    weight = 1 / (1 + batch["label_energy"].clamp(min=0) ** 2)
    energy = out["inferred_total_energy"] / size + shift - batch["label_energy"]
    of_atom = torch.repeat_interleave(weight / size, size)
    stress = -out["inferred_stress"] - batch["label_stress"]
    stress = torch.where(torch.isfinite(stress), stress, torch.zeros_like(stress))
    forces = huber((out["inferred_force"] - batch["label_forces"]) / SCALES["forces"]).sum(1)
    return (
        (weight * huber(energy / SCALES["energy"])).mean()
        + (of_atom * forces).sum() / len(size)
        + (weight[:, None] * huber(stress / SCALES["stress"])).mean()
    )


def errors(model: Any, rows: Sequence[Any], shift: float, window: float) -> str:
    """Root mean square (mean absolute) error of energies and root mean square of forces up to `window` eV/atom."""
    chosen = [row for row in rows if float(row["label_energy"][0]) <= window]
    if not chosen:
        return "-"
    energies, forces, _ = predict(model, chosen)
    wrong = 1000 * (energies + shift - np.array([float(row["label_energy"][0]) for row in chosen]))
    off = forces - np.concatenate([row["label_forces"].numpy() for row in chosen])
    spread, mean = np.sqrt((wrong**2).mean()), np.abs(wrong).mean()
    return f"{spread:.1f} ({mean:.1f}) meV/atom, {np.sqrt((off**2).mean()):.3f} eV/Å of {len(chosen)} rows"


def held_out(fold: int | None) -> set[int]:
    """Positions of the labels that a network of the committee was not fitted to."""
    if fold is None:
        return set()
    card = json.loads((MODELS / f"silicon_{fold}.model.json").read_text())
    places = (re.search(rf"{LABELS.name}, structure (\d+)", source) for source in card["split"]["test"])
    return {int(place[1]) for place in places if place}


def tune(options: argparse.Namespace) -> None:
    """Fit SevenNet-0 to the shipped labels."""
    rows, held = list(read_structures(LABELS)), held_out(options.fold)
    lowest = min(map(energy_of, rows))
    sound = [energy_of(a) - lowest < HIGHEST and np.abs(a.get_forces()).max() < LARGEST_FORCE for a in rows]
    fitted = graphs([rows[i] for i in range(len(rows)) if sound[i] and i not in held], lowest)
    tests = {
        "held out": graphs([rows[i] for i in sorted(held)], lowest),
        "later minima": graphs(list(read_structures(LATER)), lowest),
    }
    model = universal()
    energies, _, _ = predict(model, fitted[:200])
    shift = float(np.median([float(row["label_energy"][0]) for row in fitted[:200]] - energies))
    start = time.time()
    print(f"{len(fitted)} rows to fit")
    for epoch, mean in enumerate(epochs(model, fitted, shift, options.epochs, options.rate)):
        print(f"epoch {epoch + 1} of {options.epochs}, {time.time() - start:.0f} s")
        for name, chosen in tests.items():
            for window in (0.5, 1.0):
                print(f"  {name}, up to {window} eV/atom: {errors(mean, chosen, shift, window)}", flush=True)
        fit = {key: value.detach() for key, value in mean.named_parameters()}
        torch.save({"state": fit, "shift": float(shift + lowest), "lowest": float(lowest)}, options.out)


def epochs(model: Any, fitted: Sequence[Any], shift: float, n_epochs: int, highest_rate: float) -> Iterator[Any]:
    """Fit the weights by Adam, the rate falling as a cosine; the running mean of the weights after each epoch."""
    from torch_geometric.loader import DataLoader

    mean = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=highest_rate, weight_decay=0.0)
    n_steps, step = n_epochs * math.ceil(len(fitted) / BATCH), 0
    for epoch in range(n_epochs):
        model.train()
        torch.manual_seed(epoch)
        for batch in DataLoader(list(fitted), batch_size=BATCH, shuffle=True):
            rate = highest_rate * min(1, step / 50) * 0.5 * (1 + math.cos(math.pi * step / n_steps))
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            loss_of(model, batch, shift).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            step += 1
            keep = min(AVERAGE, (1 + step) / (10 + step))
            with torch.no_grad():
                for old, new in zip(mean.parameters(), model.parameters(), strict=True):
                    old.mul_(keep).add_(new, alpha=1 - keep)
        yield mean


def label(options: argparse.Namespace) -> None:
    """Write what the teacher says of the crystals of a file."""
    saved = torch.load(options.teacher)
    rows = [row for row in read_structures(options.pool) if len(row) <= options.max_atoms]
    rows = [rows[i] for i in sorted(np.random.default_rng(0).permutation(len(rows))[: options.n])]
    model = universal(saved["state"])
    energies, forces, stresses = predict(model, graphs([Atoms(row) for row in rows], saved["lowest"]))
    ends = np.cumsum([len(row) for row in rows])
    labels = []
    for row, energy, own, stress in zip(rows, energies, np.split(forces, ends[:-1]), stresses, strict=True):
        if energy + saved["shift"] - saved["lowest"] > HIGHEST_TAUGHT or np.abs(own).max() > LARGEST_FORCE:
            continue
        atoms = Atoms(row.numbers, cell=np.round(row.cell.array, 6), positions=np.round(row.positions, 5), pbc=True)
        atoms.info["config_type"] = f"taught_{row.info.get('config_type', 'known')}"
        atoms.calc = SinglePointCalculator(
            atoms,
            energy=round(float(energy + saved["shift"]) * len(atoms), 5),
            forces=np.round(own.astype(float), 4),
            stress=np.round(stress[np.argsort(SEVENN)].astype(float), 6),
        )
        labels.append(atoms)
    write(options.out, labels, format="extxyz")
    print(f"wrote {options.out}: {len(labels)} of {len(rows)} crystals")


def main() -> None:
    """Run a step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("pool")
    command.add_argument("--n", type=int, default=6000)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--out", required=True)
    command = commands.add_parser("tune")
    command.add_argument("--fold", type=int)
    command.add_argument("--epochs", type=int, default=6)
    command.add_argument("--rate", type=float, default=1e-3)
    command.add_argument("--out", required=True)
    command = commands.add_parser("label")
    command.add_argument("pool")
    command.add_argument("--n", type=int, default=3400, help="crystals, at random")
    command.add_argument("--max-atoms", type=int, default=10)
    command.add_argument("--teacher", required=True)
    command.add_argument("--out", required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.command == "pool":
        write(options.out, list(draw_pool(options.n, options.seed)), format="extxyz")
    else:
        {"tune": tune, "label": label}[options.command](options)


if __name__ == "__main__":
    main()
