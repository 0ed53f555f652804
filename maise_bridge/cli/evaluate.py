"""``evaluate``: energies, forces, pressures of structures, and errors where the files hold labels."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms

from maise_bridge.cli.files import add_structures

if TYPE_CHECKING:
    from maise_bridge.calculator import MaiseCalculator
    from maise_bridge.cli.files import Structure

_COLUMNS = {
    "formula": "s",
    "atoms": "d",
    "energy eV": "14.6f",
    "eV/atom": "10.5f",
    "fmax eV/Å": ".4f",
    "p GPa": "8.3f",
    "extrapolation": ".3g",
}
_ERRORS = {"dE meV/atom": ".1f", "dF eV/Å": ".4f"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    add_structures(parser)
    add = parser.add_argument
    add("--out", type=Path, help="write the structures with their results, in the format of its name")
    add("--overwrite", action="store_true", help="replace OUT")
    errors_help = "only the errors by energy window of labelled crystals; core repulsion is off, as it was in the fit"
    add("--errors", action="store_true", help=errors_help)
    parser.epilog = "'evaluate MODEL FILE...' means 'evaluate FILE... --model MODEL --errors'."


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from maise_bridge.cli.files import check_output, make_calculator, read_structures, short_names, write_structures
    from maise_bridge.cli.tables import Table, progress

    if _starts_with_a_model(options):
        options.model, *options.files = options.files
        options.errors = True
    if options.errors:
        return _print_window_errors(options)
    calc = make_calculator(options)
    structures = read_structures(options.files, options.index)
    if options.out:
        kind = check_output(options.out, overwrite=options.overwrite, n_structures=len(structures))
    labels = [_label(structure.atoms) for structure in structures]
    columns = dict(_COLUMNS, formula=f"{max(len(_formula(structure)) for structure in structures)}s")
    names = short_names(structures)
    table = Table("structure", names, columns | (_ERRORS if any(labels) else {}))
    print(table.header)
    images, errors = [], []
    with progress(len(structures)) as show:
        for name, structure, label in zip(names, structures, labels, strict=True):
            images.append(_evaluated(structure, calc))
            errors.append(_differences(images[-1], label))
            show(table.row(name, _cells(structure, images[-1]) + (errors[-1] if any(labels) else [])))
    _print_summary(errors)
    if options.out:
        write_structures(options.out, kind, images)
        print(f"wrote {options.out}")
    return 0


@dataclass(frozen=True, eq=False)
class _Label:
    """What a file says about a structure."""

    energy: float
    forces: np.ndarray | None


def _starts_with_a_model(options: argparse.Namespace) -> bool:
    """Whether the model comes first, as it did when the command only printed errors."""
    from maise_bridge.calculator import shipped_models
    from maise_bridge.cli.files import is_model_file

    first = options.files[0]
    named = is_model_file(first) or (first in shipped_models() and not Path(first).exists())
    if named and (options.model or len(options.files) == 1):
        raise ValueError(f"{first} is a model, not a structure; pass it as --model {first}, and files of structures")
    return named


def _print_window_errors(options: argparse.Namespace) -> int:
    from maise_bridge.cli.files import make_calculator
    from maise_bridge.cli.tables import print_errors
    from maise_bridge.dataset import read_labels
    from maise_bridge.evaluation import residuals, window_errors

    if options.out or options.index != ":":
        raise ValueError("--errors reads whole files and writes none; leave --out and --index away")
    if options.core_repulsion is None:
        options.core_repulsion = False
    calc = make_calculator(options)
    labels = read_labels(options.files)
    for source, atoms in zip(labels.sources, labels.structures, strict=True):
        calc.check(atoms, name=source)
    errors = window_errors(residuals(calc.potential, labels), labels, lowest=float(labels.energies_per_atom.min()))
    print_errors("all", [row.as_dict() for row in errors])
    return 0


def _formula(structure: Structure) -> str:
    return structure.atoms.get_chemical_formula()


def _label(atoms: Atoms) -> _Label | None:
    results: Mapping[str, Any] = {} if atoms.calc is None else atoms.calc.results
    if results.get("energy") is None:
        return None
    return _Label(float(results["energy"]), results.get("forces"))


def _evaluated(structure: Structure, calc: MaiseCalculator) -> Atoms:
    """Copy with the model's results; raises CalculatorError that names the structure."""
    from ase.calculators.calculator import CalculationFailed
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms = structure.atoms.copy()
    calc.check(atoms, name=structure.name)
    try:
        calc.calculate(atoms)
    except CalculationFailed as error:
        raise CalculationFailed(f"{structure.name}: {error}") from error
    names = ("energy", "free_energy", "energies", "forces", "stress")
    atoms.calc = SinglePointCalculator(atoms, **{name: calc.results[name] for name in names if name in calc.results})
    atoms.set_array("extrapolation", calc.results["extrapolation"])
    return atoms


def _cells(structure: Structure, image: Atoms) -> list[Any]:
    from ase.units import GPa

    results = image.calc.results
    energy, stress = results["energy"], results.get("stress")
    return [
        _formula(structure),
        len(image),
        energy,
        energy / len(image),
        float(np.linalg.norm(results["forces"], axis=1).max()),
        None if stress is None else -float(stress[:3].mean()) / GPa,
        float(image.arrays["extrapolation"].max()),
    ]


def _differences(image: Atoms, label: _Label | None) -> list[float | None]:
    """Model minus label: energy in meV/atom, and the root mean square of the force components in eV/Å."""
    if label is None:
        return [None, None]
    energy = 1e3 * (image.calc.results["energy"] - label.energy) / len(image)
    if label.forces is None:
        return [energy, None]
    return [energy, float(np.sqrt(np.mean((image.calc.results["forces"] - label.forces) ** 2)))]


def _print_summary(errors: list[list[float | None]]) -> None:
    energies = np.array([row[0] for row in errors if row[0] is not None])
    if len(energies) > 1:
        mean, spread = energies.mean(), np.sqrt(np.mean(energies**2))
        print(f"{len(energies)} labels: energies off by {mean:.1f} meV/atom on average, {spread:.1f} root mean square")
