"""Stand-in for the `vasp` program: reads the inputs, computes with EMT, writes OUTCAR, CONTCAR and vasprun.xml.

``python standin_vasp.py MODE [N_ATOMS]`` runs in the folder of INCAR, POSCAR, POTCAR and perhaps KPOINTS. It refuses
inputs that would not give VASP what a relaxation by ASE needs. Modes: ``good`` computes; ``exit`` ends with code 1;
``silent`` ends well without any output; ``truncated`` cuts vasprun.xml off after the last number, ``headless`` before
the first; ``unconverged`` does not reach EDIFF. With N_ATOMS only structures of that many atoms fail.

Numbers have VASP's digits: eight decimals of energies (eV), forces (eV/Å), stresses (kB) and positions.
"""

import sys
from pathlib import Path

import numpy as np
from ase.calculators.emt import EMT
from ase.io.vasp import read_vasp, write_vasp
from ase.units import GPa

NEEDED = {"ISIF": 3, "NSW": 0, "IBRION": -1, "ENCUT": None, "EDIFF": None, "PREC": None, "ISMEAR": None}
STEP = """  <scstep>
   <energy>
    <i name="e_fr_energy">{energy:16.8f} </i>
    <i name="e_wo_entrp">{energy:16.8f} </i>
    <i name="e_0_energy">{energy:16.8f} </i>
   </energy>
  </scstep>
"""


def read_incar():
    """Tags of INCAR, numbers as numbers."""
    tags = {}
    for line in Path("INCAR").read_text().splitlines():
        name, _, value = line.partition("=")
        try:
            tags[name.strip().upper()] = float(value)
        except ValueError:
            tags[name.strip().upper()] = value.strip()
    return tags


def check(tags, atoms):
    """What is wrong with the inputs."""
    problems = [f"INCAR lacks {name}" for name in NEEDED if name not in tags]
    problems += [f"{name} is {tags.get(name)}" for name, value in NEEDED.items() if value not in (None, tags.get(name))]
    titles = [line.split()[3].split("_")[0] for line in Path("POTCAR").read_text().splitlines() if "TITEL" in line]
    if titles != list(dict.fromkeys(atoms.symbols)):
        problems.append(f"POTCAR has {titles}, POSCAR {atoms.symbols}")
    enmax = [float(line.split()[2].strip(";")) for line in Path("POTCAR").read_text().splitlines() if "ENMAX" in line]
    if tags.get("ENCUT", 0.0) < max(enmax):
        problems.append(f"ENCUT is {tags.get('ENCUT')}, ENMAX {max(enmax)}")
    if ("KSPACING" in tags) == Path("KPOINTS").exists():
        problems.append("k-points must come either from KSPACING or from KPOINTS")
    return problems


def varray(name, rows, form="16.8f"):
    """An array of vasprun.xml."""
    lines = "".join("   <v>" + " ".join(f"{x:{form}}" for x in row) + " </v>\n" for row in rows)
    return f'  <varray name="{name}" >\n{lines}  </varray>\n'


def structure(atoms, name=""):
    """Cell and positions of vasprun.xml."""
    positions = varray("positions", atoms.get_scaled_positions())
    return f"  <structure{name}>\n  <crystal>\n{varray('basis', atoms.cell)}  </crystal>\n{positions}  </structure>\n"


def vasprun(atoms, energy, forces, stress):
    """The file vasprun.xml; stress in kB with VASP's sign, (3, 3)."""
    species = "".join(f"    <rc><c>{symbol:2s}</c><c>   1</c></rc>\n" for symbol in atoms.symbols)
    head = (
        f'<?xml version="1.0" encoding="ISO-8859-1"?>\n<modeling>\n <atominfo>\n  <array name="atoms" ><set>\n{species}'
    )
    head += "  </set></array>\n </atominfo>\n <kpoints>\n"
    head += varray("kpointlist", [[0, 0, 0]]) + varray("weights", [[1]]) + " </kpoints>\n"
    head += structure(atoms, ' name="initialpos" ')
    body = " <calculation>\n" + STEP.format(energy=energy) + structure(atoms)
    body += varray("forces", forces) + varray("stress", stress)
    body += STEP.format(energy=energy).replace("  <scstep>\n", "").replace("  </scstep>\n", "") + " </calculation>\n"
    return head, body + "</modeling>\n"


def outcar(tags, energy, stress, converged):
    """The lines of OUTCAR that ASE reads."""
    kilobars = "".join(f"{stress[i, j]:12.5f}" for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (2, 0)))
    reason = "because EDIFF is reached" if converged else "EDIFF was not reached (unconverged)"
    return f""" vasp.6.4.2 stand-in
   k-points           NKPTS =      1   k-points in BZ     NKDIM =      1   number of bands    NBANDS=      8
   EDIFF  = {tags["EDIFF"]:.1E}   stopping-criterion for ELM
----------------------------------------- Iteration    1(   1)  ---------------------------------------
------------------------ aborting loop {reason} ----------------------------------------
  free  energy   TOTEN  = {energy:18.8f} eV
  in kB {kilobars}
  energy  without entropy= {energy:16.8f}  energy(sigma->0) = {energy:16.8f}
"""


def main(mode, n_atoms=None):
    tags, atoms = read_incar(), read_vasp("POSCAR")
    problems = check(tags, atoms)
    if problems:
        sys.exit("; ".join(problems))
    if n_atoms is not None and len(atoms) != int(n_atoms):
        mode = "good"
    if mode == "exit":
        print(" ZBRENT: fatal error in bracketing")  # noqa: T201
        sys.exit(1)
    if mode == "silent":
        return
    atoms.calc = EMT()
    energy, stress = atoms.get_potential_energy(), -atoms.get_stress(voigt=False) / GPa * 10.0
    head, body = vasprun(atoms, energy, atoms.get_forces(), stress)
    body = {"truncated": body[: body.index("</modeling>") - 20], "headless": ""}.get(mode, body)
    Path("vasprun.xml").write_text(head + body)
    Path("OUTCAR").write_text(outcar(tags, energy, stress, mode != "unconverged"))
    write_vasp("CONTCAR", atoms)
    np.savetxt("OSZICAR", [[1, energy]])


if __name__ == "__main__":
    main(*sys.argv[1:])
