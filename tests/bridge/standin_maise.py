"""Stand-in for the `maise` program: replays a folder of texts, or computes with the native potential.

``python standin_maise.py replay FOLDER`` copies the output files of FOLDER, prints its stdout and stderr, and ends with
its exit code. ``python standin_maise.py compute`` reads `setup`, `POSCAR` and `model` of the current folder; it knows
single points (JOBT 20) and the test of the forces (JOBT 23).
"""

import shutil
import sys
from pathlib import Path

import numpy as np

RULE = "-" * 106


def replay(folder):
    for name in ("OUTCAR", "OSZICAR", "CONTCAR"):
        if (folder / name).exists():
            shutil.copy(folder / name, name)
    sys.stdout.write((folder / "stdout.txt").read_text())
    sys.stderr.write((folder / "stderr.txt").read_text())
    return int((folder / "exit_code.txt").read_text())


def compute():
    from maise_bridge.model_file import read_model
    from maise_bridge.poscar import read_poscar
    from maise_bridge.potential import MaisePotential
    from maise_bridge.setup_file import read_setup

    tags = read_setup("setup")
    atoms = read_poscar("POSCAR")
    atoms.pbc = tags["NDIM"] == 3
    result = MaisePotential(read_model("model"), core_repulsion=tags["UREP"]).evaluate([atoms])[0]
    if tags["JOBT"] == 23:
        for force in result.forces:
            print("ANA " + " ".join(f"{x:23.12f}" for x in force))  # noqa: T201
        print("\nCHECK PASSED")  # noqa: T201
        return 0
    stress = -(np.zeros(6) if tags["NDIM"] == 0 else result.stress)[[0, 1, 2, 5, 3, 4]]
    numbers = (result.energy, result.energy, result.energy / len(atoms), result.energy / len(atoms))
    rows = np.column_stack([atoms.positions, result.forces, result.energies - result.repulsion])
    lines = [RULE, "    Cell optimization    with maise.3.0.00   model 00000000   on  Mon Nov 23 03:02:41 2026", RULE]
    lines += [f"   dimensionality          {tags['NDIM']}", f"   total number of atoms   {len(atoms)}", RULE, "", RULE]
    lines += ["      LATTICE VECTORS      VOLUME (Angst^3/atom) ", RULE]
    volumes = [f" {atoms.cell.volume / len(atoms):.6f} vol", "", ""]
    lines += ["".join(f"{x:14.6f}" for x in row) + end for row, end in zip(atoms.cell.array, volumes, strict=True)]
    lines += [RULE, "     POSITION (Angst)     TOTAL-FORCE (eV/Angst)     ATOM ENERGY (eV)", RULE]
    lines += ["".join(f" {x:14.6f}" for x in row[:6]) + f" {row[6]:19.12f}" for row in rows]
    lines += [RULE, "  Total " + "".join(f" {x:15.8f}" for x in stress)]
    lines += ["  in kB " + "".join(f" {x:15.8f}" for x in stress * 1602.176565), RULE]
    lines += [
        "  iter   0   total enthalpy={:15.8f}   energy={:15.8f} {:15.8f} {:15.8f}".format(*numbers),
        RULE,
        "",
        "",
        "",
    ]
    lines += [" Total CPU time used (sec):      0.01000000     wall time (sec):     0.01000000"]
    Path("OUTCAR").write_text("\n".join(lines) + "\n")
    print(f"    0     {result.energy:.16f}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(compute() if sys.argv[1] == "compute" else replay(Path(sys.argv[2])))
