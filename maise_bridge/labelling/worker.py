"""A worker process: it reads structures as lines of JSON, and answers each with results or the cause of a failure.

It is started by :mod:`maise_bridge.labelling.processes`, perhaps in another interpreter than the command's, and needs
numpy and ASE only. Whatever libraries print goes to the log, not between the answers.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from maise_bridge.labelling.calculators import Computed, Program, compute, open_program
from maise_bridge.labelling.settings import LabelSettings

LARGEST_FORCE = 200.0  # eV/Å; labels beyond are refused by `maise_bridge.dataset`
LARGEST_NET_FORCE = 0.5  # eV/Å per atom; a crystal pulls itself nowhere
LARGEST_STRESS = 20.0  # eV/Å³
LARGEST_ENERGY = 1e6  # eV/atom


def encode(atoms: Atoms) -> dict[str, Any]:
    """Structure as JSON types; floats keep all their digits."""
    entry = {
        "numbers": atoms.numbers.tolist(),
        "positions": atoms.positions.tolist(),
        "cell": atoms.cell.array.tolist(),
        "pbc": atoms.pbc.tolist(),
    }
    if atoms.has("initial_magmoms"):
        entry["magmoms"] = atoms.get_initial_magnetic_moments().tolist()
    return entry


def decode(entry: Mapping[str, Any]) -> Atoms:
    """Structure from :func:`encode`."""
    return Atoms(**entry)


def check_results(computed: Computed) -> None:
    """Raise ValueError if results are missing, not finite or absurd."""
    n_atoms = len(computed.atoms)
    shapes = {"energy": (), "forces": (n_atoms, 3), "stress": (6,)}
    for name, shape in shapes.items():
        value = np.asarray(getattr(computed, name), dtype=float)
        if value.shape != shape:
            raise ValueError(f"{name} has the shape {value.shape}, not {shape}")
        if not np.isfinite(value).all():
            raise ValueError(f"{name} not finite")
    net = np.linalg.norm(np.sum(computed.forces, axis=0)) / n_atoms
    limits = (
        ("energy", abs(computed.energy) / n_atoms, LARGEST_ENERGY, "eV/atom"),
        ("largest force", np.abs(computed.forces).max(), LARGEST_FORCE, "eV/Å"),
        ("net force", net, LARGEST_NET_FORCE, "eV/Å per atom"),
        ("largest stress", np.abs(computed.stress).max(), LARGEST_STRESS, "eV/Å³"),
    )
    for name, found, limit, unit in limits:
        if found > limit:
            raise ValueError(f"absurd {name}: {found:.4g} {unit}, limit {limit:g}; do atoms overlap?")


def main(life: int) -> None:
    """Serve until standard input ends.

    Parameters
    ----------
    life : int
        Descriptor of a pipe that ends with the parent process; a watching shell then kills this process and all that
        it started, even if a library hangs.
    """
    watch = ["sh", "-c", "read line; kill -KILL 0"]
    with open(os.devnull, "wb") as null:
        subprocess.Popen(watch, stdin=life, stdout=null, stderr=null)
    os.close(life)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print to standard output goes to the log
    warnings.filterwarnings("ignore")
    start = json.loads(sys.stdin.readline())
    settings = LabelSettings(start["calculator"], start["options"])
    try:
        program = open_program(settings, start["species"])
    except Exception as error:  # of a foreign program; the parent stops with this message
        _answer(answers, {"setup_error": _describe(error)})
        return
    _answer(answers, {"identity": dict(program.identity), "versions": dict(program.versions)})
    for line in sys.stdin:
        _answer(answers, _serve(program, decode(json.loads(line)), Path(start["scratch"])))


def _answer(answers: Any, message: Mapping[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def _serve(program: Program, atoms: Atoms, folder: Path) -> dict[str, Any]:
    before = _cpu_seconds()
    folder.mkdir(parents=True)
    try:
        computed = compute(program, atoms, folder)
        check_results(computed)
    except Exception as error:  # of a foreign program, whose errors have no common type
        said = _last_words(folder)
        cause = _describe(error) + (f"; it said: {said}" if said else "")
        return {"failure": cause, "cpu": _cpu_seconds() - before}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "atoms": encode(computed.atoms),
        "energy": computed.energy,
        "free_energy": computed.free_energy,
        "forces": computed.forces.tolist(),
        "stress": computed.stress.tolist(),
        "note": computed.note,
        "cpu": _cpu_seconds() - before,
    }


def _cpu_seconds() -> float:
    """Seconds of this process and of the programs that it waited for."""
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _last_words(folder: Path) -> str:
    """What a program said in its folder of its failure: messages of pw.x, else its last lines."""
    texts = {}
    for name in ("espresso.pwo", "espresso.err", "vasp.out"):
        file = folder / name
        texts[name] = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    output = texts.pop("espresso.pwo")
    said = re.findall(r"^ *%+\n(.*?)^ *%+$", output, re.MULTILINE | re.DOTALL)  # between lines of per cent signs
    said += re.findall(r"^.*convergence NOT achieved.*$", output, re.MULTILINE)
    for text in texts.values():
        said += [line for line in text.split("\n") if line.strip()][-3:]
    return " | ".join(" ".join(message.split()) for message in said)[-500:]
