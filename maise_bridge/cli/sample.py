"""``sample``: structures to label, drawn around known crystals or chosen by a committee of models.

Without --select: volume scans, strains and rattles of the known crystals in FILE, supercells with small displacements,
elastic strains, vacancies, and random symmetric crystals of their compositions. With --select: structures of FILE, such
as the candidates.db of a run, about which the models of --committee disagree most or which lie outside of their input
ranges, different from each other and from --known.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ase import Atoms


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="crystals in any format of ASE; FILE@INDEX picks some, as in ASE")
    add("--index", default=":", help="which structures of files without @INDEX [all]")
    add("--out", type=Path, required=True, help="file for the structures, in the format of its name")
    add("--overwrite", action="store_true", help="replace OUT")
    add("--n", type=int, default=200, help="structures to draw [%(default)s]")
    add("--seed", type=int, default=0, help="of the draws [%(default)s]")
    add("--families", metavar="A,B", help="volume, rattle, phonon, elastic, vacancy, random [all]")
    add("--max-atoms", type=int, default=16, metavar="N", help="largest structure [%(default)s]")
    closest_help = "shortest distance, as a share of the shortest among known crystals or of the sum of covalent radii"
    add("--closest", type=float, default=0.75, metavar="SHARE", help=f"{closest_help} [%(default)s]")
    add("--known", nargs="+", default=[], metavar="FILE", help="structures not to draw again, such as labels")
    add("--select", type=int, metavar="K", help="choose K of the structures instead of drawing")
    add("--committee", nargs="+", default=[], metavar="MODEL", help="two or more models, for --select")
    parser.description = "\n".join((__doc__ or "").partition(": ")[2].splitlines())


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from maise_bridge.cli.files import check_output, read_structures, write_structures

    if (options.select is None) != (not options.committee):
        raise ValueError("--select K and --committee MODEL MODEL... belong together; give both or none")
    structures = [item.atoms for item in read_structures(options.files, options.index)]
    known = [item.atoms for item in read_structures(options.known)]
    kind = check_output(options.out, overwrite=options.overwrite, n_structures=options.select or options.n)
    images = _draw(structures, known, options) if options.select is None else _select(structures, known, options)
    if not images:
        raise ValueError(f"no structure was found; {options.out} is not written")
    write_structures(options.out, kind, images)
    print(f"wrote {options.out}: {len(images)} structures")
    return 0


def _draw(structures: list[Atoms], known: list[Atoms], options: argparse.Namespace) -> list[Atoms]:
    from maise_bridge.sampling import sample_pool
    from maise_bridge.sampling_families import FAMILIES

    families = tuple(FAMILIES) if options.families is None else tuple(options.families.split(","))
    pool = sample_pool(
        structures,
        n=options.n,
        seed=options.seed,
        max_atoms=options.max_atoms,
        families=families,
        closest=options.closest,
        exclude=known,
    )
    for name, wanted in pool.wanted.items():
        found = pool.found[name]
        print(f"{name:10s} {found:5d}" + (f" of {wanted}: no more was found" if found < wanted else ""))
    return list(pool.structures)


def _select(structures: list[Atoms], known: list[Atoms], options: argparse.Namespace) -> list[Atoms]:
    from maise_bridge.calculator import find_model
    from maise_bridge.cli.tables import Table
    from maise_bridge.model_file import read_network
    from maise_bridge.sampling_active import select_structures

    if options.families is not None:
        raise ValueError("--families is for drawing; leave it or --select away")
    committee = [read_network(find_model(model)) for model in options.committee]
    chosen = select_structures(
        structures,
        committee,
        options.select,
        known=known,
        max_atoms=options.max_atoms,
        closest=options.closest,
    )
    columns = {"atoms": "d", "dF eV/Å": "7.3f", "dE meV/atom": ".1f", "extrapolation": ".3g"}
    table = Table("structure", [atoms.info["config_type"] for atoms in chosen], columns)
    print(table.header)
    for atoms in chosen:
        spread, info = 1e3 * atoms.info["energy_spread"], atoms.info
        print(table.row(info["config_type"], [len(atoms), info["disagreement"], spread, info["extrapolation"]]))
    return chosen
