"""Find known crystals from nothing but their own RDF, number of atoms and volume per atom; and crystals of replicas.

    OMP_NUM_THREADS=1 python benchmarks/quality_reconstruct.py [--structures FILE] [--names NAME ...] [--smallest 1]
        [--largest 24] [--seconds-per-crystal 60] [--seed 0] [--prior uniform|others] [--replicas 225]
        [--seconds-per-replica 0.5] [--seconds-of-rejection 60] [--resume] [--json OUT]

Times are CPU seconds of one process. The file may hold compounds, which are searched from their partial g(r) and their
composition; ``benchmarks/compounds.extxyz`` has twenty of published structure (``--replicas 0``). ``--prior others``
proposes the Wyckoff positions of all other crystals of the file half of the time. ``--names`` picks crystals,
``--replicas`` how many decoded replicas of the grid are searched (0: none), ``--resume`` keeps what the JSON file holds
already. The replicas are set against plain rejection: PyXtal crystals are drawn once, scaled to each replica's volume
and compared with it; each replica is charged as if they had been drawn for it alone. Prints Markdown tables and writes
benchmarks/results/quality_reconstruct.json, after each crystal.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
import warnings
from collections import Counter
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.io.ase import AseAtomsAdaptor

from ase_hvae import sampling
from ase_hvae.data import load_known
from ase_hvae.hvae import load_model
from ase_hvae.rdf import RDFSettings, radial_distribution
from ase_hvae.reconstruct import Composition, WyckoffPrior, reconstruct
from ase_hvae.reconstruct.coordination import first_shells
from ase_hvae.reconstruct.drawing import draw
from ase_hvae.reconstruct.goal import Limits, Target
from ase_hvae.reconstruct.lattice import unlikely_translations
from ase_hvae.reconstruct.propose import STRICTNESS
from ase_hvae.reconstruct.tables import tabulate
from ase_hvae.reconstruct.wyckoff import space_group
from ase_hvae.replicas import Replica, decode
from ase_hvae.structures import min_distance, read_structures
from ase_hvae.symmetry import primitive

ROOT = Path(__file__).parents[1]
SETTINGS = RDFSettings()
THRESHOLD = 0.13  # Pearson distance of an accepted crystal
NATOMS = tuple(range(1, 9))  # atoms of the crystals of a replica
PROPOSALS, PROPOSALS_OF_LARGE = 2000, 10_000  # of a call; crystals of up to 8 atoms and larger ones
SHORTEST = 2.0  # shortest distance of a rejection crystal; Å


def search(target: Atoms, prior: WyckoffPrior, seconds: float, seed: int, number: int) -> dict[str, Any]:
    """Search one crystal until it is found or the CPU seconds are spent."""
    rdf = radial_distribution(target, rmax=SETTINGS.rmax, n_bins=SETTINGS.n_bins, sigma=SETTINGS.sigma)
    volume = target.get_volume() / len(target)
    matcher = StructureMatcher(ltol=0.05, stol=0.05, angle_tol=2, scale=False)
    wanted = AseAtomsAdaptor.get_structure(target)
    counts: Counter[str] = Counter()
    best, spent, attempt = 2.0, 0.0, 0
    n_proposals = PROPOSALS if len(target) <= max(NATOMS) else PROPOSALS_OF_LARGE
    while spent < seconds:
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number, attempt)))
        start = time.process_time()
        options = {"natoms": (len(target),), "prior": prior, "n_proposals": n_proposals, "rng": rng}
        result = reconstruct(rdf, volume, composition=str(target.symbols), **options)
        spent += time.process_time() - start
        attempt += 1
        counts.update(result.counts)
        best = min([best, *(crystal.pearson_distance for crystal in result.crystals)])
        near = [crystal for crystal in result.crystals if crystal.pearson_distance < 0.02]
        hits = [crystal for crystal in near if matcher.fit(wanted, AseAtomsAdaptor.get_structure(crystal.atoms))]
        if hits:
            ways = [{"spacegroup": hit.spacegroup, "wyckoffs": list(hit.wyckoffs)} for hit in hits]
            return _record(True, spent, attempt, best, counts) | {"ways": ways}
    return _record(False, spent, attempt, best, counts) | {"ways": []}


def _record(found: bool, spent: float, attempts: int, best: float, counts: Counter[str]) -> dict[str, Any]:
    return {
        "found": found,
        "cpu_seconds": round(spent, 2),
        "calls": attempts,
        "best_pearson_distance": round(best, 6),
        "counts": dict(counts),
    }


def search_crystals(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Search the known crystals one by one, adding a row each to the result."""
    crystals = read_structures(options.structures) if options.structures else load_known("Si")
    names = [atoms.info.get("name", f"structure {index}") for index, atoms in enumerate(crystals)]
    unknown = sorted(set(options.names or ()) - set(names))
    if unknown:
        raise SystemExit(f"no crystal is named {', '.join(unknown)}; names are {', '.join(names)}")
    crystals = [primitive(atoms) for atoms in crystals]
    done = {row["name"] for row in result["crystals"]}
    for index, (name, atoms) in enumerate(zip(names, crystals, strict=True)):
        if not options.smallest <= len(atoms) <= options.largest or name in done:
            continue
        if options.names and name not in options.names:
            continue
        others = [other for k, other in enumerate(crystals) if k != index] if options.prior == "others" else []
        facts = WyckoffPrior.from_structures([atoms]).learned[0]
        row = {"name": name, "n_atoms": len(atoms), "target_spacegroup": facts[0], "target_orbits": list(facts[1])}
        prior = WyckoffPrior.from_structures(others)
        row |= search(atoms, prior, options.seconds_per_crystal, options.seed, index)
        result["crystals"].append(row | {"limit_seconds": options.seconds_per_crystal})
        print(f"{name}: {'found' if row['found'] else 'not found'} after {row['cpu_seconds']} s", flush=True)
        write(options, result)


def search_replicas(options: argparse.Namespace) -> dict[str, Any]:
    """Accepted crystals per CPU second of decoded replicas, by steering and by rejection."""
    model = load_model(None)
    settings = RDFSettings(**model.card["rdf"])
    latents = sampling.sample_grid(latent_dim=model.latent_dim)
    chosen = np.linspace(0, len(latents) - 1, options.replicas).round().astype(int)
    replicas = decode(model, latents[chosen])
    prior = WyckoffPrior.from_sites((entry["spacegroup"], entry["wyckoff"]) for entry in model.card["crystals"])
    steered = []
    for number, replica in enumerate(replicas):
        spent, attempt, accepted = 0.0, 0, 0
        while spent < options.seconds_per_replica:
            rng = np.random.default_rng(np.random.SeedSequence(options.seed, spawn_key=(10**6, int(number), attempt)))
            start = time.process_time()
            arguments = {"settings": settings, "natoms": NATOMS, "prior": prior, "threshold": THRESHOLD, "rng": rng}
            found = reconstruct(replica.rdf, replica.volume_per_atom, **arguments)
            spent, attempt = spent + time.process_time() - start, attempt + 1
            accepted += len(found.crystals)
        steered.append(accepted / spent)
    pool, spent = random_crystals(options.seconds_of_rejection, options.seed)
    rejected = [count / spent for count in _count_accepted(pool, replicas, settings)]
    return {
        "replicas": len(replicas),
        "steered_per_cpu_second": {"mean": float(np.mean(steered)), "lowest": float(np.min(steered))},
        "rejection_per_cpu_second": {"mean": float(np.mean(rejected)), "highest": float(np.max(rejected))},
        "ratio_of_means": float(np.mean(steered) / np.mean(rejected)) if np.any(rejected) else None,
        "rejection_crystals": len(pool),
        "rejection_cpu_seconds": round(spent, 1),
        "replicas_without_any_by_rejection": int(np.sum(np.array(rejected) == 0)),
        "rates_steered": np.round(steered, 3).tolist(),
        "rates_rejection": np.round(rejected, 5).tolist(),
    }


def random_crystals(seconds: float, seed: int) -> tuple[list[Atoms], float]:
    """Draw PyXtal crystals of 1 to 8 atoms in random space groups; those that came out, and the CPU seconds."""
    from pyxtal import pyxtal

    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(10**6 + 1,)))
    crystals: list[Atoms] = []
    spent = 0.0
    while spent < seconds:
        start = time.process_time()
        n_atoms, number = int(rng.integers(1, 9)), int(rng.integers(1, 231))
        n_conventional = n_atoms * round(1 / np.linalg.det(space_group(number).primitive))
        crystal = pyxtal()
        try:
            crystal.from_random(3, number, ["Si"], [n_conventional], random_state=rng)
        except Exception:  # PyXtal's own names for "does not fit"
            crystal.valid = False
        if crystal.valid:
            crystals.append(primitive(crystal.to_ase()))
        spent += time.process_time() - start
    return crystals, spent


def _count_accepted(pool: list[Atoms], replicas: list[Replica], settings: RDFSettings) -> list[int]:
    """How many crystals of the pool, scaled to its volume, are near each replica with no short distance."""
    counts = [0] * len(replicas)
    volumes = np.array([round(5 * replica.volume_per_atom) / 5 for replica in replicas])  # within 1 %
    for volume in np.unique(volumes):
        scaled = [_scaled(atoms, volume) for atoms in pool]
        scaled = [atoms for atoms in scaled if min_distance(atoms) >= SHORTEST]
        rdfs = [
            radial_distribution(a, rmax=settings.rmax, n_bins=settings.n_bins, sigma=settings.sigma) for a in scaled
        ]
        for k in np.flatnonzero(volumes == volume):
            correlations = np.corrcoef(replicas[k].rdf, rdfs)[0, 1:]
            counts[k] = int((1 - correlations <= THRESHOLD).sum())
    return counts


def _scaled(atoms: Atoms, volume_per_atom: float) -> Atoms:
    """Copy with another volume per atom."""
    atoms = atoms.copy()
    atoms.set_cell(atoms.cell * (volume_per_atom * len(atoms) / atoms.get_volume()) ** (1 / 3), scale_atoms=True)
    return atoms


def screening_rate(n_atoms: int = 8, n_proposals: int = 50_000) -> float:
    """Proposals of one number of atoms that are drawn and screened per CPU second."""
    diamond = next(atoms for atoms in load_known("Si") if atoms.info["name"] == "diamond")
    target = Target(radial_distribution(diamond), SETTINGS, Limits(2.0, 20.0, 0.1))
    goal, shells = target.goal(sigma=0.3, rmax=5.5), first_shells(target, Composition.parse("Si"))
    unlikely = unlikely_translations(target, Composition.parse("Si"))
    strictness = np.full(n_proposals, STRICTNESS)
    tables = tabulate(list(islice(WyckoffPrior().draw((n_atoms,), np.random.default_rng(0)), 500)))
    template = np.arange(n_proposals) % 500
    cells, coordinates = np.zeros((n_proposals, 3, 3)), np.zeros((n_proposals, int(tables.n_free.max())))
    times = []
    for seed in range(4):  # the first may compile
        start = time.process_time()
        draw(tables, template, strictness, np.uint64(seed), 0, goal, shells, unlikely, 0.1, cells, coordinates)
        times.append(time.process_time() - start)
    return n_proposals / float(np.median(times[1:]))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown table of the known crystals."""
    head = ("crystal", "atoms", "space group", "found", "CPU s", "proposals", "best distance", "found in")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        ways = ", ".join(sorted({str(way["spacegroup"]) for way in row["ways"]}, key=int))
        cells = (row["name"], row["n_atoms"], row["target_spacegroup"], "yes" if row["found"] else "no")
        cells += (row["cpu_seconds"], row["counts"]["proposed"], row["best_pearson_distance"], ways)
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def write(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Write the result with its origin."""
    sha = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    result["git_sha"] = sha.strip()
    result["machine"] = platform.processor() or platform.machine()
    result["versions"] = {name: version(name) for name in ("numba", "numpy", "pyxtal")}
    result["options"] = {k: v for k, v in vars(options).items() if k not in ("json", "structures")}
    result["found"] = sum(row["found"] for row in result["crystals"])
    Path(options.json).parent.mkdir(parents=True, exist_ok=True)
    Path(options.json).write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", help="any file ASE reads; default: the shipped silicon crystals")
    parser.add_argument("--names", nargs="*", help="search these crystals only")
    parser.add_argument("--smallest", type=int, default=1, help="atoms in the primitive cell (default: 1)")
    parser.add_argument("--largest", type=int, default=24, help="atoms in the primitive cell (default: 24)")
    parser.add_argument("--seconds-per-crystal", type=float, default=60.0, help="CPU seconds (default: 60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prior", choices=("uniform", "others"), default="uniform")
    parser.add_argument("--replicas", type=int, default=225, help="decoded replicas of the grid (default: 225)")
    parser.add_argument("--seconds-per-replica", type=float, default=0.5, help="CPU seconds (default: 0.5)")
    parser.add_argument("--seconds-of-rejection", type=float, default=60.0, help="CPU seconds (default: 60)")
    parser.add_argument("--resume", action="store_true", help="keep what the JSON file holds")
    parser.add_argument("--json", default=str(ROOT / "benchmarks/results/quality_reconstruct.json"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    result: dict[str, Any] = {"crystals": []}
    if options.resume and Path(options.json).exists():
        result = json.loads(Path(options.json).read_text())
    for number in range(1, 231):
        space_group(number)  # tables are read once a process; not part of the times
    result["screened_per_cpu_second"] = round(screening_rate())
    _warm_up()
    search_crystals(options, result)
    if options.replicas and "replicas" not in result:
        result["replicas"] = search_replicas(options)
    write(options, result)
    print(f"\n{table(result['crystals'])}\n\nfound {result['found']} of {len(result['crystals'])}")
    print(f"{result['screened_per_cpu_second']} proposals of 8 atoms drawn and screened per CPU second")
    for name, value in result.get("replicas", {}).items():
        if not isinstance(value, list):
            print(f"{name}: {value}")


def _warm_up() -> None:
    """Compile what is not in the cache yet."""
    diamond = load_known("Si")[0]
    reconstruct(radial_distribution(diamond), 20.0, n_proposals=200, n_steered=2, rng=np.random.default_rng(0))


if __name__ == "__main__":
    main()
