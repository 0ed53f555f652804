"""Find known crystals from nothing but their own RDF, number of atoms and volume per atom.

    OMP_NUM_THREADS=1 python benchmarks/quality_reconstruct.py [--structures FILE] [--largest 8]
        [--seconds-per-crystal 60] [--seed 0] [--prior uniform|others] [--json OUT]

``--prior others`` proposes the Wyckoff positions of all other crystals of the file half of the time. Prints a Markdown
table and writes benchmarks/results/quality_reconstruct.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.io.ase import AseAtomsAdaptor

from ase_hvae.data import load_known
from ase_hvae.rdf import RDFSettings, radial_distribution
from ase_hvae.reconstruct import WyckoffPrior, reconstruct
from ase_hvae.reconstruct.wyckoff import space_group
from ase_hvae.structures import read_structures
from ase_hvae.symmetry import primitive

ROOT = Path(__file__).parents[1]
SETTINGS = RDFSettings()


def search(target: Atoms, prior: WyckoffPrior, seconds: float, seed: int, number: int) -> dict[str, Any]:
    """Search one crystal until it is found or the CPU seconds are spent."""
    rdf = radial_distribution(target, rmax=SETTINGS.rmax, n_bins=SETTINGS.n_bins, sigma=SETTINGS.sigma)
    volume = target.get_volume() / len(target)
    matcher = StructureMatcher(ltol=0.05, stol=0.05, angle_tol=2, scale=False)
    wanted = AseAtomsAdaptor.get_structure(target)
    counts: Counter[str] = Counter()
    best, spent, attempt = 2.0, 0.0, 0
    while spent < seconds:
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number, attempt)))
        start = time.process_time()
        result = reconstruct(rdf, volume, species=target.symbols[0], natoms=(len(target),), prior=prior, rng=rng)
        spent += time.process_time() - start
        attempt += 1
        counts.update(result.counts)
        for crystal in result.crystals:
            best = min(best, crystal.pearson_distance)
            if crystal.pearson_distance < 0.02 and matcher.fit(wanted, AseAtomsAdaptor.get_structure(crystal.atoms)):
                how = {"spacegroup": crystal.spacegroup, "wyckoffs": list(crystal.wyckoffs)}
                return _record(True, spent, attempt, best, counts) | how
    return _record(False, spent, attempt, best, counts)


def _record(found: bool, spent: float, attempts: int, best: float, counts: Counter[str]) -> dict[str, Any]:
    return {
        "found": found,
        "cpu_seconds": round(spent, 2),
        "calls": attempts,
        "best_pearson_distance": round(best, 6),
        "counts": dict(counts),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown table of the results."""
    lines = [
        "| crystal | atoms | space group | found | CPU s | proposals | best distance | found in |",
        "|" + "---|" * 8,
    ]
    for row in rows:
        cells = (
            row["name"],
            row["n_atoms"],
            row["target_spacegroup"],
            "yes" if row["found"] else "no",
            row["cpu_seconds"],
            row["counts"]["proposed"],
            row["best_pearson_distance"],
            row.get("spacegroup", ""),
        )
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", help="any file ASE reads; default: the shipped silicon crystals")
    parser.add_argument("--largest", type=int, default=8, help="atoms in the primitive cell (default: 8)")
    parser.add_argument("--seconds-per-crystal", type=float, default=60.0, help="CPU seconds (default: 60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prior", choices=("uniform", "others"), default="uniform")
    parser.add_argument("--json", default=str(ROOT / "benchmarks/results/quality_reconstruct.json"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    crystals = read_structures(options.structures) if options.structures else load_known("Si")
    names = [atoms.info.get("name", f"structure {index}") for index, atoms in enumerate(crystals)]
    crystals = [primitive(atoms) for atoms in crystals]
    for number in range(1, 231):
        space_group(number)  # tables are read once a process; not part of the times
    rows = []
    for index, (name, atoms) in enumerate(zip(names, crystals, strict=True)):
        if len(atoms) > options.largest:
            continue
        others = [other for k, other in enumerate(crystals) if k != index] if options.prior == "others" else []
        prior = WyckoffPrior.from_structures(others)
        facts = WyckoffPrior.from_structures([atoms]).learned[0]
        row = {"name": name, "n_atoms": len(atoms), "target_spacegroup": facts[0], "target_letters": list(facts[1])}
        rows.append(row | search(atoms, prior, options.seconds_per_crystal, options.seed, index))
        print(f"{name}: {'found' if rows[-1]['found'] else 'not found'} after {rows[-1]['cpu_seconds']} s", flush=True)
    found = sum(row["found"] for row in rows)
    print(f"\n{table(rows)}\n\nfound {found} of {len(rows)} with the {options.prior} prior")
    sha = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    versions = {name: version(name) for name in ("torch", "numpy", "pyxtal", "vesin")}
    settings = {k: v for k, v in vars(options).items() if k not in ("json", "structures")}
    result = {"git_sha": sha.strip(), "versions": versions, "options": settings, "found": found, "crystals": rows}
    Path(options.json).parent.mkdir(parents=True, exist_ok=True)
    Path(options.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
