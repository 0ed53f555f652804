"""``convert``: structure files to and from MAISE's, outputs of MAISE to trajectories, model files to one.

Structures: any format of ASE, or an OUTCAR of MAISE (all its points, with energies, forces and stresses), to any format
of ASE. A POSCAR is written as MAISE wants it, species in the order of a model. Models: a file is checked and written
anew; several networks with the same inputs are merged into the network of their mean.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maise_bridge.cli.files import Structure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    add = parser.add_argument
    add("files", nargs="+", metavar="IN", help="structures, outputs of MAISE, or models; FILE@INDEX picks structures")
    add("out", type=Path, metavar="OUT", help="its name says the format, as in out.extxyz, out.cif, POSCAR")
    add("--overwrite", action="store_true", help="replace OUT")
    add("--index", default=":", help="which structures of files without @INDEX [all]")
    order = parser.add_mutually_exclusive_group()
    order.add_argument("--model", metavar="M", help="a POSCAR follows the order of this model's species")
    order.add_argument("--species", nargs="+", metavar="X", help="order of the species in a POSCAR [as they come]")
    parser.description = "\n".join((__doc__ or "").partition(": ")[2].splitlines())


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from maise_bridge.cli.files import check_output, is_model_file, read_structures, write_structures

    models = [file for file in options.files if is_model_file(file)]
    if models:
        if len(models) < len(options.files):
            other = next(file for file in options.files if file not in models)
            raise ValueError(f"{models[0]} is a model and {other} is none; convert them one at a time")
        return _convert_models(options)
    structures = read_structures(options.files, options.index)
    kind = check_output(options.out, overwrite=options.overwrite, n_structures=len(structures))
    if kind == "vasp":
        return _write_poscar(structures[0], options)
    if options.model or options.species:
        raise ValueError(f"{options.out}: an order of species is for a POSCAR; leave --model and --species away")
    write_structures(options.out, kind, [structure.atoms for structure in structures])
    n = len(structures)
    print(f"wrote {options.out}: {n} structure{'s' if n > 1 else ''}")
    return 0


def _write_poscar(structure: Structure, options: argparse.Namespace) -> int:
    from maise_bridge.calculator import find_model
    from maise_bridge.cli.files import replacing
    from maise_bridge.model_file import read_model
    from maise_bridge.poscar import write_poscar

    atoms = structure.atoms
    species: Sequence[str] = options.species or tuple(dict.fromkeys(atoms.symbols))
    if options.model:
        species = read_model(find_model(options.model)).species
    try:
        with replacing(options.out) as partial:
            write_poscar(atoms, partial, species)
    except ValueError as error:
        raise ValueError(f"{structure.name}: {error}") from error
    order = " ".join(symbol for symbol in species if symbol in set(atoms.symbols))
    print(f"wrote {options.out}: {atoms.get_chemical_formula()}, species in the order {order}")
    return 0


def _convert_models(options: argparse.Namespace) -> int:
    from maise_bridge.cli.files import check_output, replacing
    from maise_bridge.committee import merge_models
    from maise_bridge.model_file import GuptaModel, MaiseModel, read_model, read_network, write_model

    if options.model or options.species or options.index != ":":
        raise ValueError("--model, --species and --index are for structures; the files are models")
    check_output(options.out, overwrite=options.overwrite)
    model: MaiseModel | GuptaModel
    if len(options.files) == 1:
        model = read_model(options.files[0])
    else:
        members = [read_network(file) for file in options.files]
        ids = " ".join(member.unique_id for member in members)
        model = merge_models(members, info={"reference": f"mean of {len(members)}: {ids}"[:49]})
    with replacing(options.out) as partial:
        write_model(model, partial)
    print(f"wrote {options.out}: species {' '.join(model.species)}, id {model.unique_id}")
    return 0
