"""``phonons``: phonons of one crystal, with bands, soft-mode child and free energy."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import BaseCalculator

    from ase_hvae.phonons import PhononResult


class CLICommand:
    """Compute the phonons of a relaxed crystal.

    FILE is anything that ASE reads, or the candidates.db of a run with --candidate. The crystal must be relaxed with
    the same calculator. Prints the verdict and the lowest frequency; files are written only where asked for.
    """

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Flags of the command."""
        from ase_hvae.cli import one_line_errors, whole_number

        one_line_errors(parser, "phonons")
        add = parser.add_argument
        add("file", metavar="FILE", help="structure file, or candidates.db of a run")
        add("--candidate", type=whole_number(0), metavar="ID", help="row of candidates.db, as the table names it")
        add("--calculator", default="maise", help="calculators in order of preference, as of generate [%(default)s]")
        add("--potential", default="silicon", help="MAISE model: a shipped name or a model file [%(default)s]")
        add("--relax", action="store_true", help="relax the crystal first")
        add("--min-length", type=float, default=10.0, metavar="Å", help="shortest supercell length [%(default)s]")
        add("--temperature", type=float, metavar="K", help="print zero-point and free energy too")
        add("--plot", metavar="PNG", help="draw bands and density of states into this picture")
        add("--params", metavar="YAML", help="write phonopy's parameters with force constants to this file")
        add("--child", metavar="OUT", help="displace along the softest mode, relax, and write the crystal here")
        add("--max-atoms", type=whole_number(1), default=32, metavar="N", help="most atoms of the child [%(default)s]")
        add("--seed", type=whole_number(0), default=0, help="seed of the child's random displacements [%(default)s]")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Run the command."""
        from ase_hvae.cli import run_command

        run_command("phonons", lambda: _phonons(args), traceback=args.traceback)


def _phonons(args: argparse.Namespace) -> None:
    from ase_hvae import phonons
    from ase_hvae.calculators import get_calculator
    from ase_hvae.errors import ConfigError
    from ase_hvae.relax import relax

    for name in ("min_length", "temperature"):
        value = getattr(args, name)
        if value is not None and not 0 <= value < float("inf"):
            raise ConfigError(f"--{name.replace('_', '-')} {value} must be finite and not negative")
    if args.min_length == 0:
        raise ConfigError("--min-length 0 must be positive, in Å")
    atoms = _read(args.file, args.candidate)
    calc, record = get_calculator(args.calculator, species=sorted(set(atoms.symbols)), model=args.potential)
    if args.relax:
        atoms = relax(atoms, calc).atoms
    result = phonons.compute(atoms, calc, min_length=args.min_length)
    print(f"{result.atoms.symbols} by {record}: {'stable' if result.stable else 'unstable'}")
    print(
        f"frequencies {result.min_frequency:.2f} to {result.max_frequency:.2f} THz, imaginary ones negative; "
        f"stable above {-result.tolerance:g} THz"
    )
    print(f"supercell of {result.n_supercell_atoms} atoms, {result.n_displacements} displacements")
    if args.params:
        result.phonon.save(args.params, settings={"force_constants": True})
    if args.plot:
        title = f"{result.atoms.symbols}, {record.name}"
        phonons.plot_band_structure(phonons.band_structure(result), args.plot, title=title)
    if args.temperature is not None:
        energy = phonons.harmonic_energy(result, args.temperature)
        print(f"zero-point energy {1000 * energy.zero_point_energy:.2f} meV/atom")
        print(f"free energy of phonons at {energy.temperature:g} K {1000 * energy.free_energy:.2f} meV/atom")
    if args.child:
        _write_child(args, result, calc)


def _read(file: str, candidate: int | None) -> Atoms:
    """The crystal of a file, or one candidate of a run."""
    from ase_hvae.errors import ConfigError
    from ase_hvae.structures import read_structures

    structures = read_structures(file)
    if candidate is None:
        if len(structures) > 1:
            raise ConfigError(f"{file} holds {len(structures)} structures; name one candidate of a run by --candidate")
        return structures[0]
    from ase.db import connect

    rows = list(connect(file).select(candidate=candidate)) if file.endswith(".db") else []
    if not rows:
        raise ConfigError(f"{file} holds no candidate {candidate}; the table of the run names them under id")
    return rows[0].toatoms()


def _write_child(args: argparse.Namespace, result: PhononResult, calc: BaseCalculator) -> None:
    """Follow the softest mode to a crystal of lower energy."""
    import numpy as np
    from ase.io import write

    from ase_hvae import phonons
    from ase_hvae.relax import relax

    mode = phonons.softest_mode(result, max_atoms=args.max_atoms)
    moved = phonons.displace(mode, calc, rng=np.random.default_rng(args.seed))
    child = relax(moved, calc)
    start = mode.atoms.copy()
    start.calc = calc
    gain = 1000 * (child.energy - start.get_potential_energy()) / len(start)
    write(args.child, child.atoms)
    where = ", ".join(f"{x:.3g}" for x in mode.qpoint)
    print(f"softest mode {mode.frequency:.2f} THz at ({where}), {len(start)} atoms")
    state = "relaxed" if child.converged else f"not converged in {child.n_steps} steps"
    print(f"child {args.child}: {gain:+.1f} meV/atom, {state}")
