"""``relax``: relax crystals, many at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms

from maise_bridge.cli.files import add_structures
from maise_bridge.cli.interrupts import INTERRUPTED, termination_as_interrupt

if TYPE_CHECKING:
    from maise_bridge.batch_relax import Relaxed
    from maise_bridge.calculator import MaiseCalculator
    from maise_bridge.cli.files import Structure

_COLUMNS = {
    "formula": "s",
    "atoms": "d",
    "steps": "d",
    "eV/atom": "10.5f",
    "change meV/atom": ".1f",
    "Å³/atom": "8.3f",
    "fmax eV/Å": ".4f",
}
_FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    add_structures(parser)
    add = parser.add_argument
    out_help = "file for the relaxed structures, in the order of the input; failed ones are left out"
    add("--out", type=Path, required=True, help=out_help)
    add("--overwrite", action="store_true", help="replace OUT")
    add("--fmax", type=float, default=0.01, help="largest force on atoms and cell at the end, eV/Å [%(default)s]")
    add("--steps", type=int, default=500, help="most steps of a structure [%(default)s]")
    add("--pressure", type=float, default=0.0, metavar="GPA", help="hydrostatic pressure, GPa [%(default)s]")
    add("--optimizer", choices=("BFGS", "FIRE"), default="BFGS", help="BFGS needs a third of the steps [%(default)s]")
    fixed_help = "positions only, one structure after the other; also for slabs, clusters and constraints"
    add("--fixed-cell", action="store_true", help=fixed_help)
    symmetry_help = "keep the space group that each crystal has within 0.01 Å, after idealising it to that group"
    add("--keep-symmetry", action="store_true", help=symmetry_help)
    add("--batch", type=int, default=64, metavar="N", help="crystals relaxed at once [%(default)s]")


def run(options: argparse.Namespace) -> int:
    """Run the command; 1 if a structure failed or did not converge."""
    from maise_bridge.cli.files import check_output, make_calculator, read_structures, write_structures

    calc = make_calculator(options)
    structures = read_structures(options.files, options.index)
    kind = check_output(options.out, overwrite=options.overwrite, n_structures=len(structures))
    for structure in structures:
        _check(structure, calc, fixed_cell=options.fixed_cell)
    relaxations = _fixed_cell(structures, calc, options) if options.fixed_cell else _crystals(structures, calc, options)
    ends: dict[int, Relaxed] = {}
    stopped: BaseException | None = None
    try:
        with termination_as_interrupt():
            _show_all(structures, relaxations, ends)
    except BaseException as error:  # whatever it was, what is relaxed is kept
        stopped = error
    images = [_image(end) for _, end in sorted(ends.items()) if end.failure is None]
    if images:
        write_structures(options.out, kind, images)
    if stopped is not None and not isinstance(stopped, KeyboardInterrupt):
        raise stopped
    _print_end(options.out, len(structures), list(ends.values()))
    if stopped is not None:
        print(f"error: interrupted; {len(structures) - len(ends)} structures are not relaxed", file=sys.stderr)
        return INTERRUPTED
    return 0 if all(end.converged for end in ends.values()) else _FAILED


def _show_all(structures: Sequence[Structure], relaxations: Iterator[Relaxed], ends: dict[int, Relaxed]) -> None:
    """Print the relaxations as they end, and put them into `ends`."""
    from maise_bridge.cli.files import short_names
    from maise_bridge.cli.tables import Table, progress

    names = short_names(structures)
    width = max(len(structure.atoms.get_chemical_formula()) for structure in structures)
    table = Table("structure", names, dict(_COLUMNS, formula=f"{width}s"))
    print(table.header, flush=True)
    with progress(len(structures)) as show:
        for end in relaxations:
            ends[end.index] = end
            show(f"{table.row(names[end.index], _cells(end))}  {_verdict(end)}".rstrip())


def _check(structure: Structure, calc: MaiseCalculator, *, fixed_cell: bool) -> None:
    calc.check(structure.atoms, name=structure.name)
    if fixed_cell:
        return
    if not structure.atoms.pbc.all() or structure.atoms.cell.rank < 3:
        raise ValueError(f"{structure.name}: is no crystal (pbc {structure.atoms.pbc.tolist()}); pass --fixed-cell")
    if structure.atoms.constraints:
        raise ValueError(f"{structure.name}: has constraints, which only --fixed-cell heeds; pass it or remove them")


def _crystals(structures: Sequence[Structure], calc: MaiseCalculator, options: argparse.Namespace) -> Iterator[Relaxed]:
    from ase.units import GPa

    from maise_bridge.symmetry_projection import symmetrized

    crystals, symmetry = [structure.atoms for structure in structures], None
    if options.keep_symmetry:
        pairs = [symmetrized(atoms) for atoms in crystals]
        crystals, symmetry = [ideal for ideal, _ in pairs], [operations for _, operations in pairs]
    return calc.batch_relax(
        crystals,
        symmetry=symmetry,
        fmax=options.fmax,
        max_steps=options.steps,
        scalar_pressure=options.pressure * GPa,
        optimizer=options.optimizer,
        batch_size=options.batch,
    )


def _fixed_cell(
    structures: Sequence[Structure], calc: MaiseCalculator, options: argparse.Namespace
) -> Iterator[Relaxed]:
    if options.pressure:
        raise ValueError(f"--pressure {options.pressure:g}: a fixed cell feels none; leave it or --fixed-cell away")
    if options.keep_symmetry:
        raise ValueError("--keep-symmetry keeps symmetries of crystals and their cells; leave it or --fixed-cell away")
    if not options.fmax > 0 or options.steps < 0:
        raise ValueError(f"--fmax {options.fmax:g}, --steps {options.steps}; forces above 0 eV/Å, steps from 0")
    return (_relax_positions(number, structure, calc, options) for number, structure in enumerate(structures))


def _relax_positions(index: int, structure: Structure, calc: MaiseCalculator, options: argparse.Namespace) -> Relaxed:
    from ase import optimize
    from ase.calculators.calculator import CalculationFailed
    from ase.calculators.singlepoint import SinglePointCalculator

    from maise_bridge.batch_relax import Relaxed

    atoms = structure.atoms.copy()
    atoms.calc = calc
    energy, optimizer, failure, converged = np.nan, None, None, False
    try:
        energy = atoms.get_potential_energy()
        optimizer = getattr(optimize, options.optimizer)(atoms, logfile=None)
        converged = bool(optimizer.run(fmax=options.fmax, steps=options.steps))
        fmax = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
    except CalculationFailed as error:
        failure, fmax = str(error), np.nan
    evaluation = calc.potential.evaluate([atoms])[0]
    results = {"energy": evaluation.energy, "forces": evaluation.forces, "stress": evaluation.stress}
    atoms.calc = SinglePointCalculator(atoms, **results)
    n_steps = optimizer.nsteps if optimizer else 0
    return Relaxed(index, atoms, evaluation, energy, fmax, converged, n_steps, failure)


def _cells(end: Relaxed) -> list[object]:
    n_atoms, atoms = len(end.atoms), end.atoms
    energy = atoms.calc.results.get("energy") if end.failure is None else None
    return [
        atoms.get_chemical_formula(),
        n_atoms,
        end.n_steps,
        None if energy is None else energy / n_atoms,
        None if energy is None else 1e3 * (energy - end.energy_initial) / n_atoms,
        atoms.get_volume() / n_atoms if atoms.cell.rank == 3 else None,
        end.fmax if np.isfinite(end.fmax) else None,
    ]


def _verdict(end: Relaxed) -> str:
    if end.failure is not None:
        return f"FAILED: {end.failure}"
    return "" if end.converged else "NOT CONVERGED"


def _image(end: Relaxed) -> Atoms:
    """What is written: the structure with its results, and in `info` how the relaxation ended."""
    end.atoms.info |= {"converged": end.converged, "n_steps": end.n_steps}
    return end.atoms


def _print_end(path: Path, n_structures: int, ends: Sequence[Relaxed]) -> None:
    failed = sum(end.failure is not None for end in ends)
    short = sum(end.failure is None and not end.converged for end in ends)
    counts = [f"{len(ends) - failed} of {n_structures} structures"]
    counts += [f"{failed} failed"] if failed else []
    counts += [f"{short} not converged"] if short else []
    what = f"wrote {path}" if len(ends) > failed else f"{path} is not written"
    print(f"{what}: {', '.join(counts)}")
